"""LoRA's dropout at less than half its cost on a CPU: it draws 64 random bits at a time and reads
16-bit numbers.

torch draws one float per element on a CPU, which took a quarter of a LoRA step. The dropped share
is exact to 1/65536, and the stored mask takes one byte per element rather than four.
"""
# ruff: noqa: TID253

from typing import Any

import torch
from torch import nn

LEVELS = 2**16


def keep_mask(like: torch.Tensor, drop: float) -> torch.Tensor:
    """A bool mask shaped like `like`, each element True with probability 1 - round(`drop` × 65536)
    / 65536."""
    # A card draws all elements at once.
    if like.device.type != "cpu":
        return torch.empty(like.shape, dtype=torch.bool, device=like.device).bernoulli_(kept_share(drop))
    count = like.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    numbers = bits.view(torch.int16)[:count].view(like.shape)
    return numbers >= round(drop * LEVELS) - LEVELS // 2


def kept_share(drop: float) -> float:
    """The probability with which `keep_mask` keeps an element."""
    return 1 - round(drop * LEVELS) / LEVELS


class _Apply(torch.autograd.Function):
    """Inverted dropout, which keeps only the mask for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, drop: float) -> torch.Tensor:
        mask = keep_mask(x, drop)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / kept_share(drop)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (grad_outputs[0] * mask).mul_(ctx.scale), None


class CheapDropout(nn.Module):
    """Inverted dropout with probability `p`; the identity in eval mode, like torch.nn.Dropout."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Apply.apply(x, self.p) if self.training else x  # pyright: ignore[reportReturnType]


def make_cheap(model: nn.Module) -> None:
    """Replace torch's dropout by the cheap one in every adapter of `model`, a PEFT model on a
    CPU."""
    for module in model.modules():
        adapters: Any = getattr(module, "lora_dropout", {})
        for name, dropout in adapters.items():
            if isinstance(dropout, nn.Dropout):
                adapters[name] = CheapDropout(dropout.p)
