"""What of a transformers model llama.cpp calls what: the architectures that can be written as GGUF, each with its own turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from pipelines.errors import UnavailableError

Config = Mapping[str, Any]
Turn = Callable[[str, np.ndarray, Config], np.ndarray]


@dataclass(frozen=True)
class Architecture:
    """`describe` writes the metadata, `turn(name, array, config)` gives a tensor the form that llama.cpp wants, and
    `left_out` ends the names of tensors that it does without."""

    id: gguf.MODEL_ARCH
    describe: Callable[[gguf.GGUFWriter, Config], None]
    turn: Turn
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self.id]


def for_config(config: Config) -> Architecture:
    """The way to write a model of this configuration.

    Raises:
        UnavailableError: there is none; the message names what can be written.
    """
    found = KNOWN.get(str(config.get("model_type")))
    if found is None:
        raise UnavailableError(
            f"a model of type {config.get('model_type')!r} cannot be written as GGUF here; these can: {', '.join(KNOWN)}. "
            "Use --merge: a transformers folder works for every model."
        )
    if odd := _beyond(config):
        raise UnavailableError(
            f"this {config['model_type']} has {odd}, which is not written as GGUF here: use --merge."
        )
    return found


def _beyond(config: Config) -> str | None:
    """What of the configuration the written metadata would not say."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        return f"rotary positions of type {kind}"
    if config.get("use_sliding_window"):
        return "attention in a sliding window"
    activation = config.get("hidden_act") or config.get("activation_function")
    usual = {"llama": "silu", "qwen2": "silu", "gpt2": "gelu_new"}[str(config["model_type"])]
    return None if activation == usual else f"the activation {activation} rather than {usual}"


def layers(config: Config) -> int:
    return int(config.get("num_hidden_layers") or config["n_layer"])


def _describe_llama(writer: gguf.GGUFWriter, config: Config) -> None:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(layers(config))
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_rope_dimension_count(head)
    if head * heads != width:
        writer.add_key_length(head)
        writer.add_value_length(head)


def _describe_gpt2(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(layers(config))
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def _turn_llama(name: str, array: np.ndarray, config: Config) -> np.ndarray:
    """llama.cpp turns neighbouring pairs of a head's rows by one angle, transformers row i and row i + half: reorder q and k."""
    heads = config["num_attention_heads"]
    if ".q_proj." in name:
        return _interleaved(array, heads)
    if ".k_proj." in name:
        return _interleaved(array, config.get("num_key_value_heads") or heads)
    return array


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    rows = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(array.shape)


def _turn_gpt2(name: str, array: np.ndarray, _config: Config) -> np.ndarray:
    """GPT-2's Conv1D keeps its weights as inputs × outputs."""
    turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    return np.ascontiguousarray(array.T) if turned else array


def _as_it_is(_name: str, array: np.ndarray, _config: Config) -> np.ndarray:
    return array


KNOWN = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, _describe_llama, _turn_llama, ("rotary_emb.inv_freq",)),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, _describe_llama, _as_it_is, ("rotary_emb.inv_freq",)),
    "gpt2": Architecture(gguf.MODEL_ARCH.GPT2, _describe_gpt2, _turn_gpt2, (".attn.bias", ".attn.masked_bias")),
}
