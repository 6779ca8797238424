"""What merging takes of this machine's memory: foretold from the heads of the weights' files before any of them is loaded.

One model lies in the host's memory at a time, in float32; beside it the packed base of a quantized cell while it is unpacked, the
change of one layer, and the probabilities that the check compares.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from pipelines.errors import UnavailableError, WorkError
from pipelines.settings.methods import FOUR_BITS

FLOAT32 = 4
# Modules that loading, PEFT and bitsandbytes bring in once they are used, and what the C library keeps of freed blocks
MORE_LIBRARIES = 400e6
PACKED = {**dict.fromkeys(FOUR_BITS, 0.5 + 0.07), "int8": 1.02}  # bytes of a weight with its scales
BITS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number in a file


@dataclass(frozen=True)
class Weights:
    """What the files of a model say: its numbers, those of its largest tensor and of its widest vocabulary, the bytes they take."""

    numbers: int
    largest: int
    bytes: int


def weights_in(folder: Path) -> Weights:
    """Read from the heads of the safetensors files in `folder` alone.

    Raises:
        WorkError: there are none.
    """
    numbers, largest, size = 0, 0, 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            head: dict[str, Any] = json.loads(opened.read(length))
        counts = {name: prod(told["shape"]) for name, told in head.items() if name != "__metadata__"}
        numbers += sum(counts.values())
        largest = max([largest, *counts.values()])
        size += sum(count * BITS.get(head[name]["dtype"], FLOAT32) for name, count in counts.items())
    if not numbers:
        raise WorkError(f"no safetensors in {folder}: fetch the model again")
    return Weights(numbers, largest, size)


def foretold(weights: Weights, recipe: Mapping[str, Any], *, vocabulary: int, positions: int, occupied: int) -> int:
    """The peak of the merging process in bytes. `positions`: the tokens of which logits lie in memory at once; `occupied`: what the
    process holds before it loads a model."""
    model = FLOAT32 * weights.numbers
    file = weights.bytes if weights.bytes < model else 0  # of halves: read, and turned into float32 beside
    packed = PACKED.get(recipe.get("quantization") or "", 0.0) * weights.numbers
    if packed:  # its embeddings stay as they were
        packed += FLOAT32 * weights.largest
    merging = (
        2 * FLOAT32 * weights.largest
    )  # the change of a layer, and a head of its own where it shared the embedding's
    logits = 3 * FLOAT32 * vocabulary * positions
    return int(occupied + MORE_LIBRARIES + model + max(file, packed) + max(merging, logits))


def require(needed: int) -> None:
    """Raises UnavailableError where the machine has less memory free than merging needs."""
    free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    if needed > free:
        raise UnavailableError(
            f"merging takes {needed / 1e9:.1f} GB of this machine's memory, and {free / 1e9:.1f} GB are free: end other programs, "
            "merge on a larger machine, or take --adapter, which loads no model"
        )
