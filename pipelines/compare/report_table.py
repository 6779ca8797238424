"""The report's table: the columns it can show, those it shows at first, and the columns that
filter its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.configured import BENCHMARKS, METRICS, comparison_of, shares_of
from pipelines.compare.show import SHOWN, row_text
from pipelines.lake.schema import Column

Row = dict[str, Any]
FILTERS = ("model", "method", "status")
# Columns that fit a window of 1,440 pixels. Model and method are in the row's heading; staleness is
# beside the advice.
USUAL = COMPARISON.pick(
    "status", "eval_bits_per_byte", "base_bits_per_byte", "delta_base", "delta_base_low", "delta_base_high", "rates", "chrf",
    "peak_memory_gb", "estimated_memory_gb", "memory_vs_full", "train_seconds", "speedup_vs_full", "tokens_per_second", "is_pareto",
)  # fmt: skip
# Shown as text below the row, so these have no column of their own.
IN_LINE = ("advice", "status_detail", "stale_because", "ratios_because")
CELL_CHARS = 120


@dataclass(frozen=True)
class ReportTable:
    """The columns of the report's table and its filters.

    `columns` are in order, the usual ones first. `usual` names the columns shown at first. `groups`
    holds all selectable columns by subject. `empty` counts the columns left out because no row has
    a value in them.
    """

    columns: Sequence[Column]
    usual: frozenset[str]
    groups: Mapping[str, Sequence[Column]]
    empty: int
    filters: Mapping[str, Sequence[str]]


def report_table(rows: Sequence[Row]) -> ReportTable:
    """The table for the rows of the comparison."""
    published = rows[0] if rows else COMPARISON.empty()
    usual = [*USUAL, *shares_of(published, METRICS), *shares_of(published, BENCHMARKS)]
    first = {column.name for column in (*usual, *SHOWN)}
    others = [column for column in comparison_of(published).columns if column.name not in (*first, *IN_LINE)]
    known = [column for column in others if any(row.get(column.name) is not None for row in rows)]
    columns = [*usual, *(column for column in SHOWN if column not in usual), *known]
    by_group: dict[str, list[Column]] = {}
    for column in columns:
        by_group.setdefault(column.group, []).append(column)
    return ReportTable(
        columns=columns,
        usual=frozenset(column.name for column in usual),
        groups=by_group,
        empty=len(others) - len(known),
        filters={name: list(dict.fromkeys(row[name] for row in rows)) for name in FILTERS},
    )


def value_text(row: Row, column: Column) -> str:
    """A value as people read it; a time is in UTC, to the minute."""
    value = row[column.name]
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return row_text(row, column, CELL_CHARS)


def below(row: Row) -> list[tuple[str, str]]:
    """The texts below a row's numbers as (kind, text), where kind is advice, note or bad."""
    notes = [("advice", row["advice"])] if row["advice"] else []
    if row["status_detail"] and row["status"] != "ok":
        notes.append(("note", f"({row['status_detail']})"))
    if row["ratios_because"] and not row["memory_vs_full"]:
        notes.append(("note", f"(no ratio to full: {row['ratios_because']})"))
    elif row["ratios_because"] and not row["speed_disturbed"]:
        notes.append(("note", f"(no ratio of speeds; {row['ratios_because']})"))
    if row["stale_because"]:
        notes.append(("bad", f"stale: {row['stale_because']} changed"))
    return notes
