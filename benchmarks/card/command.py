"""`python -m benchmarks card`: the checks one after another, or the grid, within one limit.

Exit code 0: all that was begun ran to its end, whatever it showed. 2: wrong arguments. 3: there is no card, or a check failed. 130:
it was interrupted; the summary is there all the same.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from benchmarks.card import runner, verdicts
from benchmarks.card.bench import DRY
from benchmarks.card.checks import GRID_ONLY, Check, named
from benchmarks.card.verdicts import Line, Seen

SECONDS, GRID_SECONDS = 540.0, 3600.0
LOOK = Check("device", "benchmarks.card.bench:look", 90, "which card this is")
GRID = Check("grid", "benchmarks.card.grid:check", GRID_SECONDS, "the grid of profile gpu, 12 steps a cell, and TRL")
AT_LEAST = 0.5  # of its limit must be left, or a check is not begun
INTERRUPTED = 130  # the exit code
LAST = 5.0  # seconds that a run keeps for killing, for removing its weights and for the summary


class Report:
    """Lines to standard output and, where a folder is given, into its results.jsonl, each as it comes."""

    def __init__(self, device: str, file: TextIO | None) -> None:
        self.device, self._file = device, file

    def line(self, found: Line, *, check: str | None = None) -> None:
        named = {"benchmark": "card", **({"check": check} if check else {}), "device": self.device}
        text = json.dumps({**named, **found}, ensure_ascii=False)
        for stream in (sys.stdout, self._file):
            if stream:
                print(text, file=stream, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks card", description=__doc__)
    made.add_argument("--list", action="store_true", help="what is checked and what is expected; runs nothing")
    made.add_argument("--only", metavar="NAME[,NAME]", help="these checks; with --grid these models and methods")
    made.add_argument("--seconds", type=float, help=f"of the whole run: {SECONDS:.0f}, with --grid {GRID_SECONDS:.0f}")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="keep the lines and the checks' logs there, too")
    made.add_argument("--grid", action="store_true", help="train the grid of profile gpu instead")
    made.add_argument(
        "--dry", action="store_true", help="try the program on the CPU with tiny shapes; no figure counts"
    )
    return made


def main(arguments: Sequence[str]) -> int:
    asked = parser().parse_args(arguments)
    try:
        checks = _chosen(asked)
    except ValueError as error:
        print(f"--only: {error}", file=sys.stderr)
        return 2
    if asked.list:
        for check in checks:
            print(json.dumps(_listed(check), ensure_ascii=False))
        return 0
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="featherweight-card-")))
        (work / "weights").mkdir()
        out, file = asked.out or work, None
        if asked.out:
            asked.out.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((asked.out / "results.jsonl").open("w", encoding="utf-8"))
        ends = time.monotonic() + (asked.seconds or (GRID_SECONDS if asked.grid else SECONDS)) - LAST
        device = DRY if asked.dry else _card(work, out)
        if device is None:
            return 3
        if asked.grid and asked.only:
            (work / GRID_ONLY).write_text(asked.only, encoding="utf-8")
        return run(checks, Report(device, file), work, out, ends=ends, dry=asked.dry)


def _chosen(asked: argparse.Namespace) -> list[Check]:
    """Raises ValueError for a name that nothing has."""
    if not asked.grid:
        return named(asked.only)
    if asked.only:
        from benchmarks.card import grid  # slow to import, and only here to check the names

        grid.names(asked.only)
    return [GRID]


def _listed(check: Check) -> Line:
    return {"check": check.name, "seconds": check.seconds, "asks": check.asks, "expects": list(check.expects.values())}


def _card(work: Path, out: Path) -> str | None:
    """The card's name; without one that PyTorch can use, a line that says so."""
    found, seen = _all(runner.run(LOOK, work, limit=LOOK.seconds, log=out / "device.log", dry=False))
    told: dict[str, Any] = found[0]["found"] if found else {"name": None, "error": seen.error}
    if told["name"]:
        return told["name"]
    said = {name: value for name, value in told.items() if name != "name"}
    why = "PyTorch sees no CUDA card; --dry tries the program on the CPU"
    print(json.dumps({"benchmark": "card", "device": None, "detail": why, **said}, ensure_ascii=False), flush=True)
    return None


def _all(lines: Any) -> tuple[list[Line], Seen]:
    """What a generator yields, and what it returns."""
    found = []
    while True:
        try:
            found.append(next(lines))
        except StopIteration as end:
            return found, end.value


def run(checks: Sequence[Check], report: Report, work: Path, out: Path, *, ends: float, dry: bool) -> int:
    """Run `checks` until `ends` (of `time.monotonic`), then say what all of them showed; returns the exit code."""
    began, interrupted = time.monotonic(), False
    seen: list[Seen] = []
    try:
        for check in checks:
            seen.append(_run_one(check, report, work, out, ends=ends, dry=dry))
    except KeyboardInterrupt:  # also SIGTERM
        interrupted = True
        seen += [Seen(check, why="interrupted") for check in checks[len(seen) :]]
    report.line(verdicts.summary(seen, seconds=time.monotonic() - began))
    if interrupted:
        return INTERRUPTED
    return 3 if any(one.verdict == "failed" for one in seen) else 0


def _run_one(check: Check, report: Report, work: Path, out: Path, *, ends: float, dry: bool) -> Seen:
    left = ends - time.monotonic()
    if left < AT_LEAST * check.seconds and check is not GRID:
        why = f"{max(0.0, left):.0f} s of the run are left, it has a limit of {check.seconds:.0f}"
        report.line({"verdict": "not run", "why": why}, check=check.name)
        return Seen(check, why=why)
    # a dry run measures nothing, and may share its CPU with others
    limit = left if dry or check is GRID else min(left, check.seconds)
    lines = runner.run(check, work, limit=limit, log=out / f"{check.name}.log", dry=dry)
    while True:
        try:
            report.line(next(lines), check=check.name)
        except StopIteration as end:
            seen: Seen = end.value
            break
    report.line({"verdict": seen.verdict, **({"error": seen.error} if seen.error else {})}, check=check.name)
    return seen
