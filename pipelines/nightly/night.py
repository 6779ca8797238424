"""A night: its record in the lake, its spending, its next step. `data/lake/nights/<night>.json` has
what it did and why.

A night proceeds in steps. Any process can take the next step, even after a crash, because each step
is decided from the current state alone.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pipelines.choices import hours_of_cells
from pipelines.errors import UsageError
from pipelines.generate.journal import opened
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import DataRoot
from pipelines.nightly.due import Due, due_cells
from pipelines.project import Project
from pipelines.runs import cells
from pipelines.runs.clock import now
from pipelines.settings.nightly import Nightly

# Tries of making the data, and of publishing. Another try helps after a kill, but not after a
# failed check.
TRIES = 2
# A correction of the clock by less than this does not distort a night.
AHEAD_HOURS = 0.25
NO_DATA = "the data could not be made"
# After this time without any step, the night counts as abandoned.
ABANDONED = timedelta(hours=2)


@dataclass(frozen=True)
class Done:
    """The work of a night so far.

    `data` and `publish`: whether each try succeeded, oldest first. `asked`: names of `Due`.
    """

    data: Sequence[bool] = ()
    publish: Sequence[bool] = ()
    asked: Collection[str] = ()


@dataclass(frozen=True)
class Step:
    """The next step: make the data, bring `cells` up to date, publish, or end."""

    do: Literal["data", "cells", "publish", "end"]
    cells: list[Due] = field(default_factory=list)
    why: str = ""


def begin(data: DataRoot, night: str) -> dict[str, Any]:
    """The night's record, created if it is new."""
    path = _file(data, night)
    if record := read_json(path):
        return record
    record = {"night": night, "started_at": now(), "ended_at": None, "rounds": []}
    write_json(path, record)
    return record


def has_ended(data: DataRoot, night: str) -> bool:
    return bool((read_json(_file(data, night)) or {}).get("ended_at"))


def is_under_way(data: DataRoot, night: str, last_sign: datetime) -> bool:
    """Whether the night goes on: it has not ended, and `last_sign` of it is less than ABANDONED
    away.

    A sign from hours ahead comes from a clock that was wrong.
    """
    return not has_ended(data, night) and abs(_now() - last_sign) < ABANDONED


def next_step(project: Project, nightly: Nightly, night: str, done: Done) -> Step:
    """The next step. The order is: the data, due cells, cells that are due only for their speed,
    one publication, the end.

    A cell is requested only once in the same state.
    """
    record = begin(project.data, night)
    if not any(done.data):
        if len(done.data) < TRIES:
            return Step("data")
        return Step("end", why=f"{NO_DATA}: no cell ran on the earlier data")
    limit = limit_reached(project, nightly, record["started_at"])
    due = [cell for cell in due_cells(project.resolve()) if cell.name not in done.asked]
    if due and not limit:
        return Step("cells", [cell for cell in due if not cell.retimes] or due)
    left = f"; {len(due)} cells are left for the next night" if due else ""
    why = f"{limit or 'all that was due is done'}{left}"
    return Step("publish" if not any(done.publish) and len(done.publish) < TRIES else "end", why=why)


def limit_reached(project: Project, nightly: Nightly, started_at: str) -> str | None:
    """Why the night that began at `started_at` may start no further cell; None while it may."""
    hours = (_now() - datetime.fromisoformat(started_at)).total_seconds() / 3600
    if hours < -AHEAD_HOURS:
        return f"the night began at {started_at}, which is ahead of the clock now: its spending since then is unknown"
    if nightly.max_hours is not None and hours >= nightly.max_hours:
        return f"nightly.max_hours: {nightly.max_hours:g} hours are over"
    left = money_left(project, nightly, started_at)
    if left is not None and left <= 0 and _costs(project):
        return f"nightly.budget_usd: ${nightly.budget_usd:g} are spent"
    return None


def money_left(project: Project, nightly: Nightly, started_at: str) -> float | None:
    """Dollars that the night may still spend; None without a budget."""
    return None if nightly.budget_usd is None else nightly.budget_usd - spent_usd(project, started_at)


