"""The processor time that other programs used while a cell trained: other work distorts the cell's
measured speed."""

import os
from collections.abc import Sequence
from contextlib import suppress

import psutil

# Columns of /proc/stat that count as idle, and guest time, which user time already includes.
IDLE = ("idle", "iowait", "guest", "guest_nice")


class OtherCpu:
    """Seconds of processor time that others used, and all available ones, over the spans between
    `start` and `stop`.

    Time that a hypervisor took away counts as others'. The process that watches this one and the
    cell's other ranks do not count as others.
    """

    def __init__(self, others: float = 0.0, available: float = 0.0) -> None:
        self.others = others
        self.available = available
        self._ours = _ours()
        self._span_start: tuple[float, float, float] | None = None

    def start(self) -> None:
        self._span_start = self._now()

    def stop(self) -> None:
        """End the span that `start` began; without a span this does nothing."""
        if self._span_start is None:
            return
        busy, all_time, own = (now - before for now, before in zip(self._now(), self._span_start, strict=True))
        self.others += min(max(0.0, busy - own), all_time)
        self.available += all_time
        self._span_start = None

    def lap(self) -> None:
        """Count the current span so far and start the next one."""
        if self._span_start is not None:
            self.stop()
            self.start()

    @property
    def percent(self) -> float | None:
        """The others' share of all processors' time, in percent; None before the first
        measurement."""
        return 100 * self.others / self.available if self.available else None

    def _now(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()._asdict()
        busy = sum(seconds for name, seconds in times.items() if name not in IDLE)
        idle = sum(times.get(name, 0.0) for name in ("idle", "iowait"))
        return busy, busy + idle, sum(_seconds(process) for process in self._ours)


def _ours() -> list[psutil.Process]:
    ancestors = _processes([os.getpid(), os.getppid()])
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ancestors
    with suppress(psutil.Error):
        agent = ancestors[1]
        return [agent, *agent.children(), *_processes([agent.ppid()])]
    return ancestors


def _processes(pids: Sequence[int]) -> list[psutil.Process]:
    processes = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
        except psutil.Error:
            continue
    return processes


def _seconds(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:
        return 0.0
