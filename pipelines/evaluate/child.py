"""The evaluating process: `python -m pipelines.evaluate.child FOLDER` measures the model that FOLDER/spec.json names."""

import math
import time
from collections.abc import Sequence
from typing import Any

from pipelines.evaluate import scores
from pipelines.files import write_jsonl
from pipelines.train.prompts import PromptFormat, Tokenized
from pipelines.worker import DivergedError, Stopwatch, Worker, start

Records = Sequence[dict[str, Any]]


def evaluate_cell(worker: Worker) -> None:
    """Losses of every held-out record that fits all models of the profile, then greedy answers to a fixed sample."""
    clock = Stopwatch()
    from pipelines.clean.select import Selection, select
    from pipelines.files import stable_hash
    from pipelines.train import loading
    from pipelines.train.memory import reset_peaks

    loading.quiet()
    worker.phase("evaluate")
    spec, recipe = worker.spec, worker.spec["recipe"]
    base = worker.root / spec["weights"]
    trained = worker.root / spec["trained"] if spec["trained"] else None
    model = loading.load_model(trained if trained and recipe["kind"] == "full" else base, recipe)
    if trained:
        model = loading.attach_trained(model, recipe, trained)
    model.eval()
    form = PromptFormat(loading.load_tokenizer(base), recipe["prompt"])
    reset_peaks()
    worker.measure(evaluation_load_seconds=clock.lap())

    records = select(worker.root / spec["examples"], Selection(**spec["selection"])).eval
    fitting = fitting_everywhere(worker, records)
    worker.measure(
        eval_records=len(fitting),
        eval_records_left_out=len(records) - len(fitting),
        eval_set=stable_hash(sorted(record["example_id"] for record in fitting)),
    )
    measure_losses(worker, model, form, fitting)
    worker.measure(loss_seconds=clock.lap())
    answer_sample(worker, model, form, fitting[: spec["settings"]["answers"]])
    worker.measure(answer_seconds=clock.lap())


def fitting_everywhere(worker: Worker, records: Records) -> Records:
    """The records that no model of the profile would have to cut, so that all are measured on the same ones.

    Raises:
        ValueError: there is none.
    """
    from pipelines.train import loading

    kept = list(records)
    for folder, style, max_length in worker.spec["readers"]:
        form = PromptFormat(loading.load_tokenizer(worker.root / folder), style)
        kept = [record for record in kept if len(form.tokenize(record)) <= max_length]
    if not kept:
        raise ValueError(f"none of {len(records)} evaluation records fits every model of the profile: raise max_length")
    return kept


def measure_losses(worker: Worker, model: Any, form: PromptFormat, records: Records) -> None:
    """Loss per completion token (nats, the end token included) and bits per byte (without it), per record and over all."""
    import torch

    from pipelines.train import batches, loading
    from pipelines.train.losses import head_on_positions, scored_mask, token_losses
    from pipelines.train.precision import autocast

    recipe, device = worker.spec["recipe"], loading.device()
    rows: list[dict[str, Any]] = []
    examples = [form.tokenize(record) for record in records]
    with head_on_positions(model) as wanted, torch.no_grad(), autocast(recipe, device):
        for batch in batches.micro_batches(examples, max_tokens=worker.spec["batch_tokens"]):
            losses = token_losses(model, batch, wanted, device).double().cpu()
            rows += _per_record(batch, losses, scored_mask(batch))
    write_jsonl(worker.folder / "losses.jsonl", sorted(rows, key=lambda row: row["example_id"]))
    nats, tokens = sum(row["nats"] for row in rows), sum(row["tokens"] for row in rows)
    if not math.isfinite(nats):
        raise DivergedError(f"the loss on held-out records is {nats}: the weights are not usable")
    scored, size = sum(row["scored_nats"] for row in rows), sum(row["bytes"] for row in rows)
    worker.measure(eval_loss=nats / tokens, eval_bits_per_byte=scores.bits_per_byte(scored, size))
    worker.save()


def _per_record(batch: Sequence[Tokenized], losses: Any, scored: Any) -> list[dict[str, Any]]:
    rows, start = [], 0
    for example in batch:
        mine = slice(start, start + example.learned)
        start = mine.stop
        rows.append(
            {
                "example_id": example.example_id,
                "nats": losses[mine].sum().item(),
                "tokens": example.learned,
                "scored_nats": losses[mine][scored[mine]].sum().item(),
                "bytes": example.completion_bytes,
            }
        )
    return rows


def answer_sample(worker: Worker, model: Any, form: PromptFormat, records: Records) -> None:
    """Greedy answers, one at a time (so that latency is what one user waits), each with its chrF against the reference."""
    import torch

    from pipelines.train import loading

    device, rows = loading.device(), []
    limit = worker.spec["settings"]["max_new_tokens"]
    for number, record in enumerate(records, start=1):
        prompt = torch.tensor([form.prompt(record)], device=device)
        began = time.monotonic()
        with torch.no_grad():
            produced = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=form.stop_tokens,
                pad_token_id=form.tokenizer.eos_token_id,
            )[0, prompt.shape[1] :]
        latency = (time.monotonic() - began) * 1000
        answer = form.tokenizer.decode(produced, skip_special_tokens=True).strip()
        rows.append(
            {
                "example_id": record["example_id"],
                "prompt": "\n\n".join(part for part in (record["instruction"], record["input"]) if part),
                "reference": record["output"],
                "answer": answer,
                "answer_tokens": len(produced),
                "latency_ms": latency,
                "chrf": scores.chrf(answer, record["output"]),
            }
        )
        worker.say(f"answer {number} of {len(records)}: {len(produced)} tokens in {latency:.0f} ms")
    write_jsonl(worker.folder / "answers.jsonl", rows)
    worker.measure(
        chrf=scores.corpus_chrf([row["answer"] for row in rows], [row["reference"] for row in rows]),
        answer_tokens=sum(row["answer_tokens"] for row in rows) if rows else None,
        p50_latency_ms=scores.percentile([row["latency_ms"] for row in rows], 0.5),
    )


if __name__ == "__main__":
    start(evaluate_cell)
