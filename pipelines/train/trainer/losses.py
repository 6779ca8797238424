"""The completion's loss without the prompt's logits: the output head runs on the learned positions
only."""
# ruff: noqa: TID253

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from pipelines.train.trainer import chunked, virtual_tokens
from pipelines.train.trainer.attention import causal
from pipelines.train.trainer.examples import IGNORE, Tokenized


@dataclass(frozen=True)
class Inputs:
    """A micro-batch on its device.

    `ids` are rows × longest, padded on the right. `positions` are those that learn, counted through
    all rows (of rows × longest). `targets` holds the token to learn at each position.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


# The examples of one micro-batch, or their tensors.
Batch = Sequence[Tokenized] | Inputs


@contextmanager
def head_on_positions(model: Any) -> Iterator[list[torch.Tensor]]:
    """Inside the context the output head gets only the hidden states at certain positions.

    The caller puts these positions (`Inputs.positions`) into the yielded one-element list. Logits
    are then positions × vocabulary rather than batch × length × vocabulary.
    """
    positions: list[torch.Tensor] = []
    head = model.get_output_embeddings()

    def gather(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions[0]), *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield positions
    finally:
        handle.remove()


def put_on(device: torch.device, micro_batches: Sequence[Sequence[Tokenized]]) -> list[Inputs]:
    """The inputs of each micro-batch on `device`. All tensors travel in one copy, and the host does
    not wait for it."""
    parts = [part for batch in micro_batches for part in _on_host(batch)]
    if not parts:
        return []
    flat = torch.cat([part.flatten() for part in parts])
    if device.type != "cpu":
        flat = flat.pin_memory()
    pieces = flat.to(device, non_blocking=True).split([part.numel() for part in parts])
    tensors = [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
    return [Inputs(*fields) for fields in zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True)]


def _on_host(batch: Sequence[Tokenized]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fields of `Inputs` in their order."""
    longest = max(len(example) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full((len(batch), longest), IGNORE, dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : len(example)] = torch.tensor(example.input_ids)
        labels[row, : len(example)] = torch.tensor(example.labels)
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
    positions = (targets != IGNORE).nonzero().squeeze(1)
    return ids, positions, targets[positions]


def token_losses(model: Any, batch: Batch, positions: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Negative log-likelihood (nats, float32) of every learned token of `batch`, row after row.

    With gradients off, the logits are computed piece by piece. Rows are padded on the right: under
    a causal mask no real token sees the padding, so no padding mask is needed.
    """
    inputs = _inputs_and_positions(model, batch, positions, device)
    head = None if torch.is_grad_enabled() else chunked.plain_head(model)
    if head is None:
        logits = _forward(model, inputs.ids).logits
        return functional.cross_entropy(logits.float(), inputs.targets, reduction="none")
    hidden = _hidden(model, head, inputs.ids)
    return chunked.losses(hidden, head.weight, inputs.targets, cap=chunked.soft_cap(model))


def step_loss(
    model: Any, batch: Batch, positions: list[torch.Tensor], device: torch.device, *, learned: float
) -> torch.Tensor:
    """Σ of `token_losses` / `learned`, for a backward pass.

    With a head that `chunked` knows, the gradient is computed piece by piece; otherwise by plain
    autograd.
    """
    head = chunked.plain_head(model)
    if head is None:
        return token_losses(model, batch, positions, device).sum() / learned
    inputs = _inputs_and_positions(model, batch, positions, device)
    hidden = _hidden(model, head, inputs.ids)
    return chunked.summed_loss(hidden, head.weight, inputs.targets, cap=chunked.soft_cap(model), share=1 / learned)


def _inputs_and_positions(model: Any, batch: Batch, positions: list[torch.Tensor], device: torch.device) -> Inputs:
    """The inputs of `batch`. Their positions, as `model` counts them, go into `positions`."""
    inputs = batch if isinstance(batch, Inputs) else put_on(device, [batch])[0]
    positions[:] = [virtual_tokens.shifted(inputs.positions, inputs.ids.shape[1], virtual_tokens.embedded(model))]
    return inputs


def _forward(model: Any, ids: torch.Tensor) -> Any:
    # Every token of the text also sees the adapter's tokens in the cache, so a plain causal mask
    # would be wrong.
    in_cache = virtual_tokens.cached(model) > 0
    with nullcontext() if in_cache else causal(model, ids.device):
        return model(input_ids=ids, use_cache=False)


def _hidden(model: Any, head: Any, ids: torch.Tensor) -> torch.Tensor:
    """The head's input (positions × width).

    The head itself is bypassed: whatever the model does to the logits afterwards then happens to
    this small tensor, and the result is dropped.
    """
    captured: list[torch.Tensor] = []

    def pass_by(hidden: torch.Tensor) -> torch.Tensor:
        captured.append(hidden)
        return hidden.detach()

    head.forward = pass_by
    try:
        _forward(model, ids)
    finally:
        del head.forward
    return captured[0]


def scored_mask(batch: Sequence[Tokenized]) -> torch.Tensor:
    """The mask of the `token_losses` that count in bits per byte: those of ordinary tokens."""
    flags = [s for example in batch for s, label in zip(example.scored, example.labels, strict=True) if label != IGNORE]
    return torch.tensor(flags, dtype=torch.bool)
