"""One trial as a child process: train the cell in spec.json on train without a held-back slice, and
write the loss on that slice to the curve.

No model is saved, and no evaluation record is used.
"""

from pipelines.runs.worker import Worker, start
from pipelines.train.trainer.child import begin_from_texts, load, tokenize

# Number of evaluations of the slice during a trial, for pruning.
EVALUATIONS = 4


def try_rate(worker: Worker) -> None:
    """Run the trial. Raises ValueError if there are too few examples to hold any back."""
    model = load(worker)
    from pipelines.train.trainer import batches, loading
    from pipelines.train.trainer.loop import Trainer

    recipe, tokens = worker.spec["recipe"], tokenize(worker, model)
    begin_from_texts(worker, model, tokens)
    examples, held_back = batches.held_back(tokens.train, recipe["validation_share"])
    if not examples:
        raise ValueError("tuning needs two training examples or more")
    trainer = Trainer(worker, model, recipe, loading.device())
    trainer.prepare(examples)
    worker.spec["eval_every_steps"] = max(1, worker.report["measured"]["steps"] // EVALUATIONS)
    worker.phase("train")
    trainer.train(held_back)


if __name__ == "__main__":
    start(try_rate)
