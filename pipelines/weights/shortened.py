"""A model without some of its layers: its configuration, and the record of the layers beside its
weights."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.lake.files import read_json

Json = dict[str, Any]
# A number of layers, or the layers themselves, which count from 0.
Drop = int | list[int]

RECORD = "layers.json"
# The names of the number of layers in configurations.
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Parts of the names of lists with a value per layer: layer_types, mlp_layer_types,
# layers_block_type, no_rope_layers, attention_layers, block_types.
PER_LAYER = ("layer", "block")
# Exit codes of the child that writes the weights, which no interpreter uses itself.
EXITS = {62: UsageError, 63: UnavailableError}


def described(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the text layers: `text_config` for a vision
    model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and _count_key(config) is None else config


def layers_of(config: Mapping[str, Any]) -> int:
    """The number of layers in a transformers configuration.

    Raises:
        UnavailableError: the configuration names no number of layers.
    """
    part = described(config)
    if (key := _count_key(part)) is None:
        kind = config.get("model_type")
        raise UnavailableError(f"the configuration ({kind}) names no number of layers ({', '.join(COUNTS)})")
    return part[key]


def _count_key(config: Mapping[str, Any]) -> str | None:
    return next((name for name in COUNTS if isinstance(config.get(name), int)), None)


def dropped_from(layers: int, drop: Drop) -> list[int]:
    """The layers to drop.

    For a number alone these are the layers just before the last one, as a placeholder: only data
    can choose the real ones.

    Raises:
        UsageError: no layer would remain, or there is no such layer.
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
        raise UsageError(f"drop_layers: names all {layers} layers of the model; at least one must remain.")
    return sorted(set(drop))


def per_layer(config: Mapping[str, Any]) -> Json:
    """The fields of a configuration that hold a value for every layer."""
    layers = layers_of(config)
    return {
        name: value
        for name, value in described(config).items()
        if isinstance(value, list) and len(value) == layers and any(word in name for word in PER_LAYER)
    }


def without(config: Mapping[str, Any], dropped: Iterable[int]) -> Json:
    """The configuration of the same model without the dropped layers.

    It has a smaller number of layers, and every list with a value per layer lacks the values of the
    dropped ones.

    Raises:
        UnavailableError: the configuration names no number of layers.
    """
    dropped_set, layers = set(dropped), layers_of(config)
    remaining = [layer for layer in range(layers) if layer not in dropped_set]
    part = dict(described(config))
    key = _count_key(part)
    assert key
    part[key] = len(remaining)
    for name, values in per_layer(config).items():
        part[name] = [values[layer] for layer in remaining]
    # GPT-Neo's field: [[kinds, number of repetitions], …].
    if types := part.get("attention_types"):
        kinds = [kind for repeated, times in types for _ in range(times) for kind in repeated]
        part["attention_types"] = [[[kinds[layer] for layer in remaining], 1]]
    return part if described(config) is config else {**config, "text_config": part}


def record_of_layers(folder: Path) -> Json | None:
    """The record in a model's folder; None for a complete model.

    `of` is the number of layers of the original model. `left` and `dropped` are the remaining and
    the dropped layers, and `by` is how they were chosen.
    """
    return read_json(folder / RECORD)


def in_words(layers: Sequence[int]) -> str:
    """The layers as ranges: `18-21, 25` for 18, 19, 20, 21, 25."""
    known = set(layers)
    firsts = [layer for layer in sorted(known) if layer - 1 not in known]
    lasts = [layer for layer in sorted(known) if layer + 1 not in known]
    return ", ".join(
        f"{first}-{last}" if last > first else f"{first}" for first, last in zip(firsts, lasts, strict=True)
    )


def exit_code(error: BaseException) -> int:
    """The exit code of the child that writes the weights."""
    return next((code for code, kind in EXITS.items() if isinstance(error, kind)), 1)


def error_of(code: int, message: str) -> Exception:
    """The parent's error for the child's exit code, with the child's `message`."""
    return EXITS.get(code, WorkError)(message)
