"""One trial, run as a child: it trains the cell that spec.json describes on train without a slice, and puts the loss on that slice
on its curve. No model is saved, and no evaluation record is looked at."""

from pipelines.runs.worker import Worker, start
from pipelines.train.trainer.child import begin_from_texts, load, tokenize

EVALUATIONS = 4  # of the slice, on the way to the end: what a trial may be pruned by


def try_rate(worker: Worker) -> None:
    """Raises ValueError where there are too few examples to hold any back."""
    model = load(worker)
    from pipelines.train.trainer import batches, loading
    from pipelines.train.trainer.loop import Trainer

    recipe, tokens = worker.spec["recipe"], tokenize(worker, model)
    begin_from_texts(worker, model, tokens)
    kept, judged = batches.held_back(tokens.train, recipe["validation_share"])
    if not kept:
        raise ValueError("tuning needs two training examples or more")
    trainer = Trainer(worker, model, recipe, loading.device())
    trainer.prepare(kept)
    worker.spec["eval_every_steps"] = max(1, worker.report["measured"]["steps"] // EVALUATIONS)
    worker.phase("train")
    trainer.train(judged)


if __name__ == "__main__":
    start(try_rate)
