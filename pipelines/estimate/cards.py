"""Graphics cards as the estimator knows them: name, memory and number format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_args

from pipelines.hardware import machine
from pipelines.hardware.cuda_devices import AMPERE

# Bytes of CUDA's context and kernels in a process, outside PyTorch's allocator. Not measured here;
# 0.3 to 0.6 GB are usual.
CONTEXT = 0.6e9
MIB = 2**20
# The number format of a card's matrix products. Predictions are made per format: cards of one
# format need the same memory.
Format = Literal["bf16", "fp16", "fp32"]
FORMATS: tuple[Format, ...] = get_args(Format)
# The memory in bytes of the card that a prediction assumes for each format; it decides the pieces
# of the output head. It is that of the largest card for bfloat16, and of a T4 for the others. A
# smaller bfloat16 card needs less for a large vocabulary than predicted.
ASSUMED_MEMORY: dict[Format, int] = {"bf16": 80 * 10**9, "fp16": 15360 * MIB, "fp32": 15360 * MIB}


# Names of cards before Ampere, from Kepler to Turing, which do not compute bfloat16.
PRE_AMPERE = re.compile(r"\b(K\d0m?|M\d\dm?|P\d+|V100|T4|T\d00|GTX|TITAN|Quadro|RTX 20\d\d)\b", re.IGNORECASE)
VOLTA = (7, 0)


@dataclass(frozen=True)
class Card:
    """A card. `total` is the memory that `nvidia-smi` reports, in bytes; `capability` is CUDA's,
    such as (7, 5)."""

    name: str
    total: int
    capability: tuple[int, int]

    @property
    def usable(self) -> float:
        return self.total - CONTEXT

    def format(self, recipe: Mapping[str, Any]) -> Format:
        """The format in which the card computes a cell, from `precision` and `fp16` of the
        recipe."""
        precision = recipe.get("precision", "auto")
        if precision != "auto":
            return cast(Format, precision)
        if self.capability >= AMPERE:
            return "bf16"
        return "fp16" if recipe.get("fp16", True) else "fp32"


CARDS = (
    Card("T4 16", 15360 * MIB, (7, 5)),
    Card("L4 24", 23034 * MIB, (8, 9)),
    Card("A100 40", 40960 * MIB, (8, 0)),
    Card("A100 80", 81920 * MIB, (8, 0)),
    Card("H100 80", 81559 * MIB, (9, 0)),
)


def here() -> Card | None:
    """The first card of this machine; None without one."""
    name = machine.cuda_name()
    return _installed(name) if name else None


@cache
def _installed(name: str) -> Card:
    """The installed card of that name, as its driver reports it.

    If the driver is too old to report the capability, it is taken from a known card with a similar
    name.
    """
    known = machine.cuda_capability() or _named_like(name).capability
    return Card(name, machine.cuda_memory_bytes() or 0, known)


def of_device(device: str | None) -> Card:
    """The card that a machine's `device` names (`Tesla T4`): this machine's, else one of `CARDS`.

    Any other name stands for a card of unknown memory. It computes bfloat16 unless the name is of
    an older card (V100, RTX 2080).
    """
    if device and (card := here()) and card.name == device:
        return card
    return _named_like(device or "")


def _named_like(device: str) -> Card:
    words = device.split()
    unknown = Card(device, 0, VOLTA if PRE_AMPERE.search(device) else AMPERE)
    return next((card for card in CARDS if card.name.split()[0] in words), unknown)


def formats_of(recipe: Mapping[str, Any]) -> list[Format]:
    """The formats in which `CARDS` and this machine's card compute a cell of `recipe`."""
    card = here()
    formats = {card.format(recipe) for card in (*CARDS, *([card] if card else []))}
    return [format for format in FORMATS if format in formats]
