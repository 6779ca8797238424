"""The context of every check: the device, the time left, and clocks that wait for a card.

PyTorch is imported where it is used, so that a failing import is reported like any other failure.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

PACKAGES = ("transformers", "peft", "bitsandbytes", "triton", "flash-attn", "liger-kernel", "nvidia-ml-py", "trl")
T = TypeVar("T")
# The device in every line of a dry run
DRY = "a CPU (dry run: tiny shapes, no figure of a card)"


@dataclass(frozen=True)
class Bench:
    """The context of a check.

    - `work`: the folder that the checks of a run share
    - `dry`: compute the same on a CPU in tiny shapes, which tests the program; the figures mean
      nothing
    - `ends`: the time at which this check is killed, on the clock of `time.monotonic`
    """

    work: Path
    dry: bool
    ends: float

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu" if self.dry else "cuda")

    @property
    def half(self) -> Any:
        """The device's half-precision type: bfloat16, or float16 on cards before capability 8.0."""
        import torch

        from pipelines.hardware.cuda_devices import AMPERE

        old = not self.dry and torch.cuda.get_device_capability() < AMPERE
        return torch.float16 if old else torch.bfloat16

    def left(self) -> float:
        """Seconds until this check is killed."""
        return self.ends - time.monotonic()

    def sized(self, on_card: T, dry: T) -> T:
        """The shape for this run."""
        return dry if self.dry else on_card

    def judged(self, agrees: bool) -> bool | None:
        """The verdict on an expectation about cards: an observation on a CPU neither meets nor
        fails it."""
        return None if self.dry else agrees

    def wait(self) -> None:
        """Wait until the card has finished its work."""
        if not self.dry:
            import torch

            torch.cuda.synchronize()

    def seconds_of(self, work: Callable[[], object], *, rounds: int = 5) -> float:
        """Seconds of the best of `rounds` calls after a warm-up call; a dry run has one round."""
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
        """The allocator's peak during a call, above its level before the call; None on a CPU."""
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
    """A description of this device. In a dry run its name cannot be mistaken for a card's."""
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
    """Versions of the packages that affect a card's speed; None where one is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def look(bench: Bench) -> Any:
    """The first process of a run: identify the card, if PyTorch can use one."""
    yield {"found": device(bench)}
