"""Fused LoRA: layers that read the same input share its dropout and one product with their A
matrices.

PEFT computes layer by layer: each does a dropout, two thin products, a scaling and a sum, and each
of these makes tensors and autograd nodes of its own. Here a group of layers with one input (query,
key and value; gate and up) is one autograd function, which adds to the frozen layer's output in
place. The backward pass keeps only the input, its mask and the rank-wide products x A.

Losses and gradients equal PEFT's. With dropout the layers of a group drop the same elements, each
with the same probability as in PEFT. Over a base in half precision the adapters compute in the
base's format, whereas PEFT makes a float32 copy of every layer's input. The adapters' own weights
and gradients stay float32.
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

# peft.tuners.lora.Linear and its kin.
Layer = Any


@dataclass
class Group:
    """Layers that read the same input. The first one computes the outputs of all; the later ones
    take theirs from `pending`."""

    layers: list[Layer]
    plain: list[Callable[..., torch.Tensor]]
    drop: float
    # The dtype of the inputs that the group computes. PEFT computes all others.
    dtype: torch.dtype
    pending: dict[int, torch.Tensor] = field(default_factory=dict)
    pending_input: torch.Tensor | None = None

    def forward(self, index: int, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output of layer `index`, adapter included."""
        if args or kwargs or not self._computes(x):
            return self.plain[index](x, *args, **kwargs)
        if self.pending_input is not x or index not in self.pending:
            self.pending, self.pending_input = dict(enumerate(self._outputs(x))), x
        output = self.pending.pop(index)
        if not self.pending:
            self.pending_input = None
        return output

    def _computes(self, x: torch.Tensor) -> bool:
        as_made = all(not layer.disable_adapters and not layer.merged for layer in self.layers)
        # ZeRO stage 3 divides a weight, which is then whole only while its own module computes.
        divided = any(hasattr(layer.get_base_layer().weight, "ds_id") for layer in self.layers)
        return as_made and not divided and x.dtype is self.dtype and not torch.is_autocast_enabled(x.device.type)

    def _outputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        drop = self.drop if self.layers[0].training else 0.0
        lora_weights = [weight for layer in self.layers for weight in _lora_weights(layer)]
        return _FusedLora.apply(x, self.layers, drop, *lora_weights)  # pyright: ignore[reportReturnType]


class _FusedLora(torch.autograd.Function):
    """y = x Wᵀ + b + s (x∘m) Aᵀ Bᵀ of every layer (Hu et al. 2021).

    m is the dropout mask of 0 and 1; s holds the adapter's scaling and dropout's 1 / (1 − p).
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, layers: list[Layer], drop: float, *lora_weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        mask = keep_mask(rows, drop) if drop else None
        dropped = rows if mask is None else rows * mask
        ctx.scales = [layer.scaling[_name(layer)] / kept_share(drop) for layer in layers]

        # One product x Aᵀ for all layers, split again by layer.
        lora_weights = tuple(weight.to(x.dtype) for weight in lora_weights)
        weights_A, weights_B = lora_weights[0::2], lora_weights[1::2]
        products_x_A = _split_columns(product(dropped, torch.cat(weights_A)), weights_A)

        # Each frozen layer's output; its adapter adds to it in place.
        outputs = []
        for layer, x_A, weight_B, scale in zip(layers, products_x_A, weights_B, ctx.scales, strict=True):
            base = layer.get_base_layer()
            bias = None if base.bias is None else base.bias.to(x.dtype)
            output = product(rows, weight_of(base, x.dtype), bias)
            outputs.append(output.addmm_(x_A, weight_B.t(), alpha=scale).view(*x.shape[:-1], len(weight_B)))

        ctx.layers, ctx.shape = layers, x.shape
        # Only A's gradient needs the input. LoRA-FA trains B alone, so it does not keep the input.
        needs_rows = any(ctx.needs_input_grad[3::2])
        ctx.save_for_backward(rows if needs_rows else None, mask, *products_x_A, *lora_weights)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        count = len(ctx.layers)
        rows, mask, *rest = ctx.saved_tensors
        products_x_A, weights_A, weights_B = rest[:count], rest[count::2], rest[count + 1 :: 2]
        grad_outputs = [g.reshape(-1, g.shape[-1]) for g in gradients]

        # Through B to x A, of all layers side by side.
        grads_x_A = [
            product(g, weight_B.t()).mul_(s) for g, weight_B, s in zip(grad_outputs, weights_B, ctx.scales, strict=True)
        ]
        grad_x_A = torch.cat(grads_x_A, dim=1)

        # The adapters' own weights; A's gradient is left out where the input was not kept.
        grads_B = [
            _float32_product(x_A.t(), g).mul_(s).t()
            for x_A, g, s in zip(products_x_A, grad_outputs, ctx.scales, strict=True)
        ]
        grads_A: Any = [None] * count
        if rows is not None:
            dropped = rows if mask is None else rows * mask
            grads_A = _float32_product(grad_x_A.t(), dropped).split([len(weight_A) for weight_A in weights_A])

        # The input: through the adapters and through the frozen layers.
        grad_x = (
            _grad_input(ctx, grad_outputs, product(grad_x_A, torch.cat(weights_A).t()), mask)
            if ctx.needs_input_grad[0]
            else None
        )
        grad_lora_weights = [grad for pair in zip(grads_A, grads_B, strict=True) for grad in pair]
        return grad_x, None, None, *grad_lora_weights


def _float32_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left` · `right`, as the gradient of a float32 weight."""
    return wide_product(left, right) if sums_in_float32(left) else (left @ right).float()


