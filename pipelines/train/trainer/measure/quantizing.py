"""The seconds and the peak memory of quantizing alone.

transformers quantizes each weight as it reads it, so its conversion step is timed while a model
loads.
"""
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
    """`seconds` and `peak` (bytes; the card's on CUDA) of quantizing; None until a weight is
    quantized.

    `whole_peak` is the peak of loading and quantizing together, `resident` the process's peak on
    the host.
    """

    seconds: float | None = None
    peak: int | None = None
    whole_peak: int = 0
    resident: int = 0

    def timed(self, convert: Callable[..., Any]) -> Callable[..., Any]:
        """A version of `convert` whose calls are measured."""

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
        """The row's columns. The seconds of loading exclude those of quantizing; its peak covers
        both."""
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
    """Measure the quantizing inside the context. If transformers quantizes elsewhere, the numbers
    stay None."""
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
        # Before the first import of bitsandbytes.
        four_bits.prepare()
    from transformers.integrations import bitsandbytes

    steps = [getattr(bitsandbytes, name, None) for name in STEPS]
    return {step: step.convert for step in steps if step is not None}
