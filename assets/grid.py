"""The grid of cells: methods down, models across. A cell shows its status, bits per byte and GB,
and links to its page."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg

from pipelines.compare.outside import MARK, is_outside
from pipelines.compare.outside_cells import cells_outside
from pipelines.compare.show import escape_markdown
from pipelines.compare.table import worst
from pipelines.project import Project
from pipelines.records.foreign_text import plain
from pipelines.runs.cells import CellKey, latest
from pipelines.settings.judging import TEACHER

# Models side by side: a page of 1,440 pixels shows this many without scrolling.
MAX_MODELS = 4
# Dagster hides a text of this many characters behind a click.
INLINE_CHARS = 1000
# Up to this many inline tables are better than one table behind a click.
MAX_INLINE_TABLES = 4
LEGEND = "Status, bits per byte (lower is better), peak memory; a status links to the cell's page."
ABSENT = "–"
Row = dict[str, Any]


def grid_of(rows: Sequence[Row]) -> dict[str, dg.MetadataValue]:
    """The cells of `rows` as tables of at most four models.

    A row has model, method and status; is_stale, eval_bits_per_byte and peak_memory_gb if known.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    tables = {}
    for start in range(0, len(models), MAX_MODELS):
        shown = models[start : start + MAX_MODELS]
        name = (
            "grid"
            if len(models) <= MAX_MODELS
            else f"grid, models {start + 1} to {start + len(shown)} of {len(models)}"
        )
        parts = _tables(rows, shown)
        for number, part in enumerate(parts, 1):
            tables[f"{name} ({number})" if len(parts) > 1 else name] = dg.MetadataValue.md(part)
    return tables


def newest_rows(project: Project) -> list[dict[str, Any]]:
    """The current cells of the lake: those of the profile, then those outside it.

    Several seeds give the worst status and the means of the measurements. This is cheaper than the
    comparison, but does not know which cells are stale.
    """
    seeds = project.settings.seeds
    named = {cell: [CellKey(*cell, seed) for seed in seeds] for cell in project.grid}
    outside = [{**_newest(project, keys), "outside_profile": True} for keys in cells_outside(project).values()]
    return [*(_newest(project, keys) for keys in named.values()), *outside]


def _newest(project: Project, keys: Sequence[CellKey]) -> Row:
    attempts = [attempt for key in keys if (attempt := latest(project.data, key))]
    good = [attempt for attempt in attempts if attempt.status == "ok"]
    evaluated = [ok[-1] for attempt in good if (ok := [one for one in attempt.evaluations() if one.ok])]
    return {
        "model": keys[0].model,
        "method": keys[0].method,
        "status": worst([attempt.status for attempt in attempts] + ["missing"] * (len(keys) - len(attempts))),
        "eval_bits_per_byte": _mean([one.result.measured.get("eval_bits_per_byte") for one in evaluated]),
        "peak_memory_gb": _mean([attempt.result.measured.get("peak_memory_gb") for attempt in good]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _tables(rows: Sequence[Row], models: Sequence[str]) -> list[str]:
    """The cells of `models` as inline tables, or as one table behind a click if there would be too
    many."""
    cells = {(row["model"], row["method"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows if row["model"] in models))
    heading = f"| method | {' | '.join(_escaped(model) for model in models)} |\n| --- |{' --- |' * len(models)}"
    lines = [
        f"| {_escaped(method)} | {' | '.join(_cell(cells.get((model, method))) for model in models)} |"
        for method in methods
    ]
    parts = [list[str]()]
    for line in lines:
        if parts[-1] and len(_rendered(heading, [*parts[-1], line])) >= INLINE_CHARS:
            parts.append([])
        parts[-1].append(line)
    return [_rendered(heading, part) for part in (parts if len(parts) <= MAX_INLINE_TABLES else [lines])]


def _rendered(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([heading, *lines, "", LEGEND])


def _cell(row: Row | None) -> str:
    if row is None:
        return ABSENT
    # A teacher is a provider and has no page.
    is_cell = row["method"].partition("+")[0] != TEACHER
    status = f"[{_escaped(row['status'])}]({_address(row)})" if is_cell else _escaped(row["status"])
    numbers = [
        MARK if is_outside(row) else None,
        "stale" if row.get("is_stale") else None,
        _number(row.get("eval_bits_per_byte"), ".3f", "bits/byte"),
        _number(row.get("peak_memory_gb"), ".2f", "GB"),
    ]
    return " · ".join(filter(None, [status, *numbers]))


def _address(row: Row) -> str:
    partition = quote(f"{row['method']}|{row['model']}", safe="")
    return f"/assets/trained_model?view=partitions&partition={partition}"


def _number(value: float | None, form: str, unit: str) -> str | None:
    return None if value is None else f"{value:{form}} {unit}"


def _escaped(text: str) -> str:
    return escape_markdown(plain(str(text), 80))
