"""The nights as rows, from data/lake/nights. Files may be old or incomplete."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.compare.columns.nights import NIGHTS
from pipelines.errors import WorkError
from pipelines.lake.files import read_json
from pipelines.lake.paths import DataRoot
from pipelines.nightly.night import NO_DATA, asked_cells

Row = dict[str, Any]


def night_rows(data: DataRoot) -> list[Row]:
    """The rows of the table `nights`, oldest first. An unreadable file becomes a row that says
    so."""
    files = sorted((data.lake / "nights").glob("*.json"))
    return [NIGHTS.empty() | {"night": file.stem} | _row(file, is_newest=file == files[-1]) for file in files]


def _row(file: Path, *, is_newest: bool) -> Row:
    try:
        return _columns(read_json(file) or {}, is_newest=is_newest)
    except (WorkError, ValueError, TypeError, KeyError, AttributeError):
        return {"outcome": "unreadable", "reason": f"{file.name} is not the record of a night"}


def _columns(record: Mapping[str, Any], *, is_newest: bool) -> Row:
    """The columns from a night's record. Before it has published, a night has no end, only the
    time its cells were done."""
    started, ended = _time(record["started_at"]), _time(record.get("ended_at") or record.get("done_at"))
    statuses, cell_count = record.get("outcome"), len(asked_cells(record))
    good = None if statuses is None else sum(set(seeds) == {"ok"} for seeds in statuses.values())
    runs = record.get("runs")
    return {
        "started_at": started and started.isoformat(),
        "ended_at": ended and ended.isoformat(),
        "minutes": (ended - started).total_seconds() / 60 if started and ended else None,
        "spent_usd": None if record.get("spent_usd") is None else float(record["spent_usd"]),
        "cells": cell_count,
        "cells_ok": good,
        "cells_not_ok": None if good is None else cell_count - good,
        "outcome": _outcome(record, good == cell_count, is_newest=is_newest),
        "reason": record.get("why"),
        "run_ids": json.dumps([str(run) for run in runs]) if runs else None,
    }


def _time(text: str | None) -> datetime | None:
    """The time as written, in UTC if it names no zone; None if there is no text."""
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _outcome(record: Mapping[str, Any], all_ok: bool, *, is_newest: bool) -> str:
    """How the night ended. Only one night runs at a time, so an unfinished night that is not the
    newest was abandoned."""
    if record.get("why") is None:
        return "under way" if is_newest else "abandoned"
    if record["why"].startswith(NO_DATA):
        return "failed"
    return "ok" if all_ok else "not ok"
