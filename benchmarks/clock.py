"""Seconds of a call: the best of several, since other work on the machine only adds time."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path


def best_seconds(work: Callable[[], object], *, rounds: int) -> float:
    work()
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


class BusyElsewhere:
    """CPU use of all processes except this one and its children, from now on."""

    def __init__(self) -> None:
        self._began, self._all, self._own = time.monotonic(), _all_seconds(), _own_seconds()

    def share(self) -> float:
        """The share of all cores' time that other processes used since the start (Linux only).
        Children count once they have ended."""
        others = (_all_seconds() - self._all) - (_own_seconds() - self._own)
        return max(0.0, others) / ((time.monotonic() - self._began) * (os.cpu_count() or 1))


def _all_seconds() -> float:
    """CPU time of all processes since the machine started, without idle time and disk waits."""
    user, nice, system, _idle, _wait, *more = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    return (int(user) + int(nice) + int(system) + sum(map(int, more[:3]))) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)
