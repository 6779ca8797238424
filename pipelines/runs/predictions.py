"""Where predictions of memory are kept, for whoever only wants to read one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.lake.files import read_json, stable_hash
from pipelines.lake.paths import DataRoot

Json = dict[str, Any]
SHARDED = {  # parts of a prediction that each of n devices holds an nth of; activations are each device's own
    "fsdp": ("weights", "gradients", "optimizer"),
    "zero3": ("weights", "gradients", "optimizer"),
    "zero2": ("gradients", "optimizer"),
}


def answer_file(
    data: DataRoot, recipe: Mapping[str, Any], examples: str | None, seed: int, *, own_tokenizer: bool
) -> Path:
    """Where the answer on a cell is kept: named by recipe, fingerprint of the examples, seed, and whether its own tokenizer
    counted their tokens."""
    return data.lake / "estimates" / f"{stable_hash([dict(recipe), examples, seed, own_tokenizer])}.json"


def answer_on(data: DataRoot, recipe: Mapping[str, Any], examples: str | None, seed: int) -> Json | None:
    """The answer kept on a cell of that recipe, fingerprint of the examples and seed, if there is one."""
    for own_tokenizer in (True, False):
        if answer := read_json(answer_file(data, recipe, examples, seed, own_tokenizer=own_tokenizer)):
            return answer
    return None


def memory_gb(predicted: Json, devices: int, sharding: str) -> float:
    """The peak of one device of `devices`, in GB. On two processes of one processor `full` by fsdp took 8 % more than that
    (`python -m benchmarks devices`)."""
    shared = sum(predicted[part] for part in SHARDED.get(sharding, ()))
    return (predicted["peak"] - shared * (1 - 1 / devices)) / 1e9
