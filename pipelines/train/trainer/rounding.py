"""LoftQ (Li et al. 2023): an adapter over a 4-bit base starts as the rounding error of the base.

Per layer, W − dequantize(quantize(W)) ≈ BA by a singular value decomposition, in one iteration.
PEFT's `replace_lora_weights_loftq` does the same, but only on a card. The base does not change, so
the saved adapter is plain LoRA.
"""
# ruff: noqa: TID253

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from pipelines.errors import UnavailableError
from pipelines.settings.methods import FOUR_BITS


def require_known(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Raises UnavailableError for LoftQ over a base that is not in 4 bits, or with settings that
    mean something else."""
    loftq = settings.get("loftq_config") or {}
    bits, rounds = (loftq.get("loftq_bits", 4), loftq.get("loftq_iter", 1)) if isinstance(loftq, dict) else (loftq, 1)
    if recipe.get("quantization") not in FOUR_BITS:
        raise UnavailableError(
            f"peft.init_lora_weights: loftq makes up for the rounding of a base in 4 bits, but this method has "
            f"quantization {recipe.get('quantization')}: set quantization: nf4"
        )
    if bits != 4 or rounds != 1:
        raise UnavailableError(
            f"peft.loftq_config: got {loftq}; the base is quantized while it is loaded, so expected loftq_bits: 4 "
            "and loftq_iter: 1"
        )
    if settings.get("use_dora") or settings.get("lora_bias"):
        raise UnavailableError("peft.init_lora_weights: loftq sets A and B alone: leave use_dora and lora_bias out")


@torch.no_grad()
def make_up_for(model: Any, original: Any) -> None:
    """Start the fresh LoRA of `model`, a PEFT model over a 4-bit base, from the rounding error of
    its base.

    `original` is the same model without quantization.

    Raises:
        UnavailableError: no adapted layer is quantized.
    """
    any_quantized = False
    for name, layer in model.named_modules():
        base = layer.get_base_layer() if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer") else None
        if getattr(getattr(base, "weight", None), "quant_state", None) is None:
            continue
        any_quantized = True
        plain = original.get_submodule(name.removeprefix("base_model.model."))
        _make_up(layer, plain.weight.T if isinstance(plain, Conv1D) else plain.weight)
    if not any_quantized:
        raise UnavailableError("peft.init_lora_weights: loftq found no adapter over a layer in 4 bits")


def _make_up(layer: Any, weight: torch.Tensor) -> None:
    """B·A·scaling = the best approximation of `weight` (outputs × inputs) minus the dequantized
    weight."""
    from bitsandbytes.functional import dequantize_4bit

    (adapter,) = layer.lora_A
    packed = layer.get_base_layer().weight
    residual = weight.to(packed.device, torch.float32) - dequantize_4bit(packed.data, packed.quant_state).float()
    left, values, right = torch.linalg.svd(residual, full_matrices=False)
    rank = layer.r[adapter]
    root = (values[:rank] / layer.scaling[adapter]).sqrt()
    layer.lora_A[adapter].weight.copy_(root[:, None] * right[:rank])
    layer.lora_B[adapter].weight.copy_(left[:, :rank] * root)


def folder_of(model: Any) -> Path:
    """The folder from which `model` was loaded."""
    return Path(model.name_or_path)
