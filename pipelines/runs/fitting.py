"""Micro-batches that fit: a child that runs out of memory in its trial steps starts again with
smaller ones.

The child reports the next smaller size beforehand (`SMALLER`, if its recipe has `fit_micro_batch`),
because it knows its examples. Its memory ends with its process, so the next child measures its own
peak. All children together are one attempt with one row.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.lake.files import write_json
from pipelines.runs.command import CellCommand, Ending, Starter
from pipelines.runs.exits import RETRY_MARK, child_report, classify_exit
from pipelines.runs.spec import CHILD, RunSpec
from pipelines.runs.status import FIT, RANKS, SMALLER, Status
from pipelines.runs.watchdog import run_to_end

TOKENS = "micro_batch_tokens"
ONE_ROW = "one row of the longest example does not fit"
# What remains of a used-up time limit: the next child is then stopped at once.
MIN_SECONDS = 1e-3


def run_fitted(
    launcher: Starter, command: CellCommand, spec: RunSpec, *, on_tick: Callable[[], None], say: Callable[[str], None]
) -> Ending:
    """Repeat `run_to_end` while the child runs out of memory in its trial steps and has smaller
    micro-batches to try.

    The time limit holds for all of them together. A kill between two children leaves an attempt
    without a result, like any other kill.
    """
    started, remaining = time.monotonic(), command
    ending = run_to_end(launcher, remaining, on_tick=on_tick)
    while (tokens := _smaller(ending, spec, command.folder)) is not None:
        _prepare_retry(command.folder, tokens, say)
        if command.time_limit:
            seconds = command.time_limit - (time.monotonic() - started)
            remaining = replace(command, time_limit=max(MIN_SECONDS, seconds))
        ending = replace(run_to_end(launcher, remaining, on_tick=on_tick), seconds=time.monotonic() - started)
    return ending


def _smaller(ending: Ending, spec: RunSpec, folder: Path) -> int | None:
    """The smaller micro-batches to try, or None if there are none or none are needed."""
    report = child_report(folder)
    if report["phase"] != "probe" or report["measured"].get(SMALLER) is None:
        return None
    status, _ = classify_exit(ending, report, spec, folder)
    return report["measured"][SMALLER] if status == "out_of_memory" else None


def _prepare_retry(folder: Path, tokens: int, say: Callable[[str], None]) -> None:
    """Make the next child use micro-batches of `tokens`, and clear the verdicts of the last one."""
    before = child_report(folder)["measured"].get(TOKENS)
    message = f"out of memory with {TOKENS} {before}: {RETRY_MARK} {tokens}"
    say(message)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        print(message, file=log)
    write_json(folder / FIT, {TOKENS: tokens})
    write_json(folder / CHILD, {"phase": "load", "measured": {TOKENS: tokens}})
    for verdict in (folder / RANKS, *folder.glob("rank-*.json")):
        # Emptied, not removed: a storage that mirrors the folder does not mirror removals.
        if verdict.exists():
            write_json(verdict, {})


def in_words(status: Status, spec: RunSpec, report: Mapping[str, Any]) -> str | None:
    """A note on the micro-batches of the run: whether they were halved, or too large at their
    smallest. Else None."""
    requested, used = spec.recipe.get(TOKENS), report["measured"].get(TOKENS)
    note = f"{TOKENS} was halved from {requested} to {used}" if used and requested != used else None
    is_least = SMALLER in report["measured"] and report["measured"][SMALLER] is None
    if is_least and status == "out_of_memory" and report["phase"] == "probe":
        return f"{note}: {ONE_ROW}" if note else ONE_ROW
    return note
