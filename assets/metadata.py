"""Readable metadata for the UI: tables, pictures, and escaped text from models."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from pipelines.compare import outside
from pipelines.compare.disturbed import MARK, is_marked, note
from pipelines.compare.show import escape_markdown, full_name
from pipelines.compare.table import disturbed
from pipelines.records.foreign_text import plain

Row = Mapping[str, Any]


def picture(png: bytes | None, alt: str) -> dict[str, dg.MetadataValue]:
    """A small inline PNG; empty if `png` is None."""
    if png is None:
        return {}
    return {alt: dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")}


def table(
    rows: Sequence[Row], columns: Sequence[str], *, limit: int = 400, headings: Mapping[str, str] | None = None
) -> dg.MetadataValue:
    """Rows as a Markdown table. Every value is escaped, since a model may have written it.

    Values from a disturbed speed measurement are marked, and a line below gives the cause.
    `headings` replaces the names of some columns.
    """
    titles = [(headings or {}).get(name, name) for name in columns]
    lines = [table_of(titles, [[_text(row, name, limit) for name in columns] for row in rows])]
    marked = [dict(row) for row in rows if any(is_marked(row, name) for name in columns)]
    below = note(marked, full_name)
    return dg.MetadataValue.md("\n".join([*lines, *(["", escape_markdown(plain(below, limit))] if below else [])]))


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of escaped texts."""
    lines = [" | ".join(headings), " | ".join(["---"] * len(headings)), *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _text(row: Row, name: str, limit: int) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    if name == "status" and outside.is_outside(dict(row)):
        return escape_markdown(f"{value}, {outside.MARK}")
    shown = f"{value:,.4g}" if isinstance(value, float) else plain(str(value), limit)
    return escape_markdown(f"{shown} {MARK}" if is_marked(row, name) else shown)


def speed_note(measured: Row, device: str | None) -> dict[str, dg.MetadataValue]:
    """A note on what disturbed the speed of a training run; empty if nothing did."""
    share = measured.get("other_cpu_pct")
    if not disturbed(share, device):
        return {}
    message = f"other programs used {share:.0f} % of the processors: train again on a quiet machine"
    return {"speed disturbed": dg.MetadataValue.text(message)}


def numbers(measured: Row, plotted: Sequence[str]) -> dict[str, dg.MetadataValue]:
    """The measurements: `plotted` as separate entries, which Dagster plots over time, the rest in
    one table.

    The plot of a number that never changes would be useless.
    """
    entries: dict[str, dg.MetadataValue] = {}
    for name in plotted:
        value = measured.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            entries[name] = dg.MetadataValue.float(float(value))
    rest = [
        {"measured": name, "value": value}
        for name, value in measured.items()
        if name not in entries and value is not None
    ]
    return {**entries, "also measured": table(rest, ["measured", "value"])}
