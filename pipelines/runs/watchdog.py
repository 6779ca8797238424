"""Watch a command from its start to its end, and stop it at its limits."""

import signal
import time
from collections.abc import Callable

from pipelines.hardware import machine
from pipelines.runs.command import CellCommand, Ending, Reason, Starter

# Whoever cancels wants the machine back soon. After this time only the last checkpoint survives.
CANCEL_GRACE_SECONDS = 8.0
# At this interval a command overshoots its memory budget by about 1 % before the watchdog stops it.
POLL_SECONDS = 0.05


def run_to_end(launcher: Starter, command: CellCommand, *, on_tick: Callable[[], None]) -> Ending:
    """Start `command`, enforce its budget and its time limit, and return its ending.

    No process of it keeps running, even if `on_tick` raises, which is how a cancel from outside
    arrives.
    """
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
    if ending := running.ending():
        return ending
    return Ending(
        exit_code=-signal.SIGKILL if exit_code is None else exit_code,
        reason=reason,
        kernel_oom_kill=machine.oom_kills() > before,
        peak_bytes=peak,
        seconds=time.monotonic() - started,
        asked_bytes=running.asked_bytes,
    )


def _overrun(command: CellCommand, used: int, elapsed: float) -> Reason | None:
    if command.memory_budget and used > command.memory_budget:
        return "memory_budget"
    if command.time_limit and elapsed > command.time_limit:
        return "time_limit"
    return None
