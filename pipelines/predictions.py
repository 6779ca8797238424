"""Where predictions of memory are kept, for whoever only wants to read one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.files import read_json, stable_hash
from pipelines.paths import DataRoot

Json = dict[str, Any]


def answer_file(
    data: DataRoot, recipe: Mapping[str, Any], examples: str | None, seed: int, *, own_tokenizer: bool
) -> Path:
    """Where the answer on a cell is kept: named by recipe, fingerprint of the examples, seed, and whether its own tokenizer
    counted their tokens."""
    return data.lake / "estimates" / f"{stable_hash([dict(recipe), examples, seed, own_tokenizer])}.json"


def answer_on(data: DataRoot, spec: Mapping[str, Any]) -> Json | None:
    """The answer kept on what an attempt's spec asks for, if there is one."""
    for own in (True, False):
        prints = spec.get("fingerprints", {})
        file = answer_file(data, spec.get("recipe", {}), prints.get("data"), spec.get("seed", 1), own_tokenizer=own)
        if found := read_json(file):
            return found
    return None
