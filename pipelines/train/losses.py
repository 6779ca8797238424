"""The completion's loss without the prompt's logits: the output head is applied to the wanted positions only."""
# ruff: noqa: TID253

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from pipelines.train import chunked
from pipelines.train.examples import IGNORE, Tokenized


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
    """Negative log-likelihood (nats, float32) of every learned token of `batch`, row after row; where gradients are off, a
    piece of the logits at a time.

    Rows are padded on the right; under a causal mask no real token sees the padding, so no padding mask is needed.
    """
    ids, targets = _inputs(batch, wanted, device)
    head = None if torch.is_grad_enabled() else chunked.plain_head(model)
    if head is None:
        logits = model(input_ids=ids, use_cache=False).logits
        return functional.cross_entropy(logits.float(), targets, reduction="none")
    return chunked.losses(_hidden(model, head, ids), head.weight, targets, cap=chunked.soft_cap(model))


def step_loss(
    model: Any, batch: Sequence[Tokenized], wanted: list[torch.Tensor], device: Any, *, learned: float
) -> torch.Tensor:
    """Σ of `token_losses` / `learned`, for a backward pass: with a head that `chunked` knows, its gradient is made a piece at
    a time; otherwise by plain autograd."""
    head = chunked.plain_head(model)
    if head is None:
        return token_losses(model, batch, wanted, device).sum() / learned
    ids, targets = _inputs(batch, wanted, device)
    hidden = _hidden(model, head, ids)
    return chunked.summed_loss(hidden, head.weight, targets, cap=chunked.soft_cap(model), share=1 / learned)


def _inputs(batch: Sequence[Tokenized], wanted: list[torch.Tensor], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows × longest) and the targets at the positions that learn, which are put into `wanted`."""
    longest = max(len(example) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full((len(batch), longest), IGNORE, dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : len(example)] = torch.tensor(example.input_ids)
        labels[row, : len(example)] = torch.tensor(example.labels)
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    positions = targets != IGNORE
    wanted[:] = [positions.to(device)]
    return ids.to(device), targets[positions].to(device)


def _hidden(model: Any, head: Any, ids: torch.Tensor) -> torch.Tensor:
    """What the head would get (positions × width). It is passed by, so that whatever the model does to its output afterwards
    is done to something small and dropped."""
    caught: list[torch.Tensor] = []

    def pass_by(hidden: torch.Tensor) -> torch.Tensor:
        caught.append(hidden)
        return hidden.detach()

    head.forward = pass_by
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        del head.forward
    return caught[0]


def scored_mask(batch: Sequence[Tokenized]) -> torch.Tensor:
    """Which of `token_losses` count in bits per byte: those of ordinary tokens."""
    flags = [s for example in batch for s, label in zip(example.scored, example.labels, strict=True) if label != IGNORE]
    return torch.tensor(flags, dtype=torch.bool)
