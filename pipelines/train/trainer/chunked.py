"""Output head and cross-entropy in one function, computed piece by piece over the positions, with
gradients.

Plain autograd keeps the logits, their log-softmax and their gradient at once: 3 × 4 bytes ×
positions × vocabulary. Here a piece's logits turn into their own gradient in place before the next
piece is computed. So memory holds one piece at a time, and no product is computed twice. This is
the idea of Liger-Kernel's fused linear cross-entropy and of "Cut Your Losses" (Wijmans et al.
2024), in plain PyTorch.
"""
# ruff: noqa: TID253

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from pipelines.train.trainer.cpu.products import product, sums_in_float32, wide_product
from pipelines.train.trainer.fast_paths import known_of

# The float32 logits of a piece on a CPU: enough rows for a fast product, little compared with a
# model's activations.
PIECE_BYTES = 64 * 2**20
# A card reads the head's weight again for every piece, so pieces are larger there: this fraction of
# the card's memory for the logits. With its half-precision gradients and temporary values a piece
# takes about twice that.
PARTS_OF_CARD = 30
# More rows do not make a card's product faster.
MOST_ROWS = 2048


def plain_head(model: Any) -> nn.Linear | None:
    """The output head, if it is a linear layer without bias or adapter whose output are the logits
    up to soft-capping.

    None for any other head: then the model's own forward pass must compute the logits.
    """
    head = model.get_output_embeddings()
    # ZeRO stage 3 divides a weight, which is then whole only while its own module computes.
    divided = hasattr(head.weight, "ds_id")
    return head if known_of(model).head and type(head) is nn.Linear and head.bias is None and not divided else None


def soft_cap(model: Any) -> float | None:
    """Gemma 2's bound on logits: cap × tanh(logits / cap)."""
    return getattr(_config(model), "final_logit_softcapping", None)


def _config(model: Any) -> Any:
    # DeepSpeed's engine around a model has a config of its own.
    return getattr(model, "module", model).config


def rows_on_card(vocabulary: int, memory: int) -> int:
    """Positions per piece on a card with `memory` bytes: a multiple of 64, at most MOST_ROWS."""
    rows = memory // PARTS_OF_CARD // (4 * vocabulary)
    return min(MOST_ROWS, max(64, rows // 64 * 64))


def rows_of_piece(vocabulary: int, device: torch.device) -> int:
    """Positions per piece: the number of rows of logits in memory at once."""
    if device.type == "cpu":
        return max(16, PIECE_BYTES // (4 * vocabulary))
    return rows_on_card(vocabulary, _usable_bytes(device))


def _usable_bytes(device: torch.device) -> int:
    """The card's memory that a memory budget leaves to this process."""
    card = torch.cuda.current_device() if device.index is None else device.index
    share = torch.cuda.get_per_process_memory_fraction(card)
    return int(share * torch.cuda.get_device_properties(card).total_memory)


def _pieces(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    size = rows_of_piece(vocabulary, device)
    return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]


def logits_of(hidden: torch.Tensor, weight: torch.Tensor, cap: float | None) -> torch.Tensor:
    """(rows × vocabulary) float32 logits of (rows × width) hidden states."""
    logits = product(hidden, weight).float()
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


class _SummedLoss(torch.autograd.Function):
    """`summed_loss`, which computes its gradients in the forward pass, for a loss that is only
    scaled afterwards."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None, share: float
    ) -> torch.Tensor:
        kind = hidden.device.type
        casts = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if casts else hidden.dtype
        inputs, head = hidden.to(dtype), weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = None

        # A logit's gradient lies between -1 and 1. Times `share`, which may be one in thousands, it
        # would underflow in float16 before the loss is scaled. In half precision the share is
        # applied later, together with that scale.
        share_now, ctx.share_later = (share, 1.0) if dtype is torch.float32 else (1.0, share)
        total = hidden.new_zeros((), dtype=torch.float32)

        # One piece at a time: its logits, its loss, then its part of both gradients. Autocast is
        # off, since each product names its own format.
        with torch.autocast(kind, enabled=False) if casts else nullcontext():
            for piece in _pieces(len(targets), len(weight), hidden.device):
                logits = logits_of(inputs[piece], head, cap)
                total += _loss_into_gradient(logits, targets[piece], cap) * share
                grad_logits = (logits if share_now == 1 else logits.mul_(share_now)).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[piece] = product(grad_logits, head.t())
                if ctx.needs_input_grad[1]:
                    grad_weight = _add_grad_weight(grad_weight, logits, grad_logits, inputs[piece])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The incoming gradient is the loss scale: 1, or float16's.
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0].float() * ctx.share_later
        # Only on a CPU: reading the scale of a card would make the host wait.
        if scale.device.type == "cpu" and scale.item() == 1:
            return grad_hidden, grad_weight, None, None, None
        grad_hidden = None if grad_hidden is None else (grad_hidden.float() * scale).to(grad_hidden.dtype)
        grad_weight = None if grad_weight is None else grad_weight.mul_(scale)
        return grad_hidden, grad_weight, None, None, None


def _add_grad_weight(
    total: torch.Tensor | None, logits: torch.Tensor, grad_logits: torch.Tensor, inputs: torch.Tensor
) -> torch.Tensor:
    """`total` + grad_logitsᵀ · inputs: the gradient of the head's weight, summed in float32 over
    the pieces.

    `logits` hold the float32 gradients by now, and `grad_logits` the same in the format of
    `inputs`. `total` may change in place; it is None before the first piece.
    """
    if sums_in_float32(grad_logits):
        return wide_product(grad_logits.t(), inputs, total)
    grad = product(logits.t(), inputs.float().t())
    return grad if total is None else total.add_(grad)


def _loss_into_gradient(logits: torch.Tensor, targets: torch.Tensor, cap: float | None) -> torch.Tensor:
    """The summed negative log-likelihood; `logits` turn in place into its gradient by the head's
    output.

    That gradient is softmax minus one at the target, times the soft cap's derivative 1 − (logits /
    cap)².
    """
    rows = torch.arange(len(targets), device=targets.device)
    cap_grad = None if cap is None else (logits / cap).square_().neg_().add_(1)
    normalizer = logits.logsumexp(dim=-1)
    loss = (normalizer - logits[rows, targets]).sum()
    logits.sub_(normalizer[:, None]).exp_()
    logits[rows, targets] -= 1
    if cap_grad is not None:
        logits.mul_(cap_grad)
    return loss


def summed_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, cap: float | None, share: float
) -> torch.Tensor:
    """`share` × Σ negative log-likelihood (nats) of `targets` (rows).

    `hidden` is rows × width, the head's `weight` vocabulary × width. The gradient is computed at
    once, so the caller may scale the result but must not transform it otherwise.
    """
    return _SummedLoss.apply(hidden, weight, targets, cap, share)  # pyright: ignore[reportReturnType]


def losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, cap: float | None) -> torch.Tensor:
    """Negative log-likelihood (nats, float32) of every target, without gradients."""
    pieces = []
    for piece in _pieces(len(targets), len(weight), hidden.device):
        logits = logits_of(hidden[piece], weight, cap)
        pieces.append(nn.functional.cross_entropy(logits, targets[piece], reduction="none"))
    return torch.cat(pieces)
