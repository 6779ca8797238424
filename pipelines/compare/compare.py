"""Rebuild the warehouse and the report from the lake in one call."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipelines.compare.answers import pair_verdicts, teacher_answers, with_judgements
from pipelines.compare.columns.evaluation import PAIR_VERDICTS, PREFERENCE_DUELS, PREFERENCES
from pipelines.compare.columns.registry import VIEWS
from pipelines.compare.decide import Decision, Limits, decide
from pipelines.compare.preferences import Ballot, duel_rows, vote_rows, with_votes
from pipelines.compare.ranking import make_picks
from pipelines.compare.report import Content, write_report
from pipelines.compare.stamp import stamp
from pipelines.compare.table import comparison
from pipelines.compare.tables import all_tables
from pipelines.compare.task_metrics import add_metrics
from pipelines.estimate.estimate import keep_predictions
from pipelines.evaluate.metrics import Scores
from pipelines.lake import warehouse
from pipelines.lake.files import stable_hash
from pipelines.lake.paths import DataRoot
from pipelines.project import Project
from pipelines.runs.result import result_in

Row = dict[str, Any]


@dataclass(frozen=True)
class Publication:
    """What was published and where. `stamp` says when, and from which data and code."""

    rows: list[Row]
    picks: list[Row]
    warehouse: Path
    report: Path
    stamp: dict[str, str]


def compare(project: Project) -> Publication:
    """Publish the comparison in its current state.

    Raises:
        UsageError: nothing was cleaned yet.
        WorkError: the data folder cannot be written; the last publication stays intact.
    """
    resolved = project.resolve()
    keep_predictions(resolved)
    current = comparison(resolved)
    picks = make_picks(current.rows, current.qualities)
    ballot = Ballot(resolved)
    rows = with_votes(ballot, with_judgements(resolved, current.rows))
    compared = {
        PAIR_VERDICTS: pair_verdicts(resolved),
        PREFERENCES: list(vote_rows(ballot)),
        PREFERENCE_DUELS: list(duel_rows(ballot)),
    }
    evaluation, teacher_rows = project.settings.evaluation, teacher_answers(resolved)
    scores = Scores(evaluation.metrics)
    add_metrics(resolved, rows, teacher_rows, scores)
    tables = all_tables(
        project.data,
        project.experiments,
        rows,
        evaluation=evaluation,
        picks=picks,
        teacher_rows=teacher_rows,
        scores=scores,
        compared=compared,
    )
    published = datetime.now(UTC)
    origin = stamp(rows, project.profile, published)
    comment = "; ".join(f"{label}: {text}" for label, text in origin.items())
    tables["comparison"] = warehouse.with_comment(tables["comparison"], f"{comment}.")
    warehouse.publish(project.data, tables, VIEWS)
    write_report(project, Content.of(rows, tables), published=published)
    return Publication(rows, picks, project.data.warehouse, project.data.report, origin)


def decision(project: Project, limits: Limits, also: Collection[tuple[str, str]] = ()) -> Decision:
    """Decide which cell to use or to run next, from the current lake. Memory is predicted if the
    decision depends on it.

    `also` names cells outside the profile, as (model, method), that count too.

    Raises:
        UsageError: nothing was cleaned yet, or one of `also` has no row.
    """
    resolved = project.resolve()
    choice = decide(comparison(resolved), limits, also)
    if choice.verdict == "use":
        return choice
    keep_predictions(resolved)
    return decide(comparison(resolved), limits, also)


def lake_version(data: DataRoot) -> str:
    """A hash that changes with every result that a publication shows.

    Results are examples, calls, and attempts and evaluations that have ended, including those whose
    process is gone. Waiting and running work does not change the hash; the next publication shows
    its state at that time.
    """
    watched = [
        data.clean / "current.json",
        data.journal,
        data.preferences,
        *data.cells.rglob("result.json"),
        *(data.lake / "bit_widths").rglob("result.json"),
    ]
    changed = [[str(path), path.stat().st_mtime_ns] for path in watched if path.exists()]
    return stable_hash(sorted([*changed, *([str(folder), "lost"] for folder in _lost(data))]))


def _lost(data: DataRoot) -> list[Path]:
    """The folders of runs whose process is gone and that left no result."""
    folders = (path.parent for path in data.cells.rglob("state.json"))
    return [
        folder for folder in folders if not (folder / "result.json").exists() and result_in(folder).status == "lost"
    ]


def published_rows(
    data: DataRoot, table: Literal["comparison", "picks", "history", "nights"] = "comparison"
) -> list[Row]:
    """The rows of a published table; empty if an older publication lacks the table.

    Raises:
        UsageError: nothing has been published yet, or the publication is damaged.
    """
    with warehouse.reading(data) as db:
        if (table,) not in db.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            return []
        result = db.execute(f'SELECT * FROM "{table}"')
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
