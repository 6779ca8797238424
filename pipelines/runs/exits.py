"""The meaning of a child's ending: its status, and a sentence on it."""

import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.hardware.machine import is_card
from pipelines.lake import disk
from pipelines.lake.files import read_json, read_object
from pipelines.runs.command import Ending
from pipelines.runs.spec import CHILD, RunSpec
from pipelines.runs.status import RANKS, Status

# Signals with which a process ends itself.
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
# A crash above this share of the memory budget counts as out of memory; our last sample predates
# the fatal allocation.
OOM_BUDGET_SHARE = 0.8
# bitsandbytes prints this when a CUDA call fails, and ends the process with exit code 1.
BNB_OUT_OF_MEMORY = re.compile(r"Error out of memory at line \d+ in file .*")
# The line in log.txt that separates the output of two processes of one attempt (fitting.py).
RETRY_MARK = "once more with"
# Statuses that follow from the reason of an ending alone.
STATUS_OF_REASON: dict[str | None, Status] = {"node_lost": "killed", "unreachable": "killed", "refused": "unavailable"}
# Fields of a child's report that make up its verdict.
VERDICT_FIELDS = ("status", "detail", "bytes_requested", "bytes_needed", "bytes_available")
Verdict = tuple[Status, str | None]


def child_report(folder: Path) -> dict[str, Any]:
    """The child's report. If the first of several processes left no verdict, that of another one
    takes its place."""
    report = {"phase": "load", "measured": {}, **read_object(folder / CHILD)}
    if report.get("status"):
        return report
    others = [read_json(path) or {} for path in sorted(folder.glob("rank-*.json"))]
    verdict = next((other for other in others if other.get("status") not in (None, "ok")), {})
    return {**report, **{name: verdict[name] for name in VERDICT_FIELDS if name in verdict}}


def classify_exit(ending: Ending, report: Mapping[str, Any], spec: RunSpec, folder: Path) -> Verdict:
    """The status of an ending and a sentence on it, from the ending, the child's `report` and the
    files in its folder.

    A SIGKILL counts as out of memory only with evidence.
    """
    if ending.reason in STATUS_OF_REASON:
        return STATUS_OF_REASON[ending.reason], ending.detail
    if ending.reason == "memory_budget":
        budget, devices = spec.memory_budget_gb, spec.devices
        share = f"{devices} × {budget:g}" if devices > 1 else f"{budget:g}"
        return "out_of_memory", f"used {ending.peak_bytes / 1e9:.2f} GB of a budget of {share} GB and was stopped"
    if ending.reason == "time_limit":
        detail = f"stopped after {ending.seconds / 60:.1f} minutes; time_limit_minutes is the limit of one attempt"
        return "timed_out", ending.detail or detail
    if report.get("status"):
        return report["status"], report.get("detail")
    if ending.reason == "interrupted":
        return "killed", ending.detail
    return _without_a_word(ending, report, spec, folder)


def _without_a_word(ending: Ending, report: Mapping[str, Any], spec: RunSpec, folder: Path) -> Verdict:
    """The verdict on a child that left none itself, from its exit code and its output."""
    first_rank = read_json(folder / RANKS)
    process = f"rank {first_rank['rank']}" if first_rank else "it"
    if ending.exit_code == -signal.SIGKILL and ending.kernel_oom_kill:
        return "out_of_memory", f"the kernel's out-of-memory killer ended {process} at {ending.peak_bytes / 1e9:.2f} GB"
    if -ending.exit_code in CRASHES:
        return _crashed(ending, process, spec, on_card=is_card(report.get("device")))
    if ending.exit_code < 0:
        name = _signal_name(-ending.exit_code)
        return (
            "killed",
            f"{process} was ended by {name} from outside" if first_rank else f"ended by {name} from outside",
        )
    if ending.exit_code == disk.EXIT_CODE:
        return "failed", str(disk.DiskFullError("the cell's own report", folder, None))
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").rpartition(RETRY_MARK)[2]
    prefix = f"{process}: " if first_rank else ""
    if ending.exit_code == 1 and (printed := BNB_OUT_OF_MEMORY.search(log)):
        return "out_of_memory", f"{prefix}bitsandbytes: {printed.group()}"
    last = " | ".join(log.splitlines()[-4:])
    return "failed", f"{prefix}exit code {ending.exit_code}: {last[-800:] or 'it printed nothing'}"


def _crashed(ending: Ending, whom: str, spec: RunSpec, *, on_card: bool) -> Verdict:
    """The verdict on a crash. A library may crash when it gets no memory, so a crash close to the
    budget counts as out of memory.

    This does not hold on a GPU, because its budget is not one of the memory measured here.
    """
    name, budget = _signal_name(-ending.exit_code), spec.memory_budget_gb
    requested = max(ending.peak_bytes, ending.asked_bytes) / 1e9 / spec.devices
    if budget and not on_card and requested > OOM_BUDGET_SHARE * budget:
        detail = f"{whom} crashed ({name}) when it had asked for {requested:.2f} GB of a budget of {budget:g} GB"
        return "out_of_memory", detail
    return "killed", f"{whom} crashed ({name})"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
