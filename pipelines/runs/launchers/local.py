"""Start a cell's command, watch it, stop it, say how it ended. The local launcher is the first of a small family:
a cell is a command and a folder, so that torchrun or a Ray job can start the same one."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import psutil

from pipelines import machine
from pipelines.runs.process import spawn, stop_group

Reason = Literal["memory_budget", "time_limit", "interrupted", "node_lost", "unreachable", "refused"]
CANCEL_GRACE_SECONDS = 8.0  # whoever cancels wants the machine back: later than this only the last checkpoint is kept
GONE_SECONDS = 10.0  # for the kernel to take down what was killed
POLL_SECONDS = 0.05  # a watchdog this fast overshoots a memory budget by about 1 %


@dataclass(frozen=True)
class CellCommand:
    """`python ARGUMENTS`, its output in FOLDER/log.txt, under a memory budget (bytes, of all its processes) and a time limit
    (seconds). One that is stopped by the limit or from outside gets SIGTERM and `grace_seconds` to keep what it has done. On
    several `devices` it runs as so many processes, which find one another as torchrun's do."""

    arguments: Sequence[str]
    folder: Path
    env: Mapping[str, str]
    keep_open: Sequence[int] = ()
    memory_budget: int | None = None
    time_limit: float | None = None
    grace_seconds: float = 0
    devices: int = 1


@dataclass(frozen=True)
class Ending:
    """How a command ended: exit code (negative: the signal), what we stopped it for, what the kernel says, peak bytes; in
    words what else is to be said. `asked_bytes` is the most that was asked for, touched or not, where that is known."""

    exit_code: int
    reason: Reason | None
    kernel_oom_kill: bool
    peak_bytes: int
    seconds: float
    detail: str | None = None
    asked_bytes: int = 0


class RunningCommand(Protocol):
    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        ...

    def memory_bytes(self) -> int:
        """Resident memory of all its processes now."""
        ...

    def stop(self, *, grace_seconds: float = 0) -> None:
        """End all its processes, by SIGTERM first where there is a grace; returns when they are gone."""
        ...


@runtime_checkable
class WatchedElsewhere(Protocol):
    """A running command on another machine, where its limits are enforced, too."""

    def ending(self) -> Ending | None:
        """What was seen of its end there."""
        ...


class Launcher(Protocol):
    def start(self, command: CellCommand) -> RunningCommand: ...


class LocalCommand:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._family = [psutil.Process(process.pid)]
        self._looked = 0.0
        self.asked_bytes = 0

    def poll(self) -> int | None:
        return self._process.poll()

    def memory_bytes(self) -> int:
        now = time.monotonic()
        try:
            if now - self._looked > 1:  # finding children reads all of /proc: too dear for every poll
                self._family[1:], self._looked = self._family[0].children(recursive=True), now
            seen = [member.memory_info() for member in self._family]
            self.asked_bytes = max(self.asked_bytes, sum(one.data for one in seen))
            return sum(one.rss for one in seen)
        except psutil.Error:  # one of them ended between two reads
            self._looked = 0.0
            return 0

    def stop(self, *, grace_seconds: float = 0) -> None:
        with suppress(psutil.Error):
            self._family[1:] = self._family[0].children(recursive=True)
        stop_group(self._process, grace_seconds=grace_seconds)
        for member in self._family[1:]:  # those in sessions of their own, as torchrun's are
            with suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(self._family[1:], timeout=GONE_SECONDS)


class LocalLauncher:
    """A child process in a session of its own on this machine."""

    def start(self, command: CellCommand) -> LocalCommand:
        log = command.folder / "log.txt"
        return LocalCommand(spawn(command.arguments, log=log, env=command.env, keep_open=command.keep_open))


def run_to_end(launcher: Launcher, command: CellCommand, *, on_tick: Callable[[], None]) -> Ending:
    """Start `command`, enforce its budget and limit, and return how it ended. Nothing of it is left running, also when
    `on_tick` raises (a cancel from outside arrives that way)."""
    before, started = machine.oom_kills(), time.monotonic()
    running = launcher.start(command)
    peak, reason, next_tick = 0, None, 0.0
    try:
        while (exit_code := running.poll()) is None:
            peak = max(peak, used := running.memory_bytes())
            elapsed = time.monotonic() - started
            reason = _overrun(command, used, elapsed)
            if reason:
                running.stop(grace_seconds=command.grace_seconds if reason == "time_limit" else 0)
                break
            if elapsed >= next_tick:
                on_tick()
                next_tick = elapsed + 0.5
            time.sleep(POLL_SECONDS)
    except BaseException:
        running.stop(grace_seconds=min(command.grace_seconds, CANCEL_GRACE_SECONDS))
        raise
    finally:
        running.stop()
    if exit_code is None:
        exit_code = running.poll()
    on_tick()
    if isinstance(running, WatchedElsewhere) and (seen := running.ending()):
        return seen
    return Ending(
        exit_code=-signal.SIGKILL if exit_code is None else exit_code,
        reason=reason,
        kernel_oom_kill=machine.oom_kills() > before,
        peak_bytes=peak,
        seconds=time.monotonic() - started,
        asked_bytes=getattr(running, "asked_bytes", 0),
    )


def _overrun(command: CellCommand, used: int, elapsed: float) -> Reason | None:
    if command.memory_budget and used > command.memory_budget:
        return "memory_budget"
    if command.time_limit and elapsed > command.time_limit:
        return "time_limit"
    return None


def own_identity() -> dict[str, float | int]:
    """This process, so that others can see later whether it still lives."""
    return {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}
