"""Metrics of the user's own task for the cells: each row's shares, and the untouched model's on
the same prompts."""

from collections.abc import Sequence
from typing import Any

from pipelines.compare.table import Row
from pipelines.evaluate import answers as answer_store
from pipelines.evaluate.cell import base_method, evaluated_by
from pipelines.evaluate.endings import ended_pct
from pipelines.evaluate.metrics import Scores
from pipelines.project import Project, Resolved
from pipelines.settings.column_names import column_name

# The answers of each seed.
Answers = list[list[dict[str, Any]]]


def add_metrics(resolved: Resolved, rows: Sequence[Row], teacher_rows: Sequence[Row], scores: Scores) -> None:
    """Give the rows of cells and of teachers (whose answers are `taught`) their shares."""
    project = resolved.project
    evaluation, base = project.settings.evaluation, base_method(project)
    fingerprint = evaluated_by(resolved).fingerprint
    answered = [_answers(project, row, teacher_rows, fingerprint) for row in rows]
    for row, answers in zip(rows, answered, strict=True):
        flat = [one for seed in answers for one in seed]
        # Earlier evaluations did not measure it.
        if row["answers_ended_pct"] is None:
            row["answers_ended_pct"] = ended_pct(flat)
        row |= scores.cell_columns(answers)
    bases = {
        row["model"]: (row, base_answers)
        for row, base_answers in zip(rows, answered, strict=True)
        if row["method"] == base
    }
    for row, answers in zip(rows, answered, strict=True):
        untouched, base_answers = bases.get(row["model"], (None, []))
        if untouched and _questions(base_answers) == _questions(answers) and _same_weights(untouched, row):
            for name in evaluation.metric_names:
                column = column_name("metric", name)
                row[f"{column}_base"] = untouched[column]


def _answers(project: Project, row: Row, teacher_rows: Sequence[Row], fingerprint: str) -> Answers:
    own = [one for one in teacher_rows if one["run_id"] == row["run_id"]]
    return [own] if own else answer_store.kept_answers(project, row["model"], row["method"], fingerprint)


def _questions(answers: Answers) -> set[tuple[str | None, ...]]:
    """The prompts of the answers and their references."""
    return {tuple(map(one.get, ("example_id", "prompt", "reference"))) for seed in answers for one in seed}


def _same_weights(one: Row, other: Row) -> bool:
    return one["weights_fingerprint"] == other["weights_fingerprint"]
