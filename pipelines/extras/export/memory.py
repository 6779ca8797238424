"""Prediction of the host memory for merging, from the headers of the weight files.

One model in float32 is in memory at a time. In addition there are the packed base of a quantized
cell during unpacking, the change of one layer, and the probabilities of the check.
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
# Memory of modules that loading, PEFT and bitsandbytes import late, and of freed blocks that the C
# library keeps.
MORE_LIBRARIES = 400e6
# Bytes per packed weight, including its scales.
PACKED = {**dict.fromkeys(FOUR_BITS, 0.5 + 0.07), "int8": 1.02}
# Bytes per number in a file.
FILE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Weights:
    """Sizes of a model's files: all numbers, the numbers of the largest tensor, and the bytes."""

    numbers: int
    largest: int
    bytes: int


def weights_in(folder: Path) -> Weights:
    """The sizes from the headers of the safetensors files in `folder`.

    Raises:
        WorkError: the folder has none.
    """
    numbers, largest, size = 0, 0, 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            head: dict[str, Any] = json.loads(opened.read(length))
        counts = {name: prod(entry["shape"]) for name, entry in head.items() if name != "__metadata__"}
        numbers += sum(counts.values())
        largest = max([largest, *counts.values()])
        size += sum(count * FILE_BYTES.get(head[name]["dtype"], FLOAT32) for name, count in counts.items())
    if not numbers:
        raise WorkError(f"no safetensors in {folder}: fetch the model again")
    return Weights(numbers, largest, size)


def predicted_peak(
    weights: Weights, recipe: Mapping[str, Any], *, vocabulary: int, positions: int, occupied: int
) -> int:
    """The predicted peak of the merging process in bytes.

    `positions` is the number of tokens with logits in memory at once. `occupied` is the memory of
    the process before it loads a model.
    """
    model = FLOAT32 * weights.numbers
    # Half-precision files are in memory while they are converted to float32.
    file = weights.bytes if weights.bytes < model else 0
    packed = PACKED.get(recipe.get("quantization") or "", 0.0) * weights.numbers
    # The embeddings of a packed model are not quantized.
    if packed:
        packed += FLOAT32 * weights.largest
    # The change of one layer, and a separate copy of a head that was tied to the embedding.
    merging = 2 * FLOAT32 * weights.largest
    logits = 3 * FLOAT32 * vocabulary * positions
    return int(occupied + MORE_LIBRARIES + model + max(file, packed) + max(merging, logits))


def require(needed: int) -> None:
    """Raise UnavailableError if the machine has less free memory than merging needs."""
    free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    if needed > free:
        raise UnavailableError(
            f"merging needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free on this machine: "
            "stop other programs, merge on a larger machine, or use --adapter, which loads no model"
        )
