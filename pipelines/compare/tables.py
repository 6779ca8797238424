"""The warehouse's other tables: every attempt, every curve, every answer, every example and reject, every LLM call."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as parquet

from pipelines.clean.clean import current as current_examples
from pipelines.compare.answers import with_verdicts
from pipelines.compare.history import HISTORY, history_rows
from pipelines.compare.providers import PROVIDER_COMPARISON, PROVIDER_DUELS, duel_rows, provider_rows
from pipelines.compare.ranking import PICKS
from pipelines.compare.table import (
    COLUMNS,
    FROM_EVALUATION,
    FROM_TRAINING,
    Row,
    adapter_of,
    disturbed,
    learning_rate,
    placement,
)
from pipelines.estimate.estimate import training_gb
from pipelines.estimate.question import answer_on
from pipelines.evaluate.scores import bits_per_byte
from pipelines.experiments import Experiments
from pipelines.export import bit_widths
from pipelines.files import read_jsonl
from pipelines.generate.journal import opened
from pipelines.paths import DataRoot
from pipelines.runs import cells
from pipelines.runs.cells import Attempt
from pipelines.warehouse import arrow_table

TRAINING_RUNS = {
    "run_id": "VARCHAR", "model": "VARCHAR", "method": "VARCHAR", "seed": "INTEGER", "profile": "VARCHAR", "status": "VARCHAR",
    "phase": "VARCHAR", "status_detail": "VARCHAR", "started_at": "TIMESTAMPTZ", "finished_at": "TIMESTAMPTZ",
    **{name: COLUMNS[name] for name in (*FROM_TRAINING, *FROM_EVALUATION)},
    "bytes_requested": "BIGINT", "last_step": "INTEGER", "steps": "INTEGER", "learning_rate": "DOUBLE",
    "memory_budget_gb": "DOUBLE", "estimated_memory_gb": "DOUBLE", "data_fingerprint": "VARCHAR",
    "recipe_fingerprint": "VARCHAR", "code_version": "VARCHAR",
    "device": "VARCHAR", "torch_version": "VARCHAR", "transformers_version": "VARCHAR", "peft_version": "VARCHAR",
    "bitsandbytes_version": "VARCHAR", "resumed_from": "VARCHAR", "attention": "VARCHAR", "probe_seconds": "DOUBLE",
    "probe_peak_memory_gb": "DOUBLE", "bytes_needed": "BIGINT", "bytes_available": "BIGINT", "stopped_early": "BOOLEAN",
    "learning_rate_source": "VARCHAR", "learning_rate_at_edge": "BOOLEAN", "learning_rates_tried": "VARCHAR", "rank": "INTEGER",
    "alpha": "DOUBLE", "optimizer": "VARCHAR", "weights_revision": "VARCHAR", "import_seconds": "DOUBLE",
    "train_examples": "BIGINT", "trained_tokens": "BIGINT",
    "speed_disturbed": "BOOLEAN", "devices": "INTEGER", "sharding": "VARCHAR", "launcher": "VARCHAR",
    "memory_per_device_gb": "VARCHAR", "best_step": "INTEGER", "best_validation_loss": "DOUBLE", "weights_fingerprint": "VARCHAR",
    "peft": "VARCHAR",
}  # fmt: skip
TRAINING_CURVE = {
    "run_id": "VARCHAR", "step": "INTEGER", "examples": "BIGINT", "train_loss": "DOUBLE", "eval_loss": "DOUBLE",
    "learning_rate": "DOUBLE", "process_memory_mb": "DOUBLE", "gpu_allocated_mb": "DOUBLE", "gpu_memory_access_pct": "DOUBLE",
    "elapsed_seconds": "DOUBLE", "validation_loss": "DOUBLE", "tokens_per_second": "DOUBLE", "gpu_allocated_pct": "DOUBLE",
    "process_memory_mean_mb": "DOUBLE", "process_memory_std_mb": "DOUBLE", "process_memory_min_mb": "DOUBLE",
    "process_memory_max_mb": "DOUBLE",
}  # fmt: skip
EVALUATION_ANSWERS = {
    "run_id": "VARCHAR", "model": "VARCHAR", "method": "VARCHAR", "example_id": "VARCHAR", "prompt": "VARCHAR",
    "reference": "VARCHAR", "answer": "VARCHAR", "answer_tokens": "INTEGER", "latency_ms": "DOUBLE", "chrf": "DOUBLE",
    "bleu": "DOUBLE", "rouge_l": "DOUBLE", "meteor": "DOUBLE", "language": "VARCHAR", "shots": "INTEGER",
    "judge_correct": "BOOLEAN", "judge_helpfulness": "INTEGER", "judge_reasons": "VARCHAR", "judge_model": "VARCHAR",
}  # fmt: skip
EVALUATION_RECORDS = {
    "run_id": "VARCHAR", "model": "VARCHAR", "method": "VARCHAR", "example_id": "VARCHAR", "language": "VARCHAR",
    "nats": "DOUBLE", "tokens": "INTEGER", "scored_nats": "DOUBLE", "bytes": "INTEGER", "bits_per_byte": "DOUBLE",
}  # fmt: skip
SERVING = {
    "model": "VARCHAR", "method": "VARCHAR", "run_id": "VARCHAR", "mode": "VARCHAR", "batch_size": "INTEGER",
    "new_tokens": "INTEGER", "p50_latency_ms": "DOUBLE", "tokens_per_second": "DOUBLE", "peak_memory_gb": "DOUBLE",
}  # fmt: skip
SFT_EXAMPLES: dict[str, str] = {
    "example_id": "VARCHAR", "instruction": "VARCHAR", "input": "VARCHAR", "output": "VARCHAR", "messages": "VARCHAR",
    "language": "VARCHAR", "source": "VARCHAR", "provider": "VARCHAR", "model": "VARCHAR", "topic": "VARCHAR",
    "split": "VARCHAR", "record_id": "VARCHAR", "call_key": "VARCHAR", "tools": "VARCHAR",
}  # fmt: skip
SFT_REJECTS: dict[str, str] = {
    "record_id": "VARCHAR", "source": "VARCHAR", "provider": "VARCHAR", "model": "VARCHAR", "topic": "VARCHAR",
    "language": "VARCHAR", "call_key": "VARCHAR", "reason": "VARCHAR", "detail": "VARCHAR", "twin": "VARCHAR",
    "similarity": "DOUBLE", "record": "VARCHAR",
}  # fmt: skip
CLEANING_SUMMARY = {
    "source": "VARCHAR", "provider": "VARCHAR", "reason": "VARCHAR", "records": "BIGINT", "share": "DOUBLE",
}  # fmt: skip
LLM_CALLS = {
    "key": "VARCHAR", "provider": "VARCHAR", "model": "VARCHAR", "purpose": "VARCHAR", "topic": "VARCHAR", "language": "VARCHAR",
    "status": "VARCHAR", "stop_reason": "VARCHAR", "stop_category": "VARCHAR", "latency_ms": "DOUBLE", "input_tokens": "BIGINT",
    "cached_input_tokens": "BIGINT", "cache_write_tokens": "BIGINT", "output_tokens": "BIGINT", "reasoning_tokens": "BIGINT",
    "cost_usd": "DOUBLE", "reserved_usd": "DOUBLE", "attempts": "INTEGER", "in_doubt_count": "INTEGER", "batch_id": "VARCHAR",
    "error": "VARCHAR", "sent_at": "TIMESTAMPTZ", "finished_at": "TIMESTAMPTZ", "released_usd": "DOUBLE", "note": "VARCHAR",
}  # fmt: skip


def all_tables(
    data: DataRoot,
    experiments: Experiments,
    comparison: list[Row],
    *,
    picks: Sequence[Row] = (),
    taught: Sequence[Row] = (),
) -> dict[str, pa.Table]:
    """Every table of the warehouse, read from the lake and the journal; `taught` are answers that no attempt gave."""
    attempts = list(cells.all_attempts(data))
    return {
        "comparison": arrow_table(comparison, COLUMNS),
        "picks": arrow_table(picks, PICKS),
        "history": arrow_table(history_rows(attempts), HISTORY),
        "training_runs": arrow_table([_training_run(data, attempt) for attempt in attempts], TRAINING_RUNS),
        "training_curve": arrow_table(
            [{**point, "run_id": attempt.run_id} for attempt in attempts for point in attempt.curve()], TRAINING_CURVE
        ),
        "evaluation_answers": arrow_table([*_judged_answers(data, experiments, attempts), *taught], EVALUATION_ANSWERS),
        "evaluation_records": arrow_table(
            [row for attempt in attempts for row in _evaluated(attempt, "losses.jsonl")], EVALUATION_RECORDS
        ),
        "serving": arrow_table([row for attempt in attempts for row in _evaluated(attempt, "serving.jsonl")], SERVING),
        "quantized_inference": arrow_table(bit_widths.rows(data, experiments), bit_widths.QUANTIZED_INFERENCE),
        "sft_examples": _cleaned(data, "examples.parquet", SFT_EXAMPLES),
        "sft_rejects": _cleaned(data, "rejects.parquet", SFT_REJECTS),
        "cleaning_summary": _cleaned(data, "summary.parquet", CLEANING_SUMMARY),
        "llm_calls": arrow_table(llm_calls(data), LLM_CALLS),
        "provider_comparison": arrow_table(provider_rows(data, experiments), PROVIDER_COMPARISON),
        "provider_duels": arrow_table(duel_rows(data, experiments), PROVIDER_DUELS),
    }


FROM_RESULT = (
    "status", "phase", "status_detail", "started_at", "finished_at", "bytes_requested", "bytes_needed", "bytes_available",
    "device", "weights_revision",
)  # fmt: skip


def _training_run(data: DataRoot, attempt: Attempt) -> Row:
    result, spec = attempt.result, attempt.spec
    prints, versions = spec.fingerprints, result.versions
    good = [evaluation for evaluation in attempt.evaluations() if evaluation.ok]
    return {
        **result.measured,
        **({name: good[-1].result.measured.get(name) for name in FROM_EVALUATION} if good else {}),
        "run_id": attempt.run_id,
        "model": attempt.key.model,
        "method": attempt.key.method,
        "seed": attempt.key.seed,
        "profile": spec.profile,
        **learning_rate(result, spec),
        **adapter_of(spec.recipe),
        "optimizer": spec.recipe.get("optimizer"),
        "memory_budget_gb": spec.memory_budget_gb,
        **placement(spec),
        "estimated_memory_gb": training_gb(answer_on(data, attempt) or {}),
        "data_fingerprint": prints.get("data"),
        "recipe_fingerprint": prints.get("recipe"),
        "weights_fingerprint": prints.get("weights"),
        "code_version": prints.get("code"),
        **{f"{name}_version": versions.get(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        **{name: getattr(result, name) for name in FROM_RESULT},
        "speed_disturbed": disturbed(result.measured.get("other_cpu_pct")),
        "resumed_from": (spec.resume or {}).get("run_id"),
    }


def _evaluated(attempt: Attempt, file: str) -> list[Row]:
    """The rows of a file of the attempt's newest good evaluation."""
    good = [evaluation for evaluation in attempt.evaluations() if evaluation.ok]
    named = {"run_id": attempt.run_id, "model": attempt.key.model, "method": attempt.key.method}
    return [_with_bits({**row, **named}) for row in read_jsonl(good[-1].folder / file)] if good else []