def _grad_input(
    ctx: Any, grad_outputs: list[torch.Tensor], grad_adapters: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The input's gradient: `grad_adapters`, which changes in place, plus that through the frozen
    layers."""
    total = grad_adapters if mask is None else grad_adapters.mul_(mask)
    for layer, grad_output in zip(ctx.layers, grad_outputs, strict=True):
        total = add_product(total, grad_output, weight_of(layer.get_base_layer(), grad_output.dtype).t())
    return total.view(ctx.shape)


def _split_columns(wide: torch.Tensor, weights_A: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return wide.split([len(weight_A) for weight_A in weights_A], dim=1)


def _name(layer: Layer) -> str:
    return layer.active_adapters[0]


def _lora_weights(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank × in) and B (out × rank)."""
    name = _name(layer)
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def weight_of(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The frozen weight (out × in) as `dtype`: the stored one, a transposed view (GPT-2), or
    unpacked from 4 bits.

    An unpacked weight is valid until the next one is unpacked.
    """
    # The stand-in layer of a memory rehearsal (`pipelines.estimate`).
    if hasattr(base, "unpacked"):
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
    """Whether `layer` is a LoRA layer in no group yet. AdaLoRA holds parameters where LoRA holds
    modules."""
    return isinstance(getattr(layer, "lora_A", None), nn.ModuleDict) and "forward" not in vars(layer)


def is_grouped(layer: Any) -> bool:
    """Whether `fuse` has put `layer` into a group."""
    own = vars(layer).get("forward")
    return isinstance(own, partial) and isinstance(getattr(own.func, "__self__", None), Group)


def _is_plain(layer: Layer, dtype: torch.dtype) -> bool:
    """Whether `layer` is plain LoRA (no DoRA): one float32 adapter without bias over a base that
    computes in `dtype`.

    `weight_of` must know the base's class.
    """
    base = layer.get_base_layer()
    if len(layer.lora_A) != 1 or layer.lora_variant or not _is_known(base, dtype):
        return False
    # PEFT's `bias: all` trains the base's bias.
    if any(parameter.requires_grad for parameter in base.parameters()):
        return False
    (name,) = layer.lora_A
    lora_B = layer.lora_B[name]
    return lora_B.bias is None and lora_B.weight.dtype is torch.float32


def fuse(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Make the adapters of `model`, a PEFT model whose base computes in `dtype`, compute in groups.

    Adapters of other kinds stay as they are.
    """
    for layers in _groups(model, dtype):
        (name,) = layers[0].lora_A
        drop = getattr(layers[0].lora_dropout[name], "p", 0.0)
        group = Group(layers, [layer.forward for layer in layers], drop, dtype)
        for index, layer in enumerate(layers):
            layer.forward = partial(group.forward, index)


def _groups(model: nn.Module, dtype: torch.dtype) -> Iterator[list[Layer]]:
    """The fusible layers of every module, grouped by the input they read."""
    for parent in model.modules():
        children = {n: c for n, c in parent.named_children() if _is_free(c) and _is_plain(c, dtype)}
        for names in ONE_INPUT:
            if together := [children.pop(name) for name in names if name in children]:
                yield together
        for layer in children.values():
            yield [layer]
