"""Rebuild everything that people read: the warehouse and the report, from the lake, in one call."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import warehouse
from pipelines.compare.report import write_report
from pipelines.compare.table import comparison_rows
from pipelines.compare.tables import all_tables
from pipelines.estimate.estimate import keep_predictions
from pipelines.files import stable_hash
from pipelines.paths import DataRoot
from pipelines.train.cell import Stage

Row = dict[str, Any]


@dataclass(frozen=True)
class Publication:
    rows: list[Row]
    warehouse: Path
    report: Path


def compare(stage: Stage) -> Publication:
    """Publish the comparison as it stands now.

    Raises:
        UsageError: nothing was cleaned yet.
        WorkError: the data folder cannot be written; the last publication stays whole.
    """
    keep_predictions(stage)
    rows = comparison_rows(stage)
    tables = all_tables(stage.data, stage.experiments, rows)
    warehouse.publish(stage.data, tables)
    write_report(stage, rows, tables["evaluation_answers"].to_pylist())
    return Publication(rows, stage.data.warehouse, stage.data.report)


def lake_version(data: DataRoot) -> str:
    """Changes whenever something that a publication shows has changed: examples, attempts, evaluations, their states, calls."""
    watched = [
        data.clean / "current.json",
        data.journal,
        *data.cells.rglob("result.json"),
        *data.cells.rglob("state.json"),
        *(data.lake / "bit_widths").rglob("result.json"),
    ]
    return stable_hash(sorted([str(path), path.stat().st_mtime_ns] for path in watched if path.exists()))


def published_rows(data: DataRoot) -> list[Row]:
    """The published comparison, as anyone reads it."""
    with warehouse.connect(data) as db:
        result = db.execute("SELECT * FROM comparison")
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
