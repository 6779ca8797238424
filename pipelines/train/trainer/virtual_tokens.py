"""Virtual tokens that an adapter puts before every text.

They are embeddings (prompt tuning, P-tuning), or keys and values in the attention's cache (prefix
tuning). Losses, bits per byte and answers count only the text's own tokens, which merely move to
later positions.
"""
# ruff: noqa: TID253

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.settings.methods import AS_KEYS


def embedded(model: Any) -> int:
    """The number of tokens that `model` puts before a text's embeddings; 0 without such an adapter.

    Hidden states and logits are longer than the text by this number. `model` may be inside
    DeepSpeed's engine.
    """
    config = _config(model)
    return 0 if config is None or config.peft_type in AS_KEYS else config.num_virtual_tokens


def cached(model: Any) -> int:
    """The number of tokens whose keys and values `model` puts into the attention's cache; 0 without
    such an adapter."""
    config = _config(model)
    return config.num_virtual_tokens if config is not None and config.peft_type in AS_KEYS else 0


def _config(model: Any) -> Any | None:
    adapted = getattr(model, "module", model)
    config = getattr(adapted, "active_peft_config", None) if hasattr(adapted, "peft_config") else None
    return config if getattr(config, "is_prompt_learning", False) else None


def shifted(positions: torch.Tensor, length: int, tokens: int) -> torch.Tensor:
    """`positions`, counted through rows of `length`, after `tokens` more tokens were put before
    each row."""
    if not tokens:
        return positions
    rows = positions.div(length, rounding_mode="floor")
    return positions + (rows + 1) * tokens


def before_each_text(model: Any, ids: torch.Tensor, lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (rows × (longest + tokens) × width) and mask of `ids`, with the adapter's tokens
    before each text.

    `ids` are rows × longest, padded on the left; `lengths` are the lengths of the texts. PEFT puts
    the adapter's tokens before the padding, away from a short text. Its answer would then depend on
    its neighbours in the batch.
    """
    texts = model.word_embeddings(ids)
    prompts = model.get_prompt(batch_size=len(ids)).to(texts.dtype)
    rows = [torch.cat((text[:-n], own, text[-n:])) for text, own, n in zip(texts, prompts, lengths, strict=True)]
    mask = torch.zeros((len(ids), rows[0].shape[0]), dtype=torch.long, device=ids.device)
    for row, length in zip(mask, lengths, strict=True):
        row[-(length + prompts.shape[1]) :] = 1
    return torch.stack(rows), mask
