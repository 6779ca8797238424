"""A model without bytes: built on the meta device from its configuration as the trainer would load
it, then put on fake CPU tensors.

Quantized layers keep the same tensors as bitsandbytes and compute as it does.
"""
# ruff: noqa: TID253

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from peft.tuners.lora import dora
from torch import nn
from torch._subclasses.fake_impls import register_op_impl
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from pipelines.errors import UnavailableError
from pipelines.settings.methods import traits_of
from pipelines.train.trainer import loading
from pipelines.train.trainer.cpu.four_bits import Scratch
from pipelines.train.trainer.gated import use_lean_gates

# The dictionaries in which a module registers parameters and buffers.
REGISTERED = ("_parameters", "_buffers")
# Weights per absmax, and absmax values per second absmax: bitsandbytes' defaults for 4 bits.
BLOCK, NESTED_BLOCK = 64, 256


if torch.backends.mkldnn.is_available():

    @torch.library.register_fake("mkldnn::_linear_pointwise.binary")
    def _shape_of_sum(x: Any, other: torch.Tensor, weight: Any, bias: Any, attr: str) -> torch.Tensor:
        """The shape of a fused product that PyTorch has no fake implementation for."""
        return torch.empty_like(other)


@register_op_impl(torch.ops.aten.sparse_mask.default)
def _masked(fake: FakeTensorMode, func: Any, dense: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The gradient of a sparse tensor such as SHiRA's has as many values as the tensor;
    PyTorch's fake one has none."""
    with fake:
        values = torch.empty(mask._values().shape, dtype=dense.dtype, device=dense.device)
        return torch.sparse_coo_tensor(mask._indices(), values, mask.shape)


def build(
    config: Any, recipe: dict[str, Any], dtype: torch.dtype, fake: FakeTensorMode, *, on_card: bool = False
) -> Any:
    """The model of `recipe` on fake tensors, with its adapter if it has one.

    `on_card`: built as `loading` does it for a card; the tensors then stand for the card's.
    """
    model = _base(config, recipe, dtype, on_card=on_card)
    if traits_of(recipe).has_adapter:
        for_card = dtype if on_card else None
        try:
            with torch.device("meta"):
                model = _adapted(model, recipe, for_card)
        except UnavailableError:
            # Packed weights cannot be replaced by invented values.
            if recipe["quantization"]:
                raise
            # Some adapters of PEFT or PyTorch read values when they are initialized, and a meta
            # tensor has none.
            model = _base(config, recipe, dtype, on_card=on_card)
            give_tensors(model)
            model = _adapted(model, recipe, for_card)
    if recipe["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with fake:
        give_tensors(model)
    return model


def _adapted(base: Any, recipe: dict[str, Any], for_card: torch.dtype | None) -> Any:
    """`base` with its adapter.

    `replaced_bytes` counts the bytes of the base's weights that the adapter replaced when it was
    initialized.
    """
    before = [(parameter, parameter.untyped_storage()) for parameter in base.parameters()]
    model = loading.add_adapter(base, recipe, for_card=for_card)
    others = [storage for parameter, storage in before if parameter.untyped_storage()._cdata != storage._cdata]
    model.replaced_bytes = sum(storage.nbytes() for storage in others)
    return model


def _base(config: Any, recipe: dict[str, Any], dtype: torch.dtype, *, on_card: bool) -> Any:
    """The model of `recipe` without its adapter, on the meta device."""
    attention = {} if recipe["attention"] == "auto" else {"attn_implementation": recipe["attention"]}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)
        if not on_card:
            use_lean_gates(model)
        if recipe["quantization"]:
            quantize(model, recipe, dtype)
    return model


def quantize(model: Any, recipe: dict[str, Any], dtype: torch.dtype) -> None:
    """Replace the layers that transformers would quantize while loading, on the meta device."""
    eight, double = recipe["quantization"] == "int8", recipe.get("double_quantization")
    four: dict[str, Any] = {} if eight else {
        "bnb_4bit_quant_type": recipe["quantization"],
        "bnb_4bit_use_double_quant": double is not False,
        "bnb_4bit_compute_dtype": dtype,
    }  # fmt: skip
    settings = BitsAndBytesConfig(load_in_8bit=eight, load_in_4bit=not eight, **four)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), settings)
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = eight, not eight
    scratch = Scratch()
    for module in model.modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            _make_hollow(module, recipe, scratch)
            # A bias is loaded in the format of the weights that are not quantized.
            if module.bias is not None:
                module.bias.data = module.bias.data.to(dtype)


def _make_hollow(module: Any, recipe: dict[str, Any], scratch: Scratch) -> None:
    count = module.in_features * module.out_features
    if recipe["quantization"] == "int8":
        module.__class__, module.kept_bytes = HollowLinear8bit, count + 4 * module.out_features
    else:
        size = four_bit_bytes(count, double=recipe.get("double_quantization") is not False)
        module.__class__, module.kept_bytes, module.scratch = HollowLinear4bit, size, scratch


