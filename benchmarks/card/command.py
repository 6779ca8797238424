"""`python -m benchmarks card`: the checks one after another, or the grid, within one limit.

Exit code 0: every started check ran to its end, whatever its findings. 2: wrong arguments. 3: there
is no card, or a check failed. 130: the run was interrupted; it still prints the summary.
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
from benchmarks.card.verdicts import CheckResult, Line

SECONDS, GRID_SECONDS = 540.0, 3600.0
LOOK = Check("device", "benchmarks.card.bench:look", 90, "which card this is")
GRID = Check("grid", "benchmarks.card.grid:check", GRID_SECONDS, "the grid of profile gpu, 12 steps a cell, and TRL")
# A check starts only if this share of its limit is left
AT_LEAST = 0.5
# Exit code of an interrupted run
INTERRUPTED = 130
# Seconds reserved at the end to kill processes, remove weights and print the summary
LAST = 5.0


class Report:
    """Writes each line at once to standard output and, with an output folder, to its
    results.jsonl."""

    def __init__(self, device: str, file: TextIO | None) -> None:
        self.device, self._file = device, file

    def line(self, line: Line, *, check: str | None = None) -> None:
        header = {"benchmark": "card", **({"check": check} if check else {}), "device": self.device}
        text = json.dumps({**header, **line}, ensure_ascii=False)
        for stream in (sys.stdout, self._file):
            if stream:
                print(text, file=stream, flush=True)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m benchmarks card", description=__doc__)
    result.add_argument("--list", action="store_true", help="list the checks and their expectations; runs nothing")
    result.add_argument(
        "--only", metavar="NAME[,NAME]", help="only these checks; with --grid only these models and methods"
    )
    result.add_argument(
        "--seconds", type=float, help=f"of the whole run: {SECONDS:.0f}, with --grid {GRID_SECONDS:.0f}"
    )
    result.add_argument("--out", type=Path, metavar="FOLDER", help="keep the lines and the checks' logs there, too")
    result.add_argument("--grid", action="store_true", help="train the grid of profile gpu instead")
    result.add_argument(
        "--dry", action="store_true", help="try the program on the CPU with tiny shapes; no figure counts"
    )
    return result


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        checks = _chosen(options)
    except ValueError as error:
        print(f"--only: {error}", file=sys.stderr)
        return 2
    if options.list:
        for check in checks:
            print(json.dumps(_listed(check), ensure_ascii=False))
        return 0
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="featherweight-card-")))
        (work / "weights").mkdir()
        out, file = options.out or work, None
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((options.out / "results.jsonl").open("w", encoding="utf-8"))
        ends = time.monotonic() + (options.seconds or (GRID_SECONDS if options.grid else SECONDS)) - LAST
        device = DRY if options.dry else _card(work, out)
        if device is None:
            return 3
        if options.grid and options.only:
            (work / GRID_ONLY).write_text(options.only, encoding="utf-8")
        return run(checks, Report(device, file), work, out, ends=ends, dry=options.dry)


def _chosen(options: argparse.Namespace) -> list[Check]:
    """The selected checks.

    Raises:
        ValueError: an unknown name.
    """
    if not options.grid:
        return named(options.only)
    if options.only:
        # Slow to import, and needed here only to check the names
        from benchmarks.card import grid

        grid.names(options.only)
    return [GRID]


def _listed(check: Check) -> Line:
    return {"check": check.name, "seconds": check.seconds, "asks": check.asks, "expects": list(check.expects.values())}


def _card(work: Path, out: Path) -> str | None:
    """The card's name. If PyTorch can use no card, prints a line that says so and returns None."""
    lines, result = _all(runner.run(LOOK, work, limit=LOOK.seconds, log=out / "device.log", dry=False))
    device: dict[str, Any] = lines[0]["found"] if lines else {"name": None, "error": result.error}
    if device["name"]:
        return device["name"]
    details = {name: value for name, value in device.items() if name != "name"}
    why = "PyTorch sees no CUDA card; --dry tries the program on the CPU"
    print(json.dumps({"benchmark": "card", "device": None, "detail": why, **details}, ensure_ascii=False), flush=True)
    return None


def _all(generator: Any) -> tuple[list[Line], CheckResult]:
    """The lines that a generator yields, and its return value."""
    lines = []
    while True:
        try:
            lines.append(next(generator))
        except StopIteration as end:
            return lines, end.value


def run(checks: Sequence[Check], report: Report, work: Path, out: Path, *, ends: float, dry: bool) -> int:
    """Run `checks` until `ends` (of `time.monotonic`), then report the summary; returns the exit
    code."""
    began, interrupted = time.monotonic(), False
    results: list[CheckResult] = []
    try:
        for check in checks:
            results.append(_run_one(check, report, work, out, ends=ends, dry=dry))
    # Also raised on SIGTERM
    except KeyboardInterrupt:
        interrupted = True
        results += [CheckResult(check, why="interrupted") for check in checks[len(results) :]]
    report.line(verdicts.summary(results, seconds=time.monotonic() - began))
    if interrupted:
        return INTERRUPTED
    return 3 if any(one.verdict == "failed" for one in results) else 0


def _run_one(check: Check, report: Report, work: Path, out: Path, *, ends: float, dry: bool) -> CheckResult:
    left = ends - time.monotonic()
    if left < AT_LEAST * check.seconds and check is not GRID:
        why = f"{max(0.0, left):.0f} s of the run are left; the check has a limit of {check.seconds:.0f}"
        report.line({"verdict": "not run", "why": why}, check=check.name)
        return CheckResult(check, why=why)
    # A dry run measures nothing, and may share its CPU with others
    limit = left if dry or check is GRID else min(left, check.seconds)
    lines = runner.run(check, work, limit=limit, log=out / f"{check.name}.log", dry=dry)
    while True:
        try:
            report.line(next(lines), check=check.name)
        except StopIteration as end:
            result: CheckResult = end.value
            break
    report.line({"verdict": result.verdict, **({"error": result.error} if result.error else {})}, check=check.name)
    return result
