"""A model without bytes: built on the meta device from its configuration, as the trainer would load it, then given fake tensors
that claim to lie on a CPU. Quantized layers keep what bitsandbytes keeps, and compute as it does."""
# ruff: noqa: TID253

from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from pipelines.train import loading

BLOCK, NESTED_BLOCK = 64, 256  # weights an absmax, absmax values a second absmax: bitsandbytes' defaults for 4 bits


@dataclass(frozen=True)
class State:
    """Stands for bitsandbytes' QuantState."""

    shape: torch.Size


def build(config: Any, recipe: dict[str, Any], dtype: torch.dtype, fake: FakeTensorMode) -> Any:
    """The model of `recipe` on fake tensors, its adapter on top where it has one."""
    attention = {} if recipe["attention"] == "auto" else {"attn_implementation": recipe["attention"]}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)
        if recipe["quantization"]:
            quantize(model, recipe["quantization"], dtype)
        if recipe["kind"] == "lora":
            model = loading.add_adapter(model, recipe)
    if recipe["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with fake:
        _give_fake_tensors(model)
    return model


def quantize(model: Any, kind: str, dtype: torch.dtype) -> None:
    """Replace the layers that transformers would load in 4 bits, on the meta device."""
    asked = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), asked)
    model.is_loaded_in_4bit = True
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.__class__ = HollowLinear4bit
            module.weight.quant_state = State(module.weight.shape)  # pyright: ignore[reportAttributeAccessIssue]


def quantized_bytes(weights: int) -> int:
    """Bytes of so many weights in 4 bits with double quantization: half a byte each, a byte for every 64, four for every 256
    of those (Dettmers et al. 2023, section 3; `bitsandbytes.functional.quantize_4bit`)."""
    blocks = -(-weights // BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // NESTED_BLOCK)


class HollowLinear4bit(Linear4bit):
    """Computes as `bitsandbytes.autograd.MatMul4Bit` does: the weight is unpacked for each product, either way, and dropped."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: Any = self.weight
        out = _Matmul4Bit.apply(x.to(self.compute_dtype or x.dtype), weight, self.bias, weight.quant_state.shape)
        return out.to(x.dtype)  # pyright: ignore[reportAttributeAccessIssue]


class _Matmul4Bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: Any, shape: torch.Size) -> torch.Tensor:
        ctx.shape, ctx.device = shape, packed.device
        return nn.functional.linear(x, _unpacked(shape, x), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0] @ _unpacked(ctx.shape, gradients[0]), None, None, None


def _unpacked(shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
    absmax = torch.empty(-(-shape.numel() // BLOCK), dtype=torch.float32, device=like.device)  # dequantized first
    weight = torch.empty(shape, dtype=like.dtype, device=like.device)
    del absmax
    return weight


def _give_fake_tensors(model: nn.Module) -> None:
    """In place of every meta parameter and buffer; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = made.setdefault(id(parameter), _fake_parameter(module, name, parameter))  # pyright: ignore[reportArgumentType]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _fake_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
    if isinstance(module, HollowLinear4bit) and name == "weight":
        size = quantized_bytes(parameter.numel())
        packed: Any = nn.Parameter(torch.empty((size, 1), dtype=torch.uint8, device="cpu"), requires_grad=False)
        packed.quant_state = State(parameter.quant_state.shape)  # pyright: ignore[reportAttributeAccessIssue]
        return packed
    data = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
    return nn.Parameter(data, requires_grad=parameter.requires_grad)