def _with_bits(row: Row) -> Row:
    """A record's bits per byte, where it is one that has some."""
    return {**row, "bits_per_byte": bits_per_byte(row["scored_nats"], row["bytes"])} if row.get("bytes") else row


def _judged_answers(data: DataRoot, experiments: Experiments, attempts: Sequence[Attempt]) -> list[Row]:
    rows = [row for attempt in attempts for row in _evaluated(attempt, "answers.jsonl")]
    if not data.journal.exists() or experiments.judging.judge is None:
        return rows
    with opened(data.journal) as journal:
        return with_verdicts(journal, experiments, rows)


def _cleaned(data: DataRoot, name: str, columns: dict[str, str]) -> pa.Table:
    """A table of the current result of cleaning; a column that its folder does not have yet is NULL."""
    cleaned = current_examples(data)
    if cleaned is None or not (cleaned.folder / name).exists():
        return arrow_table([], columns)
    found = parquet.read_table(cleaned.folder / name)
    held = {column: found[column] for column in columns if column in found.column_names}
    schema = arrow_table([], columns).schema
    return pa.table({field.name: held.get(field.name, pa.nulls(len(found))) for field in schema}).cast(schema)


def llm_calls(data: DataRoot) -> list[Row]:
    if not data.journal.exists():
        return []
    with opened(data.journal) as journal:
        return list(journal.rows())
