"""The evaluation process: `python -m pipelines.evaluate.child FOLDER` measures the model in
FOLDER/spec.json."""

import json
import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.evaluate import general, scores
from pipelines.evaluate.benchmarks_run import measure_benchmarks
from pipelines.evaluate.endings import ended_pct
from pipelines.evaluate.fitting import Records, fitting_everywhere
from pipelines.evaluate.statistics import percentile
from pipelines.lake import disk
from pipelines.lake.files import write_jsonl
from pipelines.lake.paths import DataRoot
from pipelines.runs.clock import Stopwatch
from pipelines.runs.worker import DivergedError, StoppedError, Worker, start
from pipelines.settings.methods import traits_of
from pipelines.train.trainer.conversations import answer_of, conversation, question
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.prompts import PromptFormat

# With fewer answers the 95th percentile is almost the maximum.
MIN_P95_ANSWERS = 20
# Answering stores no gradients, so a batch holds this many times the tokens of a training batch.
ANSWER_SHARE = 2


def evaluate_cell(worker: Worker) -> None:
    """Measure losses, benchmarks, answers to a fixed sample, and the serving cost.

    The losses cover general texts and every held-out record that fits all models of the profile.
    """
    clock = Stopwatch()
    from pipelines.clean.select import Selection, select
    from pipelines.evaluate.answering import PromptedModel
    from pipelines.lake.files import stable_hash
    from pipelines.train.trainer import loading
    from pipelines.train.trainer.devices import card
    from pipelines.train.trainer.measure.memory import reset_peaks

    # Load the model, with its adapter if it has one.
    loading.quiet()
    worker.phase("evaluate")
    card.take(worker)
    spec, recipe = worker.spec, worker.spec["recipe"]
    base, trained = worker.root / spec["weights"], _trained(worker)
    model = loading.load_trained(base, recipe, trained)
    form = PromptFormat.of(base, recipe)
    reset_peaks()
    worker.measure(
        evaluation_load_seconds=clock.lap(),
        template_arguments=json.dumps(dict(form.arguments), sort_keys=True) if form.arguments else None,
    )

    # Choose the records that every model of the profile can read.
    selected = select(worker.root / spec["examples"], Selection(**spec["selection"]))
    fitting = fitting_everywhere(worker, selected.eval, form)
    worker.measure(
        eval_records=len(fitting),
        eval_records_left_out=len(selected.eval) - len(fitting),
        eval_set=stable_hash(sorted(record["example_id"] for record in fitting)),
    )

    # Measure losses, then benchmarks, then answers and serving. A part that fails leaves its own
    # numbers empty.
    prompted_model = PromptedModel(model, form, recipe, loading.device())
    prompts = Prompts(worker, prompted_model, selected.train)
    prompts.look_up(worker, prompted_model, fitting)
    measure_losses(worker, model, [one for record in fitting for one in prompts.whole(record)], fitting)
    with optional_part(worker, "general texts"):
        measure_general(worker, model, form)
    worker.measure(loss_seconds=clock.lap())
    measure_benchmarks(worker, prompted_model)
    clock.lap()
    sample = fitting[: spec["settings"]["answers"]]
    rows = answer_sample(worker, prompted_model, prompts, sample)
    worker.measure(answer_seconds=clock.lap())
    prompt_tokens = [prompts.tokens(record) for record in sample]
    with optional_part(worker, "serving and latency"):
        measure_latency(worker, measure_serving(worker, prompted_model, prompt_tokens), prompt_tokens, rows)
    worker.measure(serving_seconds=clock.lap())


@contextmanager
def optional_part(worker: Worker, what: str) -> Iterator[None]:
    """A part of the evaluation whose failure leaves only its own numbers empty.

    The row's detail gives the reason; all other measurements stay.
    """
    try:
        yield
    except (StoppedError, DivergedError):
        raise
    except Exception as error:
        if disk.is_full(error):
            raise
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        message = f"not measured: {what} ({type(error).__name__}: {first:.200})"
        worker.report["detail"] = "; ".join(filter(None, (worker.report.get("detail"), message)))
        worker.say(message)


def _trained(worker: Worker) -> Path | None:
    return worker.root / worker.spec["trained"] if worker.spec["trained"] else None


