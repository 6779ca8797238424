"""Seconds and peak of quantizing by themselves: transformers quantizes each weight as it reads it, so its own conversion step is
timed while a model loads."""
# ruff: noqa: TID253

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.runs.clock import Stopwatch
from pipelines.train.trainer.cpu import four_bits
from pipelines.train.trainer.measure.memory import peak_bytes, peak_resident_bytes, reset_peaks

STEPS = ("Bnb4bitQuantize", "Bnb8bitQuantize")


@dataclass
class Quantizing:
    """`seconds` and `peak` (bytes; the card's on CUDA) while weights were quantized, None as long as nothing was. `whole_peak` is
    that of loading and quantizing together, and `resident` the process's own on the host meanwhile."""

    seconds: float | None = None
    peak: int | None = None
    whole_peak: int = 0
    resident: int = 0

    def timed(self, convert: Callable[..., Any]) -> Callable[..., Any]:
        """`convert`, each call of which counts here."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._look()
            reset_peaks()
            clock = Stopwatch()
            try:
                return convert(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.seconds = (self.seconds or 0.0) + clock.total()
                self.peak = max(self.peak or 0, peak_bytes())

        return counted

    def measured(self, loading_seconds: float) -> dict[str, float | None]:
        """The row's columns; loading's seconds are those that quantizing did not take, its peak is that of both."""
        self._look()
        return {
            "load_seconds": loading_seconds - (self.seconds or 0.0),
            "quantize_seconds": self.seconds,
            "quantize_peak_memory_gb": None if self.peak is None else self.peak / 1e9,
            "load_peak_memory_gb": self.whole_peak / 1e9,
            "host_peak_memory_gb": self.resident / 1e9,
        }

    def _look(self) -> None:
        self.whole_peak = max(self.whole_peak, peak_bytes())
        self.resident = max(self.resident, peak_resident_bytes())


@contextmanager
def watched(*, quantizes: bool) -> Iterator[Quantizing]:
    """Count what is quantized inside. A version of transformers that does it elsewhere leaves the numbers None."""
    quantizing = Quantizing()
    originals = _conversions() if quantizes else {}
    for step, convert in originals.items():
        step.convert = quantizing.timed(convert)
    try:
        yield quantizing
    finally:
        for step, convert in originals.items():
            step.convert = convert


def _conversions() -> dict[Any, Callable[..., Any]]:
    if not torch.cuda.is_available():
        four_bits.prepare()  # before anybody imports bitsandbytes
    from transformers.integrations import bitsandbytes

    steps = [getattr(bitsandbytes, name, None) for name in STEPS]
    return {step: step.convert for step in steps if step is not None}
