"""One check in a process of its own: passes its lines on, and ends it whether it cooperates or not.

A hanging kernel, a driver that kills the process, a check that waits for ever: each costs only that
check.
"""

import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO

from benchmarks.card.checks import Check
from benchmarks.card.verdicts import CheckResult, Line, parse
from pipelines.lake.paths import PROJECT
from pipelines.runs.process import child_environment, stop_group

POLL_SECONDS = 0.05
# Time to read the pipe of an ended process; a process that it left behind may hold the pipe open
DRAIN_SECONDS = 1.0
# Characters of the log that an error quotes
TAIL = 400


def run(check: Check, work: Path, *, limit: float, log: Path, dry: bool) -> Generator[Line, None, CheckResult]:
    """Start the check, yield its lines, and return its result.

    `limit` seconds after its start the process is killed with all its descendants. Its standard
    error goes to `log`. `work` is the folder that the checks of a run share.
    """
    began = time.monotonic()
    arguments = [check.runs, str(work), f"--seconds={limit}", *(["--dry"] if dry else [])]
    with log.open("w", encoding="utf-8") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.card.child", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log_file, encoding="utf-8", errors="replace",
            env=child_environment({"HF_HUB_OFFLINE": "1"}), cwd=PROJECT, start_new_session=True,
        )  # fmt: skip
    findings: dict[str, Line] = {}
    error = None
    try:
        for line in _lines(process, deadline=began + limit):
            if "finding" in line:
                findings[line["finding"]] = line
            yield line
        error = _error(process.poll(), log, limit)
    finally:
        stop_group(process)
    return CheckResult(check, findings, time.monotonic() - began, error)


def _lines(process: subprocess.Popen[str], *, deadline: float) -> Generator[Line, None, None]:
    """The lines that the process prints, until it has ended or the time is over."""
    assert process.stdout
    lines: Queue[str | None] = Queue()
    Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    while True:
        try:
            text = lines.get(timeout=POLL_SECONDS)
        except Empty:
            if process.poll() is not None:
                deadline = min(deadline, time.monotonic() + DRAIN_SECONDS)
            if time.monotonic() >= deadline:
                return
            continue
        # Everything is read; the process may take a moment to end, or hang
        if text is None:
            _wait(process, deadline)
            return
        if line := parse(text):
            yield line


def _read(pipe: IO[str], lines: Queue[str | None]) -> None:
    for text in pipe:
        lines.put(text)
    lines.put(None)


def _wait(process: subprocess.Popen[str], deadline: float) -> None:
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return


def _error(code: int | None, log: Path, limit: float) -> str | None:
    """A message about a process that did not end well; `code` is None where it had to be killed."""
    if code == 0:
        return None
    message = " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])[-TAIL:]
    how = f"killed at its limit of {limit:.0f} s" if code is None else _ended(code)
    return f"{how}: {message}" if message else how


def _ended(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"
