"""Which number format weights are kept in and steps are computed in: from the recipe, and `auto` from the hardware."""
# ruff: noqa: TID253

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pipelines.hardware.cuda_devices import AMPERE
from pipelines.settings.methods import traits_of

Recipe = dict[str, Any]
NAMED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def half_precision() -> torch.dtype | None:
    """bfloat16 where the hardware computes it (CUDA capability 8.0 and up; PyTorch's own test counts emulation as support),
    float16 on older cards, None on a CPU, where half precision is emulated and far slower."""
    if not torch.cuda.is_available():
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability() >= AMPERE else torch.float16


def compute_dtype(recipe: Recipe) -> torch.dtype | None:
    """The half-precision format of matrix products, or None for float32; `auto` leaves out float16 for a model whose activations
    leave its range (`fp16: false`)."""
    if recipe["precision"] != "auto":
        return NAMED.get(recipe["precision"])
    half = half_precision()
    return None if half is torch.float16 and not recipe.get("fp16", True) else half


def weights_dtype(recipe: Recipe) -> torch.dtype:
    """While training: `full` keeps float32 master weights whatever it computes in; an adapter's frozen base has the format that it
    computes in."""
    return torch.float32 if traits_of(recipe).trains_all else result_dtype(recipe)


def result_dtype(recipe: Recipe) -> torch.dtype:
    """Of a trained model's weights as it is saved, evaluated and served: the format that it computes in. `full` needs its master
    weights for small steps alone."""
    return compute_dtype(recipe) or torch.float32


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """Half-precision compute over float32 master weights. Nothing where all is float32, nor over a frozen base: that has the half
    format already, and autocast would compute its norms in float32, which then stays the format of all that follows them.

    With gradient checkpointing weights are cast once more for the recomputation in any case, so their copies are not kept.
    """
    half = compute_dtype(recipe)
    if half is None or not traits_of(recipe).trains_all:
        return nullcontext()
    return torch.autocast(device.type, dtype=half, cache_enabled=not recipe["gradient_checkpointing"])


def make_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for float16, whose small gradients would vanish (Micikevicius et al. 2018); off for all else."""
    return torch.amp.GradScaler(device.type, enabled=compute_dtype(recipe) is torch.float16)
