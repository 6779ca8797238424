"""Stored predictions of memory, for code that only reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.lake.files import read_json, stable_hash
from pipelines.lake.paths import DataRoot

Json = dict[str, Any]
# Parts of a prediction that are divided by the number of devices. Activations are not: each device
# has its own.
SHARDED = {
    "fsdp": ("weights", "gradients", "optimizer"),
    "zero3": ("weights", "gradients", "optimizer"),
    "zero2": ("gradients", "optimizer"),
}


def answer_file(
    data: DataRoot, recipe: Mapping[str, Any], examples: str | None, seed: int, *, own_tokenizer: bool
) -> Path:
    """The file of a cell's prediction.

    Its name depends on the recipe, the fingerprint of the examples, the seed, and whether the
    cell's own tokenizer counted their tokens.
    """
    return data.lake / "estimates" / f"{stable_hash([dict(recipe), examples, seed, own_tokenizer])}.json"


def answer_on(data: DataRoot, recipe: Mapping[str, Any], examples: str | None, seed: int) -> Json | None:
    """The stored prediction for that recipe, fingerprint of the examples and seed, or None."""
    for own_tokenizer in (True, False):
        if answer := read_json(answer_file(data, recipe, examples, seed, own_tokenizer=own_tokenizer)):
            return answer
    return None


def memory_gb(predicted: Json, devices: int, sharding: str) -> float:
    """The peak of one of `devices` devices, in GB.

    With two processes on one CPU, `full` with fsdp took 8 % more than this (`python -m benchmarks
    devices`).
    """
    shared = sum(predicted[part] for part in SHARDED.get(sharding, ()))
    return (predicted["peak"] - shared * (1 - 1 / devices)) / 1e9
