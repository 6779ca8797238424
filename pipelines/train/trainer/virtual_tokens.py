"""Tokens that an adapter puts before every text, and that no loss is of: as embeddings (prompt tuning, P-tuning) or as keys and
values that attention finds in its cache (prefix tuning).

The text's own tokens stay those that losses, bits per byte and answers are of; they only stand further back.
"""
# ruff: noqa: TID253

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.settings.methods import AS_KEYS


def embedded(model: Any) -> int:
    """Tokens that `model` (which may stand in DeepSpeed's engine) puts before a text's embeddings: by so many places its hidden
    states and logits are longer than the text. 0 of a model without such an adapter."""
    config = _config(model)
    return 0 if config is None or config.peft_type in AS_KEYS else config.num_virtual_tokens


def cached(model: Any) -> int:
    """Tokens whose keys and values `model` puts into the attention's cache before a text. 0 of one without such an adapter."""
    config = _config(model)
    return config.num_virtual_tokens if config is not None and config.peft_type in AS_KEYS else 0


def _config(model: Any) -> Any | None:
    adapted = getattr(model, "module", model)
    config = getattr(adapted, "active_peft_config", None) if hasattr(adapted, "peft_config") else None
    return config if getattr(config, "is_prompt_learning", False) else None


def shifted(positions: torch.Tensor, length: int, tokens: int) -> torch.Tensor:
    """`positions`, counted through rows of `length`, where each row begins with so many further `tokens`."""
    if not tokens:
        return positions
    rows = positions.div(length, rounding_mode="floor")
    return positions + (rows + 1) * tokens


def before_each_text(model: Any, ids: torch.Tensor, lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (rows × (longest + tokens) × width) and mask of `ids` (rows × longest, padded on the left; each text has as many
    tokens as `lengths` says), the adapter's tokens right before each row's text. PEFT puts them before the padding, away from a
    short text, whose answer then depends on its neighbours in the batch."""
    texts = model.word_embeddings(ids)
    prompts = model.get_prompt(batch_size=len(ids)).to(texts.dtype)
    rows = [torch.cat((text[:-n], own, text[-n:])) for text, own, n in zip(texts, prompts, lengths, strict=True)]
    mask = torch.zeros((len(ids), rows[0].shape[0]), dtype=torch.long, device=ids.device)
    for row, length in zip(mask, lengths, strict=True):
        row[-(length + prompts.shape[1]) :] = 1
    return torch.stack(rows), mask
