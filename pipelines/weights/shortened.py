"""A model without some of its layers: what its configuration says then, and the record of them that lies beside its weights."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.lake.files import read_json

Json = dict[str, Any]
Drop = int | list[int]  # so many layers, or these, of which the first is 0

RECORD = "layers.json"
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # as configurations call the number of layers
# Lists that hold a value a layer: layer_types, mlp_layer_types, layers_block_type, no_rope_layers, attention_layers, block_types
PER_LAYER = ("layer", "block")
EXITS = {62: UsageError, 63: UnavailableError}  # of the child that makes the weights: codes that no interpreter has


def described(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the layers of text: of a model that also sees, its `text_config`."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and _count_key(config) is None else config


def layers_of(config: Mapping[str, Any]) -> int:
    """The number of layers that a transformers configuration names.

    Raises:
        UnavailableError: it names none.
    """
    part = described(config)
    if (key := _count_key(part)) is None:
        kind = config.get("model_type")
        raise UnavailableError(f"the configuration ({kind}) names no number of layers ({', '.join(COUNTS)})")
    return part[key]


def _count_key(config: Mapping[str, Any]) -> str | None:
    return next((name for name in COUNTS if isinstance(config.get(name), int)), None)


def dropped_from(layers: int, drop: Drop) -> list[int]:
    """Which of so many layers go; of a number alone the ones before the last, which stand for those that only data can choose.

    Raises:
        UsageError: nothing would be left, or there is no such layer.
    """
    if isinstance(drop, int):
        if not 1 <= drop < layers:
            raise UsageError(f"drop_layers: got {drop}; the model has {layers} layers: expected 1 to {layers - 1}.")
        return list(range(layers - 1 - drop, layers - 1))
    if missing := [layer for layer in drop if not 0 <= layer < layers]:
        raise UsageError(
            f"drop_layers: got layer {missing[0]}; the model has {layers} layers: expected numbers from 0 to {layers - 1}."
        )
    if len(set(drop)) >= layers:
        raise UsageError(f"drop_layers: all {layers} layers of the model are named; expected one to be left.")
    return sorted(set(drop))


def per_layer(config: Mapping[str, Any]) -> Json:
    """Those of a configuration's fields that hold a value for every layer."""
    layers = layers_of(config)
    return {
        name: value
        for name, value in described(config).items()
        if isinstance(value, list) and len(value) == layers and any(word in name for word in PER_LAYER)
    }


def without(config: Mapping[str, Any], dropped: Iterable[int]) -> Json:
    """The configuration of the same model without these layers: fewer of them, and every list that holds a value for each layer
    without the values of these.

    Raises:
        UnavailableError: it names no number of layers.
    """
    dropped_set, layers = set(dropped), layers_of(config)
    remaining = [layer for layer in range(layers) if layer not in dropped_set]
    part = dict(described(config))
    key = _count_key(part)
    assert key
    part[key] = len(remaining)
    for name, values in per_layer(config).items():
        part[name] = [values[layer] for layer in remaining]
    if types := part.get("attention_types"):  # GPT-Neo's: [[kinds, how often], …]
        kinds = [kind for repeated, times in types for _ in range(times) for kind in repeated]
        part["attention_types"] = [[[kinds[layer] for layer in remaining], 1]]
    return part if described(config) is config else {**config, "text_config": part}


def record_of_layers(folder: Path) -> Json | None:
    """The record in a model's folder: the number of layers `of` the first model that it is made from, which of them are `left`
    and which `dropped`, and how they were chosen (`by`). None where the folder holds a whole model."""
    return read_json(folder / RECORD)


def in_words(layers: Sequence[int]) -> str:
    """`18-21, 25` of 18, 19, 20, 21, 25."""
    known = set(layers)
    firsts = [layer for layer in sorted(known) if layer - 1 not in known]
    lasts = [layer for layer in sorted(known) if layer + 1 not in known]
    return ", ".join(
        f"{first}-{last}" if last > first else f"{first}" for first, last in zip(firsts, lasts, strict=True)
    )


def exit_code(error: BaseException) -> int:
    """What the child that makes the weights ends with."""
    return next((code for code, kind in EXITS.items() if isinstance(error, kind)), 1)


def error_of(code: int, message: str) -> Exception:
    """What the child's end means to its parent; `message` is the child's own."""
    return EXITS.get(code, WorkError)(message)
