"""The memory of a cell's own process: samples of its resident memory through the run, and the
kernel's peak.

On CUDA there are three peaks of the card as well: the memory of PyTorch's tensors, the memory that
PyTorch has reserved for them, and all memory in use on the card. Peaks are reset after loading and
set aside while the run evaluates, so that evaluation never inflates training.
"""
# ruff: noqa: TID253

import ctypes
import gc
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from pipelines.train.trainer.measure.nvml import memory_access
from pipelines.train.trainer.measure.other_cpu import OtherCpu

SAMPLE_SECONDS = 0.1
HOST, ALLOCATED, RESERVED, DEVICE = (
    "host_peak_memory_gb",
    "gpu_allocated_peak_gb",
    "gpu_reserved_peak_gb",
    "gpu_device_peak_gb",
)
# With several processes the row shows the largest of these peaks.
PEAKS = ("peak_memory_gb", HOST, ALLOCATED, RESERVED, DEVICE)


def peak_resident_bytes() -> int:
    """The process's high-water mark since the last reset (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peaks() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def give_back_freed() -> None:
    """Return the memory that loading has freed to the system: cyclic garbage, and free blocks of
    the C library.

    The C library keeps free blocks or not, depending on their order, so a cell's memory differed
    from run to run.
    """
    gc.collect()
    # Only glibc has this function.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Samples:
    """Mean, standard deviation, minimum and maximum of a stream of values (Welford 1962).

    Even a run of a week keeps only five numbers.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: float) -> None:
        self.count += 1
        before = value - self.mean
        self.mean += before / self.count
        self.squares += before * (value - self.mean)
        self.least, self.most = min(self.least, value), max(self.most, value)

    @property
    def deviation(self) -> float:
        """The standard deviation of all values so far."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def peak_bytes() -> int:
    """The peak since the last reset, as rows define it: the card's on CUDA, else the process's."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident_bytes()


