"""The matrix products of a training step on a CPU, by the faster of PyTorch's two libraries.

PyTorch multiplies float32 matrices by MKL. On processors that are not Intel's MKL runs its AVX2
code even if they have AVX-512. oneDNN, which PyTorch also contains, uses AVX-512 on every processor
that has it. It is twice as fast at SmolLM2's shapes on an AMD EPYC (`python -m benchmarks rate`).
The choice depends only on the processor, never on a timing. Results differ by float error between
the libraries; equal runs still end in equal bits.
"""
# ruff: noqa: TID253

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

# The number of prepared products, one per shape, in oneDNN's cache and in PyTorch's own cache above
# it. With their defaults of 1,024, SmolLM2's caches held 0.3 GB after 24 batches and were no
# faster.
KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
# oneDNN runs from this number of rows on. It was faster at every shape of SmolLM2's layers (1.1 to
# 2.4 ×). With a single row it was faster at only one shape of three.
FEWEST = 2


@cache
def onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 that MKL does not use, and this PyTorch contains
    oneDNN."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _by_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    fits = x.dtype is torch.float32 and weight.dtype is torch.float32 and x.device.type == "cpu"
    return fits and len(x) >= FEWEST and onednn_is_faster()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(rows × in) · (out × in)ᵀ + bias, without autograd. Either matrix may be a transposed
    view."""
    if _by_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def add_product(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`total` (rows × out) + (rows × in) · (out × in)ᵀ; `total` may change in place."""
    if _by_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise.binary(x, total, weight, None, "add")
    return total.addmm_(x, weight.t())


def sums_in_float32(matrix: torch.Tensor) -> bool:
    """Whether `matrix` is in half precision on a card that can multiply such matrices into a
    float32 result."""
    return matrix.device.type != "cpu" and matrix.dtype is not torch.float32 and _card_sums_in_float32(matrix.dtype)


@cache
def _card_sums_in_float32(dtype: torch.dtype) -> bool:
    ones = torch.ones(16, 16, dtype=dtype, device="cuda")
    try:
        result = wide_product(ones, ones, wide_product(ones, ones))
    except (RuntimeError, TypeError):
        return False
    return result.dtype is torch.float32 and bool((result == 32).all())


def wide_product(left: torch.Tensor, right: torch.Tensor, total: torch.Tensor | None = None) -> torch.Tensor:
    """`total` + `left` · `right` in float32, for matrices that `sums_in_float32` accepts.

    `total` may change in place; None counts as zero.
    """
    if total is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


class _Product(torch.autograd.Function):
    """x Wᵀ + b, with all products of the forward and backward pass by `product`."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        return product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        grad_output = grad_outputs[0]
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad
        grad_rows = product(grad_output, weight.t()) if needs_rows else None
        grad_weight = product(grad_output.t(), rows.t()) if needs_weight else None
        return grad_rows, grad_weight, grad_output.sum(0) if needs_bias else None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As torch.nn.functional.linear, gradients included. The result may change in place, as some
    adapters do."""
    output: Any = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return output.view(*x.shape[:-1], len(weight))


def use_faster_products(model: nn.Module) -> None:
    """Make the plain linear layers of `model` compute by `linear`, if that is faster on this
    processor.

    This includes GPT-2's transposed layers, but not the output head, which `chunked` computes.
    """
    if not onednn_is_faster():
        return
    for name, count in KEPT_PRODUCTS.items():
        os.environ.setdefault(name, count)
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D) and module is not head:
            module.forward = _forward_of(module)


def _forward_of(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    transposed, plain = isinstance(module, Conv1D), type(module).forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(x.device.type) or x.dtype is not torch.float32:
            return plain(module, x)
        return linear(x, module.weight.t() if transposed else module.weight, module.bias)

    return forward
