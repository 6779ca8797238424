"""What every check is given: the device, how much time is left, clocks that wait for a card.

PyTorch is imported where it is used, so that a check that fails at that import is reported like any other.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

PACKAGES = ("transformers", "peft", "bitsandbytes", "triton", "flash-attn", "liger-kernel", "nvidia-ml-py", "trl")
T = TypeVar("T")
DRY = "a CPU (dry run: tiny shapes, no figure of a card)"  # the device of every line of a dry run


@dataclass(frozen=True)
class Bench:
    """`work` is shared by the checks of a run; `ends` is when this check is killed, on the clock of `time.monotonic`. A `dry` run
    computes the same things on a CPU in tiny shapes: it tries the program, and its figures mean nothing."""

    work: Path
    dry: bool
    ends: float

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu" if self.dry else "cuda")

    @property
    def half(self) -> Any:
        """The half-precision type that this device computes in: bfloat16, on cards before capability 8.0 float16."""
        import torch

        from pipelines.hardware.cuda_devices import AMPERE

        old = not self.dry and torch.cuda.get_device_capability() < AMPERE
        return torch.float16 if old else torch.bfloat16

    def left(self) -> float:
        """Seconds until this check is killed."""
        return self.ends - time.monotonic()

    def sized(self, on_card: T, dry: T) -> T:
        """A shape for this run."""
        return dry if self.dry else on_card

    def judged(self, agrees: bool) -> bool | None:
        """Of an expectation about cards: what was seen on a CPU neither meets it nor fails it."""
        return None if self.dry else agrees

    def wait(self) -> None:
        """Until the card has done what it was given."""
        if not self.dry:
            import torch

            torch.cuda.synchronize()

    def seconds_of(self, work: Callable[[], object], *, rounds: int = 5) -> float:
        """The best of several calls, after one that is not counted; in a dry run of one."""
        work()
        best = float("inf")
        for _ in range(self.sized(rounds, 1)):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            best = min(best, time.perf_counter() - began)
        return best

    def peak_gb_of(self, work: Callable[[], object]) -> float | None:
        """What the allocator handed out at most during a call, beyond what was there before it; None on a CPU."""
        if self.dry:
            work()
            return None
        import torch

        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 1e9


def device(bench: Bench) -> dict[str, Any]:
    """What this device is; of a dry run a name that nobody takes for a card's."""
    import torch

    from pipelines.hardware import machine

    if bench.dry:
        return {"name": DRY, "torch": torch.__version__}
    if not torch.cuda.is_available():
        listed = ", ".join(machine.cuda_query("name")) or "none"
        driver = ", ".join(machine.cuda_query("driver_version")) or "none"
        return {
            "name": None,
            "listed": listed,
            "driver": driver,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }
    card = torch.cuda.get_device_properties(0)
    return {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "memory_gb": card.total_memory / 1e9,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": next(iter(machine.cuda_query("driver_version")), None),
    }


def packages() -> dict[str, str | None]:
    """The versions of what decides how fast a card is used; None where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def look(bench: Bench) -> Any:
    """The first process of a run: which card this is, if PyTorch can use one."""
    yield {"found": device(bench)}