def spent_usd(project: Project, since: str) -> float:
    """Dollars for LLM calls since `since`, and for training and evaluation at the profile's
    price_per_hour."""
    calls = 0.0
    if project.data.journal.exists():
        with opened(project.data.journal) as journal:
            calls = journal.charged_since(since)
    price = project.settings.price_per_hour or 0.0
    return calls + price * hours_of_cells(project.data, since) if price else calls


def _costs(project: Project) -> bool:
    return bool(project.settings.price_per_hour)


def note_round(data: DataRoot, night: str, due: Sequence[Due]) -> None:
    """Add the requested cells and their reasons to the record."""
    record = begin(data, night)
    entries = [{**asdict(cell), "because": {str(k): v for k, v in cell.because.items()}} for cell in due]
    for cell in entries:
        cell["seen"] = {str(seed): run for seed, run in cell["seen"].items()}
    rounds = [*record["rounds"], {"at": now(), "cells": entries}]
    write_json(_file(data, night), {**record, "rounds": rounds})


def note_runs(data: DataRoot, night: str, runs: Sequence[str]) -> None:
    """Add the ids of the night's runs to the record, each once."""
    record = begin(data, night)
    known = list(record.get("runs", ()))
    if new := [run for run in runs if run not in known]:
        write_json(_file(data, night), {**record, "runs": [*known, *new]})


def note_done(project: Project, night: str, why: str) -> dict[str, Any]:
    """Write the night's cost and the outcome of its cells, before the publication that shows them.

    Returns the record.
    """
    record = begin(project.data, night)
    outcome = {f"{model} × {method}": _statuses(project, model, method) for model, method in asked_cells(record)}
    spent = spent_usd(project, record["started_at"])
    record |= {"done_at": now(), "why": why, "spent_usd": spent, "outcome": outcome}
    write_json(_file(project.data, night), record)
    return record


def end(project: Project, night: str, why: str) -> dict[str, Any]:
    """Write and return the night's final record, with its cost and its cells' outcome."""
    record = note_done(project, night, why) | {"ended_at": now()}
    write_json(_file(project.data, night), record)
    return record


def asked_cells(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The requested cells in a night's record, as (model, method)."""
    return sorted({(cell["model"], cell["method"]) for one in record["rounds"] for cell in one["cells"]})


def _statuses(project: Project, model: str, method: str) -> list[str]:
    """The status of each seed of the cell, with its evaluation and a failed re-timing."""
    keys = [cells.CellKey(model, method, seed) for seed in project.settings.seeds]
    attempts = [
        (attempt, cells.failed_retiming(project.data, key))
        for key in keys
        if (attempt := cells.latest(project.data, key))
    ]
    return [
        f"{_status(one)} (not timed again: {failed.status})" if failed else _status(one) for one, failed in attempts
    ]


def _status(attempt: cells.Attempt) -> str:
    evaluations = attempt.evaluations() if attempt.status == "ok" else []
    if evaluations and not evaluations[-1].ok:
        return f"{evaluations[-1].result.status} (evaluation)"
    return attempt.status


def in_words(record: dict[str, Any]) -> str:
    """The night in one sentence."""
    bad = [f"{cell} {status}" for cell, statuses in record["outcome"].items() for status in statuses if status != "ok"]
    count = f"{len(record['outcome'])} cells were due" if record["outcome"] else "no cell was due"
    ends = f"; not ok: {', '.join(bad)}" if bad else ""
    return f"night {record['night']}: {count}, ${record['spent_usd']:.4f} spent{ends}; {record['why']}"


def _file(data: DataRoot, night: str) -> Path:
    if not re.fullmatch(r"[0-9A-Za-z:_-]+", night):
        raise UsageError(f"night is {night!r}; expected letters, digits, - and :, as the nightly names its nights")
    return data.lake / "nights" / f"{night}.json"


def _now() -> datetime:
    return datetime.now(UTC)
