"""Matrix products of a step on a CPU by the faster of the two libraries in PyTorch.

PyTorch multiplies float32 matrices by MKL, which runs its AVX2 code on a processor that is not Intel's, also where that has
AVX-512. oneDNN, which PyTorch holds too, does not ask who made it: twice the speed at SmolLM2's shapes on an AMD EPYC
(`python -m benchmarks rate`). Results differ by float error; equal runs still end in equal bits.
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

# How many products, one for every shape, oneDNN and PyTorch's own cache above it keep ready. Of the 1,024 that each would keep by
# itself SmolLM2's held 0.3 GB after 24 batches, and were no faster.
KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
FEWEST = 2  # rows: from there on oneDNN was faster at every shape of SmolLM2's layers (1.1 to 2.4 ×); with one, at one of three


@cache
def onednn_is_faster() -> bool:
    """Whether this is a processor with AVX-512 that MKL does not use, and this PyTorch holds oneDNN."""
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
    """(rows × in) · (out × in)ᵀ + bias, without a gradient of its own. Either may be a transposed view."""
    if _by_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def add_product(total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`total` (rows × out) + (rows × in) · (out × in)ᵀ; `total` may be changed."""
    if _by_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise.binary(x, total, weight, None, "add")
    return total.addmm_(x, weight.t())


def sums_in_float32(matrix: torch.Tensor) -> bool:
    """Whether the device of `matrix`, in half precision, multiplies such matrices into a float32 one."""
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
    """`total` (float32, may be changed; None: nothing yet) + `left` · `right`, where `sums_in_float32`."""
    if total is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


class _Product(torch.autograd.Function):
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
    """As torch.nn.functional.linear, gradients included. What comes of it may be changed in place, as some adapters do."""
    output: Any = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return output.view(*x.shape[:-1], len(weight))


def use_faster_products(model: nn.Module) -> None:
    """Let the plain linear layers of `model` (also GPT-2's transposed ones) compute by `linear`, where that is faster; not its
    output head, which `chunked` computes."""
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
