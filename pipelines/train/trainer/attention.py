"""Causal attention that never reads the positions: on a card that read makes the host wait in every
forward pass.

transformers reads the positions back to see whether a row holds several texts, and builds a mask if
it does. Our rows hold one text each and are padded on the right, so PyTorch's own causal flag is
enough. transformers builds no mask for an attention function that has no mask function registered.
So we register its own function under another name.
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
    """Inside the context `model` attends so on a card, if the result is the same. On a CPU the read
    costs nothing.

    `model` may be inside DeepSpeed's engine. Gradient checkpointing recomputes after the context
    has closed, with the same function under its usual name.
    """
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
    """Whether the mask of every layer is plainly causal, in an architecture that is known to work
    so.

    That excludes a sliding window and attention in both directions.
    """
    # A vision model describes its text layers in a configuration of their own.
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    sees_all = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    both_ways = getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True)
    is_known = config.model_type in ARCHITECTURES and config._attn_implementation == "sdpa"
    return is_known and sees_all and not both_ways


def puts_keys_before(model: Any) -> bool:
    """Whether a PEFT adapter puts keys of its own before those of the text (prefix tuning).

    Every token sees these keys. A causal flag would hide as many of the text's own keys from each
    token.
    """
    configs = getattr(model, "peft_config", None) or {}
    return any(getattr(config, "is_prompt_learning", False) for config in configs.values())


@cache
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(NAME, sdpa_attention_forward)
