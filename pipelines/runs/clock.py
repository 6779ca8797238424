"""Time as the lake writes it, and time as it is measured: without what passes while the process is stopped."""

import os
import resource
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

BEAT_SECONDS = 0.1  # how often a thread looks at the clock
GAP_SECONDS = 1.0  # a silence of this length that nothing explains means that the process was stopped


def now() -> str:
    """UTC in ISO 8601 to the millisecond; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Stopwatch:
    """Seconds since it was made, or since `lap` was last called, without those in which the process was stopped."""

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
        """Seconds since it was made in which the process was stopped."""
        return _heart().look()[1] - self._stopped

    def _now(self) -> float:
        seconds, stopped = _heart().look()
        return seconds - stopped


class Heart:
    """Notices that this process was stopped (SIGSTOP, a debugger, a paused container), which no clock tells.

    A thread looks at the clock all the time. Where it did not for longer than `GAP_SECONDS`, and the process neither computed, nor
    waited for a processor, nor read from the disk, it was stopped. A machine that sleeps needs none of this: Linux's monotonic
    clock stands still then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = 0.0
        self._beating: int | None = None
        self._last = self._sample()
        threading.Thread(target=self._beat, name="heart", daemon=True).start()

    def look(self) -> tuple[float, float]:
        """Seconds of the monotonic clock, and how many of them so far the process was stopped."""
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
        """The clock; seconds that all threads computed, and that the main and the heart's own one waited for a processor; pages
        that were read from the disk."""
        waited = sum(_waited(thread) for thread in (os.getpid(), self._beating) if thread)
        return time.monotonic(), time.process_time() + waited, resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _waited(thread: int) -> float:
    """Seconds that the thread was ready to run and another one had the processor; 0 where the kernel does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return 0.0


_hearts: list[Heart] = []  # this process's, once it measures anything
os.register_at_fork(after_in_child=_hearts.clear)  # threads do not survive a fork


def _heart() -> Heart:
    if not _hearts:
        _hearts.append(Heart())
    return _hearts[0]