class Prompts:
    """The prompts of the cell's model, with shots from the train records or retrieved content if
    the recipe has them."""

    def __init__(self, worker: Worker, prompted_model: Any, train: Records) -> None:
        from pipelines.evaluate.retrieved import retrieved_for
        from pipelines.evaluate.shots import Shots

        self._form: PromptFormat = prompted_model.form
        count = worker.spec["recipe"].get("shots")
        window = getattr(prompted_model.model.config, "max_position_embeddings", None) or 1 << 30
        room = window - worker.spec["settings"]["max_new_tokens"]
        self._shots = Shots(train, count, self._form, room=room) if count else None
        self._retrieved = retrieved_for(worker, self._form, train, room=room)

    def look_up(self, worker: Worker, prompted_model: Any, records: Records) -> None:
        """Retrieve the content of these records' prompts; does nothing without retrieval."""
        from pipelines.evaluate.retrieved import look_up

        if self._retrieved:
            look_up(worker, self._retrieved, prompted_model, records)

    def shots(self, record: dict[str, Any]) -> Sequence[Any]:
        return self._shots.of(record) if self._shots else ()

    def retrieved(self, record: dict[str, Any]) -> int | None:
        """Number of retrieved records or passages in the prompt; None without retrieval."""
        return self._retrieved.of(record).count if self._retrieved else None

    def whole(self, record: dict[str, Any]) -> list[Tokenized]:
        return self._form.tokenize(*self._shown(record))

    def tokens(self, record: dict[str, Any]) -> list[int]:
        return self._form.prompt(*self._shown(record))

    def _shown(self, record: dict[str, Any]) -> tuple[dict[str, Any], Sequence[Any]]:
        if self._retrieved is None:
            return record, self.shots(record)
        prompt = self._retrieved.of(record)
        return prompt.record, prompt.shots


def measure_losses(worker: Worker, model: Any, examples: Sequence[Tokenized], records: Records) -> None:
    """Loss per completion token (nats, with the end token) and bits per byte (without it).

    Both are written per record and over all records.
    """
    rows = _by_record(record_losses(worker, model, examples))
    languages = {record["example_id"]: record["language"] for record in records}
    rows = [{**row, "language": languages[row["example_id"]]} for row in rows]
    write_jsonl(worker.folder / "losses.jsonl", sorted(rows, key=lambda row: row["example_id"]))
    nats, tokens = sum(row["nats"] for row in rows), sum(row["tokens"] for row in rows)
    if not math.isfinite(nats):
        raise DivergedError(f"the loss on held-out records is {nats}: the weights are not usable")
    worker.measure(eval_loss=nats / tokens, eval_bits_per_byte=_bits_per_byte(rows))
    worker.save()


def measure_general(worker: Worker, model: Any, form: PromptFormat) -> None:
    """Bits per byte on texts of general knowledge. The increase over the base model is
    forgetting."""
    count = worker.spec["settings"]["general_texts"]
    file = DataRoot(worker.root).tracked(general.FILE)
    texts = general.read_general(file, worker.spec["selection"]["languages"], count)
    if not texts:
        return
    examples = [general.plain_text(form, one["text"], str(number)) for number, one in enumerate(texts)]
    rows = record_losses(worker, model, examples)
    worker.measure(general_bits_per_byte=_bits_per_byte(rows), general_set=general.set_hash(texts))
    worker.save()


def record_losses(worker: Worker, model: Any, examples: Sequence[Tokenized]) -> list[dict[str, Any]]:
    """Per example: `nats` of all learned `tokens`, `scored_nats` of the ordinary tokens, their
    `bytes`."""
    import torch

    from pipelines.train.trainer import batches, loading
    from pipelines.train.trainer.losses import head_on_positions, scored_mask, token_losses

    device, virtual = loading.device(), traits_of(worker.spec["recipe"]).virtual_tokens
    rows: list[dict[str, Any]] = []
    with head_on_positions(model) as head_positions, torch.no_grad():
        for batch in batches.micro_batches(examples, max_tokens=worker.spec["batch_tokens"], virtual=virtual):
            losses = token_losses(model, batch, head_positions, device).double().cpu()
            rows += _per_record(batch, losses, scored_mask(batch))
    return rows