def four_bit_bytes(weights: int, *, double: bool = True) -> int:
    """Bytes of this number of weights in 4 bits.

    Each weight takes half a byte, and every 64 weights an absmax of four bytes. With double
    quantization the absmax takes one byte, plus four bytes for every 256 of them (Dettmers et al.
    2023, section 3; `bitsandbytes.functional.quantize_4bit`).
    """
    blocks = -(-weights // BLOCK)
    return -(-weights // 2) + (blocks + 4 * -(-blocks // NESTED_BLOCK) if double else 4 * blocks)


def quantized_sizes(model: nn.Module) -> list[int]:
    """The number of weights of each quantized layer."""
    return [
        m.in_features * m.out_features for m in model.modules() if isinstance(m, HollowLinear4bit | HollowLinear8bit)
    ]


class HollowLinear4bit(Linear4bit):
    """Computes like `bitsandbytes.autograd.MatMul4Bit`: unpacks the weight for each forward and
    backward product and drops it."""

    # Shared by all layers of the model.
    scratch: Scratch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: Any = _Matmul.apply(
            x.to(self.compute_dtype or x.dtype), self.bias, (self.out_features, self.in_features), False
        )
        return output.to(x.dtype)

    def unpacked(self) -> torch.Tensor:
        """The unpacked weight for `pipelines.train.trainer.adapters`, in memory that all layers
        share."""
        return self.scratch.shaped((self.out_features, self.in_features), self.compute_dtype or torch.float32)


class HollowLinear8bit(Linear8bitLt):
    """Computes like `MatMul8bitFp` (on a CPU) and `MatMul8bitLt`, which also keep their input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: Any = _Matmul.apply(x, self.bias, (self.out_features, self.in_features), True)
        return output


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: Any, shape: tuple[int, int], keep: bool) -> torch.Tensor:
        ctx.shape, ctx.kept = shape, x if keep else None
        return nn.functional.linear(x, _unpacked(shape, x), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0] @ _unpacked(ctx.shape, gradients[0]), None, None, None


def _weight_for_dora(module: Any) -> torch.Tensor:
    """The dequantized weight that PEFT needs to learn its magnitude and direction separately
    (DoRA)."""
    if not isinstance(module, HollowLinear4bit | HollowLinear8bit):
        return _plain_weight_for_dora(module)
    dtype = getattr(module, "compute_dtype", None) or torch.float32
    return torch.empty((module.out_features, module.in_features), dtype=dtype, device=module.weight.device)


_plain_weight_for_dora = dora.dequantize_module_weight  # pyright: ignore[reportPrivateImportUsage]
dora.dequantize_module_weight = _weight_for_dora  # pyright: ignore[reportPrivateImportUsage]


def _unpacked(shape: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    # The scales are unpacked first.
    scales = torch.empty(-(-shape[0] * shape[1] // BLOCK), dtype=torch.float32, device=like.device)
    weight = torch.empty(shape, dtype=like.dtype, device=like.device)
    del scales
    return weight


def give_tensors(model: nn.Module) -> None:
    """Replace all tensors of `model` by new ones on the CPU without values; tied tensors stay tied.

    Under a fake mode they have no bytes. Otherwise they take memory only where they are written.
    """
    replacements: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                new: Any = replacements.setdefault(id(parameter), _new_parameter(module, name, parameter))
                module._parameters[name] = new
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = replacements.setdefault(id(buffer), _new(buffer))
        for holder, name in _beside(module):
            holder[name] = replacements.setdefault(id(holder[name]), _new(holder[name]))


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """All tensors of `model`, each once: parameters, buffers, and other tensors that its modules
    hold."""
    extra = [holder[name] for module in model.modules() for holder, name in _beside(module)]
    return list({id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *extra)}.values())


def _beside(module: nn.Module) -> list[tuple[dict[Any, Any], Any]]:
    """(dictionary, key) of each tensor of `module` that is neither parameter nor buffer, such as
    the indices of adapters."""
    own = vars(module)
    places = [(own, name) for name, value in own.items() if isinstance(value, torch.Tensor)]
    dictionaries = [value for name, value in own.items() if isinstance(value, dict) and name not in REGISTERED]
    return places + [
        (holder, name) for holder in dictionaries for name, value in holder.items() if isinstance(value, torch.Tensor)
    ]


def _new(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _new_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
    if isinstance(module, HollowLinear4bit | HollowLinear8bit) and name == "weight":
        size: Any = module.kept_bytes
        return nn.Parameter(torch.empty((size, 1), dtype=torch.uint8, device="cpu"), requires_grad=False)
    return nn.Parameter(_new(parameter), requires_grad=parameter.requires_grad)
