"""Metadata that people read in the UI: tables, pictures, and model-written text that stays text."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from pipelines.compare.show import escape_markdown
from pipelines.foreign_text import plain

Row = Mapping[str, Any]


def picture(png: bytes | None, alt: str) -> dict[str, dg.MetadataValue]:
    """A small PNG shown in place; nothing where there is none."""
    if png is None:
        return {}
    return {alt: dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")}


def table(rows: Sequence[Row], columns: Sequence[str], *, limit: int = 400) -> dg.MetadataValue:
    """Rows as a Markdown table; every value is escaped, since a model may have written it."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_text(row.get(name), limit) for name in columns) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _text(value: Any, limit: int) -> str:
    if value is None:
        return "–"
    shown = f"{value:,.4g}" if isinstance(value, float) else plain(str(value), limit)
    return escape_markdown(shown)


def numbers(measured: Row) -> dict[str, dg.MetadataValue]:
    """Each measured number as a metadata entry of its own, so that Dagster plots it over time."""
    found = {}
    for name, value in measured.items():
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int):
            found[name] = dg.MetadataValue.int(value)
        elif isinstance(value, float):
            found[name] = dg.MetadataValue.float(value)
    return found
