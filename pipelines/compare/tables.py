"""All tables of the warehouse: attempts, curves, answers, examples, rejects, LLM calls and the
rest."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipelines.clean import reading
from pipelines.clean.clean import current as current_examples
from pipelines.compare import quantized
from pipelines.compare.answers import with_verdicts
from pipelines.compare.columns.calls import LLM_CALLS
from pipelines.compare.columns.comparison import HISTORY, PICKS
from pipelines.compare.columns.configured import answers_for, comparison_for
from pipelines.compare.columns.evaluation import (
    BENCHMARK_ANSWERS,
    EVALUATION_ANSWERS,
    EVALUATION_RECORDS,
    PAIR_VERDICTS,
    PREFERENCE_DUELS,
    PREFERENCES,
    QUANTIZED_INFERENCE,
    SERVING,
)
from pipelines.compare.columns.examples import CLEANING_SUMMARY, SFT_EXAMPLES, SFT_REJECTS
from pipelines.compare.columns.nights import NIGHTS
from pipelines.compare.columns.providers import PROVIDER_COMPARISON, PROVIDER_DUELS
from pipelines.compare.columns.training import TRAINING_CURVE, TRAINING_RUNS
from pipelines.compare.history import history_rows
from pipelines.compare.nights import night_rows
from pipelines.compare.providers import duel_rows, provider_rows
from pipelines.compare.table import (
    FROM_EVALUATION,
    Row,
    adapter_of,
    disturbed,
    learning_rate,
    micro_batch_tokens,
    placement,
)
from pipelines.estimate.estimate import training_gb
from pipelines.estimate.question import answer_on
from pipelines.evaluate import answers as answer_store
from pipelines.evaluate.benchmarks import FILE as BENCHMARKS
from pipelines.evaluate.metrics import Scores
from pipelines.evaluate.scores import bits_per_byte
from pipelines.generate.journal import opened
from pipelines.lake.files import read_jsonl
from pipelines.lake.paths import DataRoot
from pipelines.lake.schema import Table
from pipelines.lake.warehouse import arrow_table
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, Evaluation
from pipelines.settings.evaluation import EvaluationSettings
from pipelines.settings.experiments import Experiments
from pipelines.settings.methods import optimizer_of


def all_tables(
    data: DataRoot,
    experiments: Experiments,
    comparison: list[Row],
    *,
    evaluation: EvaluationSettings | None = None,
    picks: Sequence[Row] = (),
    teacher_rows: Sequence[Row] = (),
    scores: Scores | None = None,
    compared: Mapping[Table, Sequence[Row]] | None = None,
) -> dict[str, pa.Table]:
    """Every table of the warehouse, read from the lake and the journal.

    `evaluation`: the settings that add columns. `teacher_rows`: the teachers' answers, which belong
    to no attempt. `scores`: the metric scores known so far. `compared`: the rows of the tables that
    compare answers with one another.
    """
    attempts = list(cells.all_attempts(data))
    evaluation = evaluation or EvaluationSettings()
    scores = scores or Scores(evaluation.metrics)
    answered = scores.added_to([*_judged_answers(data, experiments, attempts), *teacher_rows])
    rows = {
        comparison_for(evaluation): comparison,
        PICKS: picks,
        HISTORY: history_rows(attempts),
        TRAINING_RUNS: [_training_run(data, attempt) for attempt in attempts],
        TRAINING_CURVE: [
            TRAINING_CURVE.narrowed(point) | {"run_id": attempt.run_id}
            for attempt in attempts
            for point in attempt.curve()
        ],
        answers_for(evaluation): answered,
        EVALUATION_RECORDS: _evaluated(attempts, "losses.jsonl", EVALUATION_RECORDS),
        BENCHMARK_ANSWERS: _evaluated(attempts, BENCHMARKS, BENCHMARK_ANSWERS),
        SERVING: _evaluated(attempts, "serving.jsonl", SERVING),
        QUANTIZED_INFERENCE: quantized.rows(data, experiments),
        LLM_CALLS: llm_calls(data),
        PROVIDER_COMPARISON: provider_rows(data, experiments),
        PROVIDER_DUELS: duel_rows(data, experiments),
        PAIR_VERDICTS: [],
        PREFERENCES: [],
        PREFERENCE_DUELS: [],
        NIGHTS: night_rows(data),
        **(compared or {}),
    }
    files = {SFT_EXAMPLES: "examples.parquet", SFT_REJECTS: "rejects.parquet", CLEANING_SUMMARY: "summary.parquet"}
    return {
        **{table.name: arrow_table(table_rows, table) for table, table_rows in rows.items()},
        **{table.name: _cleaned(data, file, table) for table, file in files.items()},
    }


FROM_RESULT = (
    "status", "phase", "status_detail", "started_at", "finished_at", "bytes_requested", "bytes_needed", "bytes_available",
    "device", "weights_revision",
)  # fmt: skip


def _training_run(data: DataRoot, attempt: Attempt) -> Row:
    result, spec = attempt.result, attempt.spec
    prints, versions = spec.fingerprints, result.versions
    good = _newest_good(attempt)
    return {
        **TRAINING_RUNS.narrowed(result.measured),
        **({name: good[0].result.measured.get(name) for name in FROM_EVALUATION} if good else {}),
        "run_id": attempt.run_id,
        "model": attempt.key.model,
        "method": attempt.key.method,
        "seed": attempt.key.seed,
        "profile": spec.profile,
        "micro_batch_tokens": micro_batch_tokens(result, spec),
        **learning_rate(result, spec),
        **adapter_of(spec.recipe),
        "optimizer": optimizer_of(spec.recipe),
        "memory_budget_gb": spec.memory_budget_gb,
        **placement(spec),
        "estimated_memory_gb": training_gb(answer_on(data, attempt) or {}),
        "data_fingerprint": prints.get("data"),
        "recipe_fingerprint": prints.get("recipe"),
        "weights_fingerprint": prints.get("weights"),
        "code_version": prints.get("code"),
        **{f"{name}_version": versions.get(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        **{name: getattr(result, name) for name in FROM_RESULT},
        "speed_disturbed": disturbed(result.measured.get("other_cpu_pct"), result.device),
        "resumed_from": (spec.resume or {}).get("run_id"),
    }


def _evaluated(attempts: Sequence[Attempt], file: str, table: Table) -> list[Row]:
    """The rows of a file of each attempt's newest good evaluation, limited to the columns of
    `table`."""
    return [
        _with_bits(table.narrowed(row) | table.narrowed({**_named(attempt), "seed": attempt.key.seed}))
        for attempt in attempts
        for evaluation in _newest_good(attempt)
        for row in read_jsonl(evaluation.folder / file)
    ]


def _newest_good(attempt: Attempt) -> list[Evaluation]:
    """The attempt's newest good evaluation, if it has one."""
    return [evaluation for evaluation in attempt.evaluations() if evaluation.ok][-1:]


