"""Timestamps of the lake, and measured time without the time in which the process is stopped."""

import os
import resource
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

# Interval at which a thread reads the clock.
BEAT_SECONDS = 0.1
# An unexplained gap of this length means that the process was stopped.
GAP_SECONDS = 1.0


def now() -> str:
    """UTC in ISO 8601 to the millisecond; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Stopwatch:
    """Seconds since its creation or the last `lap`, without those of a stopped process."""

    def __init__(self) -> None:
        began, self._stopped = _heart().look()
        self._began = self._lap = began - self._stopped

    def total(self) -> float:
        return self._now() - self._began

    def lap(self) -> float:
        now = self._now()
        elapsed, self._lap = now - self._lap, now
        return elapsed

    def stopped(self) -> float:
        """Seconds since its creation in which the process was stopped."""
        return _heart().look()[1] - self._stopped

    def _now(self) -> float:
        seconds, stopped = _heart().look()
        return seconds - stopped


class Heart:
    """Detects that this process was stopped (SIGSTOP, a debugger, a paused container), which no
    clock shows.

    A thread reads the clock continually. If it misses more than `GAP_SECONDS`, and the process
    neither computed, nor waited for a CPU, nor read from the disk in that time, the process was
    stopped. A sleeping machine needs no such correction, because Linux's monotonic clock stops with
    it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = 0.0
        self._beating: int | None = None
        self._last = self._sample()
        threading.Thread(target=self._beat, name="heart", daemon=True).start()

    def look(self) -> tuple[float, float]:
        """Seconds of the monotonic clock, and the seconds of a stopped process among them."""
        with self._lock:
            last, self._last = self._last, self._sample()
            elapsed, busy, reads = (now - before for now, before in zip(self._last, last, strict=True))
            if (idle := elapsed - busy - BEAT_SECONDS) > GAP_SECONDS and not reads:
                self._stopped += idle
            return self._last[0], self._stopped

    def _beat(self) -> None:
        self._beating = threading.get_native_id()
        while True:
            time.sleep(BEAT_SECONDS)
            self.look()

    def _sample(self) -> tuple[float, float, int]:
        """The clock; the busy seconds; and the number of pages read from the disk.

        Busy seconds are the CPU time of all threads, plus the time that the main thread and this
        one waited for a CPU.
        """
        waited = sum(_waited(thread) for thread in (os.getpid(), self._beating) if thread)
        return time.monotonic(), time.process_time() + waited, resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _waited(thread: int) -> float:
    """Seconds that the thread was ready to run but had no CPU; 0 if the kernel does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return 0.0


# The one of this process, from the first measurement on.
_hearts: list[Heart] = []
# Threads do not survive a fork.
os.register_at_fork(after_in_child=_hearts.clear)


def _heart() -> Heart:
    if not _hearts:
        _hearts.append(Heart())
    return _hearts[0]
