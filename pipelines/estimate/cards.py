"""Named graphics cards and what of their memory training can use."""

from dataclasses import dataclass

CONTEXT = 0.6e9  # CUDA's context and kernels in a process, outside PyTorch's allocator; not measured here, 0.3 to 0.6 GB are usual
MIB = 2**20


@dataclass(frozen=True)
class Card:
    """`total` is what `nvidia-smi` reports, in bytes."""

    name: str
    total: int

    @property
    def usable(self) -> float:
        return self.total - CONTEXT


CARDS = (
    Card("T4 16", 15360 * MIB),
    Card("L4 24", 23034 * MIB),
    Card("A100 40", 40960 * MIB),
    Card("A100 80", 81920 * MIB),
    Card("H100 80", 81559 * MIB),
)
