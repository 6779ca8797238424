"""Causal attention without a look at the positions: on a card that look makes the host wait in every forward pass.

transformers reads the positions back to see whether a row holds several texts, and builds a mask where it does. Our rows hold one
text each and are padded on the right, so a causal mask is enough and PyTorch's own flag says it. transformers makes no mask for an
attention function that has none registered, so ours is its own function under another name.
"""
# ruff: noqa: TID253

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from pipelines.train.trainer.fast_paths import ARCHITECTURES

NAME = "featherweight_causal"


@contextmanager
def causal(model: Any, device: torch.device) -> Iterator[None]:
    """While open, `model` (which may stand in DeepSpeed's engine) attends so on a card, where that is the same. On a CPU the look
    costs nothing. What a checkpoint computes again later runs the same function by its usual name."""
    inner = getattr(model, "module", model)
    config = inner.config
    if device.type == "cpu" or not needs_no_mask(config) or puts_keys_before(inner):
        yield
        return
    _register()
    original = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = original


def needs_no_mask(config: Any) -> bool:
    """Whether in all layers a token sees every token before it, and that is all of the mask: no sliding window, nothing seen in
    both directions, in an architecture that is known to be so."""
    config = config.get_text_config()  # of a model with eyes: what decides stands there
    kinds = getattr(config, "layer_types", None)
    sees_all = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    both_ways = getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True)
    is_known = config.model_type in ARCHITECTURES and config._attn_implementation == "sdpa"
    return is_known and sees_all and not both_ways


def puts_keys_before(model: Any) -> bool:
    """Whether an adapter of PEFT's puts keys of its own before those of the text (prefix tuning). Every token sees them; a causal
    flag would hide from a token as many of the text's as there are."""
    configs = getattr(model, "peft_config", None) or {}
    return any(getattr(config, "is_prompt_learning", False) for config in configs.values())


@cache
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(NAME, sdpa_attention_forward)
