"""When, and from which data and code, a comparison was published: for the report's head and the
table's metadata."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.compare.outside import of_profile
from pipelines.settings.judging import is_teacher

Row = dict[str, Any]
# Values of one kind that are named; the others are counted.
MAX_VALUES = 3
HASH_CHARS = 12


def stamp(rows: Sequence[Row], profile: str, published: datetime) -> dict[str, str]:
    """Label → text for the cells among the rows of the comparison, without teachers. `published`
    has a time zone.

    The hashes are taken from the rows, so a row of older data or code shows its own.
    """
    rows = [row for row in rows if not is_teacher(row["method"])]
    named = of_profile(rows)
    stale, outside = sum(bool(row["is_stale"]) for row in named), len(rows) - len(named)
    return {
        "published": moment(published),
        "profile": profile,
        "device": _values(rows, "device"),
        "training records": _values(rows, "train_records"),
        "evaluation records": _values(rows, "eval_records"),
        "data fingerprint": _values(rows, "data_fingerprint"),
        "code version": _values(rows, "code_version"),
        "cells": f"{len(named)}, {sum(row['status'] == 'ok' for row in named)} ok"
        + (f", {stale} stale" if stale else "")
        + (f", {outside} outside the profile" if outside else ""),
    }


def moment(when: datetime) -> str:
    """`2026-11-30 18:10 UTC`, followed by the local time if it differs, such as
    `(2026-12-01 03:10 KST)`."""
    own, utc = when.astimezone(), when.astimezone(UTC)
    text = f"{utc:%Y-%m-%d %H:%M} UTC"
    return text if own.utcoffset() == utc.utcoffset() else f"{text} ({own:%Y-%m-%d %H:%M %Z})"


def _values(rows: Sequence[Row], column: str) -> str:
    """The distinct values of a column in the order of the rows, hashes shortened; – if no row
    has one."""
    values = list(dict.fromkeys(_text(row[column]) for row in rows if row[column] is not None))
    more = len(values) - MAX_VALUES
    return ", ".join(values[:MAX_VALUES]) + (f" and {more} more" if more > 0 else "") or "–"


def _text(value: Any) -> str:
    if isinstance(value, str):
        is_hash = len(value) > HASH_CHARS and all(sign in "0123456789abcdef" for sign in value)
        return value[:HASH_CHARS] if is_hash else value
    return f"{value:,.0f}"