class MemoryMeter:
    """Samples memory on a thread of its own between `start` and `stop`; sizes are bytes unless the
    name says otherwise."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._samples = Samples()
        self._gpu_access = Samples()
        self._gpu_access_now: float | None = None
        self._access: Callable[[], float | None] | None = None
        self._other_cpu = OtherCpu()
        self._paused = False
        # The number of the training thread's card: in the sampling thread the current card is
        # always the first.
        self._card = torch.cuda.current_device() if torch.cuda.is_available() else None
        # Bytes, by the row's columns.
        self._peaks: dict[str, int] = dict.fromkeys((HOST, ALLOCATED, RESERVED, DEVICE), 0)
        # Both threads write the peaks.
        self._noting = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        if self._card is not None:
            self._access = memory_access(str(torch.cuda.get_device_properties(self._card).uuid))
        reset_peaks()
        self._other_cpu.start()
        self._thread.start()

    def stop(self) -> None:
        self._hold_peaks()
        self._other_cpu.stop()
        self._done.set()
        self._thread.join()

    def state(self) -> dict[str, Any]:
        """All measurements so far, for a run that resumes later; None stands for a series without
        samples."""
        self._hold_peaks()
        self._other_cpu.lap()
        series = {"process": self._samples, "gpu_access": self._gpu_access}
        sampled = {name: asdict(samples) if samples.count else None for name, samples in series.items()}
        cpu = [self._other_cpu.others, self._other_cpu.available]
        return {**sampled, "peaks": dict(self._peaks), "other_cpu": cpu}

    def go_on(self, state: dict[str, Any], peaks: dict[str, float]) -> None:
        """Continue the measurements of an earlier attempt; `peaks` (GB) are the largest of all
        attempts since."""
        self._samples = Samples(**(state["process"] or {}))
        self._gpu_access = Samples(**(state["gpu_access"] or {}))
        self._other_cpu.others, self._other_cpu.available = state.get("other_cpu", (0.0, 0.0))
        latest = {name: round(peaks.get(name, 0.0) * 1e9) for name in (ALLOCATED, RESERVED, DEVICE)}
        latest[HOST] = 0 if self._card is not None else round(peaks.get("peak_memory_gb", 0.0) * 1e9)
        for earlier in (state["peaks"], latest):
            self._note(earlier)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside the context, samples and peaks are not recorded."""
        self._hold_peaks()
        self._other_cpu.stop()
        self._paused = True
        try:
            yield
        finally:
            reset_peaks()
            self._other_cpu.start()
            self._paused = False

    def now(self) -> dict[str, float | None]:
        """The curve's memory columns at this moment; the statistics cover all samples so far."""
        card = self._card
        allocated = 0 if card is None else torch.cuda.memory_allocated(card)
        return {
            "process_memory_mb": self._process.memory_info().rss / 1e6,
            **self._process_statistics(),
            "gpu_allocated_mb": None if card is None else allocated / 1e6,
            "gpu_allocated_pct": None if card is None else 100 * allocated / _card_bytes(card),
            "gpu_memory_access_pct": self._gpu_access_now,
            "gpu_reserved_mb": None if card is None else torch.cuda.memory_reserved(card) / 1e6,
            "gpu_device_mb": None if card is None else _in_use(card) / 1e6,
        }

    def summary(self) -> dict[str, float | None]:
        """The row's memory columns: peaks and the samples' statistics.

        `peak_memory_gb` is the GPU's on CUDA, else the process's.
        """
        self._hold_peaks()
        self._other_cpu.lap()
        card, host = self._card, self._peaks[HOST] / 1e9

        def of_card(name: str) -> float | None:
            return None if card is None else self._peaks[name] / 1e9

        return {
            "peak_memory_gb": host if card is None else of_card(ALLOCATED),
            "host_peak_memory_gb": host,
            **self._process_statistics(),
            "gpu_allocated_peak_gb": of_card(ALLOCATED),
            "gpu_reserved_peak_gb": of_card(RESERVED),
            "gpu_device_peak_gb": of_card(DEVICE),
            "gpu_allocated_pct": None if card is None else 100 * self._peaks[ALLOCATED] / _card_bytes(card),
            "gpu_memory_access_pct": self._gpu_access.mean if self._gpu_access.count else None,
            "other_cpu_pct": self._other_cpu.percent,
        }

    def _process_statistics(self) -> dict[str, float | None]:
        if not self._samples.count:
            self._samples.add(self._process.memory_info().rss)
        return {
            "process_memory_mean_mb": self._samples.mean / 1e6,
            "process_memory_std_mb": self._samples.deviation / 1e6,
            "process_memory_min_mb": self._samples.least / 1e6,
            "process_memory_max_mb": self._samples.most / 1e6,
        }

    def _hold_peaks(self) -> None:
        if self._paused:
            return
        self._note({HOST: peak_resident_bytes()})
        if (card := self._card) is not None:
            allocated, reserved = torch.cuda.max_memory_allocated(card), torch.cuda.max_memory_reserved(card)
            self._note({ALLOCATED: allocated, RESERVED: reserved, DEVICE: _in_use(card)})

    def _note(self, sizes: Mapping[str, int]) -> None:
        """Raise each peak to the size in `sizes`, if that is larger."""
        with self._noting:
            for name, size in sizes.items():
                self._peaks[name] = max(self._peaks[name], size)

    def _sample(self) -> None:
        card = self._card
        while not self._done.wait(SAMPLE_SECONDS):
            if self._paused:
                continue
            self._samples.add(self._process.memory_info().rss)
            if card is not None:
                self._note({DEVICE: _in_use(card)})
            if self._access and (share := self._access()) is not None:
                self._gpu_access_now = share
                self._gpu_access.add(share)


def _card_bytes(card: int) -> int:
    return torch.cuda.get_device_properties(card).total_memory


def _in_use(card: int) -> int:
    """All bytes in use on a card: tensors, PyTorch's reserve, CUDA itself, paged memory and other
    programs."""
    free, total = torch.cuda.mem_get_info(card)
    return total - free