def _by_record(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per record. A template that rewrites earlier turns makes one example of each
    answer."""
    records: dict[str, dict[str, Any]] = {}
    for row in rows:
        totals = records.setdefault(row["example_id"], {"example_id": row["example_id"]})
        for name, value in row.items():
            if name != "example_id":
                totals[name] = totals.get(name, 0) + value
    return list(records.values())


def _bits_per_byte(rows: Sequence[dict[str, Any]]) -> float:
    return scores.bits_per_byte(sum(row["scored_nats"] for row in rows), sum(row["bytes"] for row in rows))


def _per_record(batch: Sequence[Tokenized], losses: Any, scored: Any) -> list[dict[str, Any]]:
    rows, start = [], 0
    for example in batch:
        span = slice(start, start + example.learned)
        start = span.stop
        rows.append(
            {
                "example_id": example.example_id,
                "nats": losses[span].sum().item(),
                "tokens": example.learned,
                "scored_nats": losses[span][scored[span]].sum().item(),
                "bytes": example.completion_bytes,
            }
        )
    return rows


def answer_sample(worker: Worker, prompted_model: Any, prompts: Prompts, records: Records) -> list[dict[str, Any]]:
    """Greedy answers in batches, with scores against the reference, as rows of answers.jsonl."""
    from pipelines.evaluate import answering

    limit = worker.spec["settings"]["max_new_tokens"]
    prompt_tokens, clock = [prompts.tokens(record) for record in records], Stopwatch()
    answer_tokens = answering.answer_all(
        prompted_model, prompt_tokens, limit, max_tokens=ANSWER_SHARE * worker.spec["batch_tokens"]
    )
    seconds = clock.total()
    rows = []
    for record, tokens in zip(records, answer_tokens, strict=True):
        answer, reference = answering.text_of(prompted_model, tokens), answer_of(conversation(record)[-1])
        rows.append(
            {
                "example_id": record["example_id"],
                "language": record["language"],
                "prompt": question(record),
                "reference": reference,
                "answer": answer,
                "answer_tokens": len(tokens),
                "ended": answering.ended(prompted_model, tokens, limit),
                "shots": len(prompts.shots(record)) or None,
                **({} if (count := prompts.retrieved(record)) is None else {"retrieved": count}),
                **scores.answer_scores(answer, reference, record["language"]),
            }
        )
    write_jsonl(worker.folder / "answers.jsonl", rows)
    count = sum(row["answer_tokens"] for row in rows)
    worker.measure(
        **scores.cell_scores(rows),
        answers=len(rows),
        answers_ended_pct=ended_pct(rows),
        answer_tokens=count if rows else None,
        answer_tokens_per_second=count / seconds if rows else None,
    )
    worker.save()
    worker.say(f"{len(rows)} answers: {count} tokens in {seconds:.1f} s")
    return rows


def measure_serving(worker: Worker, prompted_model: Any, prompt_tokens: Sequence[list[int]]) -> Any:
    """Speed and memory of answering: with the adapter attached, several adapters in one batch,
    merged.

    Returns the model with its adapter merged if possible. The input model is unusable afterwards.
    """
    from pipelines.evaluate import serving

    if not prompt_tokens:
        return prompted_model
    settings, recipe, trained = worker.spec["settings"], worker.spec["recipe"], _trained(worker)
    sizes = sorted({1, settings["serving_batch"]}) if settings["serving_batch"] else []
    tokens, rows = settings["serving_tokens"], []
    if traits_of(recipe).has_adapter and trained:
        rows += serving.measure(prompted_model, "attached", prompt_tokens, tokens, sizes)
        if sizes[1:] and (reason := serving.why_not_mixed(recipe, prompted_model.model)):
            worker.say(f"several adapters in one batch: not measured, {reason}")
        elif sizes[1:]:
            mixed = serving.several_adapters(prompted_model, trained, sizes[1])
            rows += serving.measure(mixed, "mixed", prompt_tokens, tokens, sizes[1:])
            serving.one_adapter(prompted_model)
        prompted_model = _merged(worker, prompted_model)
    if serving.is_whole(prompted_model):
        rows += serving.measure(prompted_model, "merged", prompt_tokens, tokens, sizes)
    write_jsonl(worker.folder / "serving.jsonl", rows)
    return prompted_model


def _merged(worker: Worker, prompted_model: Any) -> Any:
    """The model with its adapter merged if its method allows it and PEFT can do it; else
    unmerged."""
    from pipelines.evaluate import serving
    from pipelines.train.trainer import loading

    recipe = worker.spec["recipe"]
    if not traits_of(recipe).can_merge:
        return prompted_model
    try:
        return serving.merged(prompted_model, recipe)
    except UnavailableError as error:
        worker.say(f"not merged, so measured attached: {error}")
    base = worker.root / worker.spec["weights"]
    return replace(prompted_model, model=loading.load_trained(base, recipe, _trained(worker)))


def measure_latency(
    worker: Worker, prompted_model: Any, prompt_tokens: Sequence[list[int]], rows: Sequence[dict[str, Any]]
) -> None:
    """The latency of single answers, measured on the first records of the sample and stored with
    them."""
    from pipelines.evaluate import answering, serving

    settings = worker.spec["settings"]
    latencies = answering.latencies(
        prompted_model, prompt_tokens[: settings["latency_answers"]], settings["max_new_tokens"]
    )
    for row, milliseconds in zip(rows, latencies, strict=False):
        row["latency_ms"] = milliseconds
    write_jsonl(worker.folder / "answers.jsonl", rows)
    worker.measure(
        p50_latency_ms=percentile(latencies, 0.5),
        p95_latency_ms=percentile(latencies, 0.95) if len(latencies) >= MIN_P95_ANSWERS else None,
        latency_answers=len(latencies),
        latency_mode=("merged" if serving.is_whole(prompted_model) else "attached") if latencies else None,
    )


if __name__ == "__main__":
    start(evaluate_cell)
