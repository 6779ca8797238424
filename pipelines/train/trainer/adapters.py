"""LoRA, a layer's adapters at once: layers that read the same input share its dropout and the product with it.

PEFT's layers compute one by one: dropout, two thin products, a scaling and a sum each, every one with tensors and autograd
nodes of its own. Here a group of layers with one input (query, key and value; gate and up) is one autograd function, which adds
into the frozen layer's output in place. Only the input, its mask and the rank-wide products are kept for the backward pass.
Losses and gradients equal PEFT's; with dropout the layers of a group drop the same elements, each with the same probability as
before. Over a base in half precision adapters compute in its format, too, where PEFT makes a float32 copy of every layer's input;
their own weights and gradients stay float32.
"""
# ruff: noqa: TID253

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pipelines.train.trainer.cpu import four_bits
from pipelines.train.trainer.cpu.dropout import keep_mask, kept_share
from pipelines.train.trainer.cpu.products import add_product, product, sums_in_float32, wide_product
from pipelines.train.trainer.fast_paths import ONE_INPUT

Layer = Any  # peft.tuners.lora.Linear and its kin


@dataclass
class Group:
    """Layers that read the same input. What the later ones will be asked for is computed with the first and held until then."""

    layers: list[Layer]
    plain: list[Callable[..., torch.Tensor]]
    drop: float
    dtype: torch.dtype  # of the input that it computes with; what comes in another is left to PEFT
    held: dict[int, torch.Tensor] = field(default_factory=dict)
    held_for: torch.Tensor | None = None

    def forward(self, index: int, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output of layer `index`, adapter included."""
        if args or kwargs or not self._computes(x):
            return self.plain[index](x, *args, **kwargs)
        if self.held_for is not x or index not in self.held:
            self.held, self.held_for = dict(enumerate(self._all(x))), x
        output = self.held.pop(index)
        if not self.held:
            self.held_for = None
        return output

    def _computes(self, x: torch.Tensor) -> bool:
        as_made = all(not layer.disable_adapters and not layer.merged for layer in self.layers)
        # by ZeRO: then a weight is whole only while its own module computes
        divided = any(hasattr(layer.get_base_layer().weight, "ds_id") for layer in self.layers)
        return as_made and not divided and x.dtype is self.dtype and not torch.is_autocast_enabled(x.device.type)

    def _all(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        drop = self.drop if self.layers[0].training else 0.0
        thin = [weight for layer in self.layers for weight in _adapter(layer)]
        return _Adapted.apply(x, self.layers, drop, *thin)  # pyright: ignore[reportReturnType]


class _Adapted(torch.autograd.Function):
    """y = x Wᵀ + b + s (x∘m) Aᵀ Bᵀ of every layer (Hu et al. 2021); m is 0 or 1, s holds dropout's 1 / (1 − p)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layers: list[Layer], drop: float, *thin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        mask = keep_mask(rows, drop) if drop else None
        dropped = rows if mask is None else rows * mask
        ctx.scales = [layer.scaling[_name(layer)] / kept_share(drop) for layer in layers]
        thin = tuple(weight.to(x.dtype) for weight in thin)
        downs, ups = thin[0::2], thin[1::2]
        lows = _columns(product(dropped, torch.cat(downs)), downs)
        outputs = []
        for layer, low, up, scale in zip(layers, lows, ups, ctx.scales, strict=True):
            base = layer.get_base_layer()
            bias = None if base.bias is None else base.bias.to(x.dtype)
            output = product(rows, weight_of(base, x.dtype), bias)
            outputs.append(output.addmm_(low, up.t(), alpha=scale).view(*x.shape[:-1], len(up)))
        ctx.layers, ctx.shape = layers, x.shape
        needs_rows = any(ctx.needs_input_grad[3::2])  # LoRA-FA trains B alone, and the input is only for A's gradient
        ctx.save_for_backward(rows if needs_rows else None, mask, *lows, *thin)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        count = len(ctx.layers)
        rows, mask, *rest = ctx.saved_tensors
        lows, downs, ups = rest[:count], rest[count::2], rest[count + 1 :: 2]
        grad_outputs = [g.reshape(-1, g.shape[-1]) for g in gradients]
        of_lows = [product(g, up.t()).mul_(s) for g, up, s in zip(grad_outputs, ups, ctx.scales, strict=True)]
        of_low = torch.cat(of_lows, dim=1)
        of_ups = [_in_float32(low.t(), g).mul_(s).t() for low, g, s in zip(lows, grad_outputs, ctx.scales, strict=True)]
        of_downs: Any = [None] * count
        if rows is not None:
            dropped = rows if mask is None else rows * mask
            of_downs = _in_float32(of_low.t(), dropped).split([len(down) for down in downs])
        of_x = (
            _of_input(ctx, grad_outputs, product(of_low, torch.cat(downs).t()), mask)
            if ctx.needs_input_grad[0]
            else None
        )
        of_thin = [gradient for pair in zip(of_downs, of_ups, strict=True) for gradient in pair]
        return of_x, None, None, *of_thin


def _in_float32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left` · `right`, as the gradient of a float32 weight."""
    return wide_product(left, right) if sums_in_float32(left) else (left @ right).float()


def _of_input(
    ctx: Any, grad_outputs: list[torch.Tensor], adapters: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The input's gradient: through the adapters (changed in place) and through the frozen layers."""
    total = adapters if mask is None else adapters.mul_(mask)
    for layer, grad_output in zip(ctx.layers, grad_outputs, strict=True):
        total = add_product(total, grad_output, weight_of(layer.get_base_layer(), grad_output.dtype).t())
    return total.view(ctx.shape)


def _columns(wide: torch.Tensor, downs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return wide.split([len(down) for down in downs], dim=1)


def _name(layer: Layer) -> str:
    return layer.active_adapters[0]


def _adapter(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank × in) and B (out × rank)."""
    name = _name(layer)
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def weight_of(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The frozen weight (out × in), which is kept as `dtype`: as it lies, transposed (GPT-2), or unpacked from 4 bits for this
    product, until the next."""
    if hasattr(base, "unpacked"):  # a rehearsal's
        return base.unpacked()
    if isinstance(base, Conv1D):
        return base.weight.t()
    if type(base) is nn.Linear:
        return base.weight
    return four_bits.unpack(base.weight, dtype)


def _is_known(base: Any, dtype: torch.dtype) -> bool:
    if type(base) in (nn.Linear, Conv1D):
        return base.weight.dtype is dtype
    four_bit = any(kind.__name__ == "Linear4bit" for kind in type(base).__mro__)
    return four_bit and base.compute_dtype in (None, dtype)


def _is_free(layer: Any) -> bool:
    """Whether it is an adapter of LoRA's (AdaLoRA keeps parameters where LoRA has layers) that is in no group yet."""
    return isinstance(getattr(layer, "lora_A", None), nn.ModuleDict) and "forward" not in vars(layer)


def is_grouped(layer: Any) -> bool:
    """Whether it computes in a group of `fuse`."""
    own = vars(layer).get("forward")
    return isinstance(own, partial) and isinstance(getattr(own.func, "__self__", None), Group)


def _is_plain(layer: Layer, dtype: torch.dtype) -> bool:
    """LoRA alone (no DoRA), one adapter without bias, in float32, over a layer that `weight_of` knows and that computes in
    `dtype`."""
    base = layer.get_base_layer()
    if len(layer.lora_A) != 1 or layer.lora_variant or not _is_known(base, dtype):
        return False
    if any(parameter.requires_grad for parameter in base.parameters()):  # PEFT's `bias: all`
        return False
    (name,) = layer.lora_A
    up = layer.lora_B[name]
    return up.bias is None and up.weight.dtype is torch.float32


def fuse(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Let the adapters of `model` (a PEFT model whose base computes in `dtype`) compute in groups; those of another kind stay as
    they are."""
    for layers in _groups(model, dtype):
        (name,) = layers[0].lora_A
        drop = getattr(layers[0].lora_dropout[name], "p", 0.0)
        group = Group(layers, [layer.forward for layer in layers], drop, dtype)
        for index, layer in enumerate(layers):
            layer.forward = partial(group.forward, index)


def _groups(model: nn.Module, dtype: torch.dtype) -> Iterator[list[Layer]]:
    """The fusible layers of every module, those that read one input together."""
    for parent in model.modules():
        children = {n: c for n, c in parent.named_children() if _is_free(c) and _is_plain(c, dtype)}
        for names in ONE_INPUT:
            if together := [children.pop(name) for name in names if name in children]:
                yield together
        for layer in children.values():
            yield [layer]