def _named(attempt: Attempt) -> Row:
    return {"run_id": attempt.run_id, "model": attempt.key.model, "method": attempt.key.method}


def _with_bits(row: Row) -> Row:
    """The row with its bits per byte, if it has bytes."""
    return {**row, "bits_per_byte": bits_per_byte(row["scored_nats"], row["bytes"])} if row.get("bytes") else row


def _judged_answers(data: DataRoot, experiments: Experiments, attempts: Sequence[Attempt]) -> list[Row]:
    """The answers of each attempt's newest good evaluation, with the judge's verdict on each."""
    rows = [
        {**EVALUATION_ANSWERS.narrowed(row), **_named(attempt)}
        for attempt in attempts
        for evaluation in _newest_good(attempt)
        for row in answer_store.answers_of(evaluation)
    ]
    if not data.journal.exists() or experiments.judging.judge is None:
        return rows
    with opened(data.journal) as journal:
        return with_verdicts(journal, experiments, rows)


def _cleaned(data: DataRoot, file: str, table: Table) -> pa.Table:
    """A table of the current cleaning result. Columns that an older result lacks are NULL."""
    cleaned = current_examples(data)
    if cleaned is None or not (cleaned.folder / file).exists():
        return arrow_table([], table)
    stored = reading.table(cleaned.folder / file)
    columns = {name: stored[name] for name in table.by_name if name in stored.column_names}
    schema = arrow_table([], table).schema
    return pa.table({field.name: columns.get(field.name, pa.nulls(len(stored))) for field in schema}).cast(schema)


def llm_calls(data: DataRoot) -> list[Row]:
    """Every call of the journal, without the texts sent and received."""
    if not data.journal.exists():
        return []
    with opened(data.journal) as journal:
        return [LLM_CALLS.narrowed(row) for row in journal.rows()]
