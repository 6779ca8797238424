"""The gated unit of Llama-like models, act(gate) × up (Shazeer 2020), on a CPU in float32.

It keeps two wide tensors for the backward pass, whereas autograd keeps three: the activation is
computed again.
"""
# ruff: noqa: TID253

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipelines.train.trainer.fast_paths import known_of

Tensor = torch.Tensor


def _silu(gate: Tensor) -> Tensor:
    return functional.silu(gate)


def _gelu(gate: Tensor) -> Tensor:
    return functional.gelu(gate, approximate="tanh")


GRADIENTS: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    _silu: torch.ops.aten.silu_backward,
    _gelu: lambda grad_output, gate: torch.ops.aten.gelu_backward(grad_output, gate, approximate="tanh"),
}


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        grad_up = ctx.act(gate).mul_(grad_outputs[0])
        return GRADIENTS[ctx.act](grad_outputs[0] * up, gate), grad_up, None


def use_lean_gates(model: nn.Module) -> None:
    """Make the gated units of `model` keep less, if its architecture is known."""
    gates = known_of(model).gates
    for module in model.modules():
        if type(module).__name__ == gates and (act := _activation(module)):
            module.forward = _forward_of(module, act)


def _activation(module: Any) -> Callable[[Tensor], Tensor] | None:
    kinds = {"SiLUActivation": _silu, "SiLU": _silu, "GELUTanh": _gelu, "PytorchGELUTanh": _gelu}
    return kinds.get(type(module.act_fn).__name__)


def _forward_of(module: Any, act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    plain = type(module).forward

    def forward(x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) or x.dtype is not torch.float32:
            return plain(module, x)
        return module.down_proj(_Gated.apply(module.gate_proj(x), module.up_proj(x), act))

    return forward
