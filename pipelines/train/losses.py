"""The completion's loss without the prompt's logits: the output head is applied to the wanted positions only."""
# ruff: noqa: TID253

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from pipelines.train.prompts import IGNORE, Tokenized


@contextmanager
def head_on_positions(model: Any) -> Iterator[list[torch.Tensor]]:
    """While open, the output head sees only the hidden states at the position mask (batch × length, bool) put into the
    yielded one-element list, so that logits are (positions × vocabulary) rather than (batch × length × vocabulary)."""
    wanted: list[torch.Tensor] = []
    head = model.get_output_embeddings()

    def gather(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][wanted[0]], *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield wanted
    finally:
        handle.remove()


def token_losses(model: Any, batch: Sequence[Tokenized], wanted: list[torch.Tensor], device: Any) -> torch.Tensor:
    """Negative log-likelihood (nats, float32) of every learned token of `batch`, row after row.

    Rows are padded on the right; under a causal mask no real token sees the padding, so no padding mask is needed.
    """
    longest = max(len(example) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full((len(batch), longest), IGNORE, dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : len(example)] = torch.tensor(example.input_ids)
        labels[row, : len(example)] = torch.tensor(example.labels)
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    positions = targets != IGNORE
    wanted[:] = [positions.to(device)]
    logits = model(input_ids=ids.to(device), use_cache=False).logits
    return functional.cross_entropy(logits.float(), targets[positions].to(device), reduction="none")


def scored_mask(batch: Sequence[Tokenized]) -> torch.Tensor:
    """Which of `token_losses` count in bits per byte: those of ordinary tokens."""
    flags = [s for example in batch for s, label in zip(example.scored, example.labels, strict=True) if label != IGNORE]
    return torch.tensor(flags, dtype=torch.bool)
