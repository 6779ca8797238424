"""The number formats of weights and computation: from the recipe, and for `auto` from the
hardware."""
# ruff: noqa: TID253

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pipelines.hardware.cuda_devices import AMPERE
from pipelines.settings.methods import traits_of

Recipe = dict[str, Any]
NAMED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def half_precision() -> torch.dtype | None:
    """bfloat16 on cards that compute it (CUDA capability 8.0 and up), float16 on older cards, None
    on a CPU.

    PyTorch's own test counts emulation as support. A CPU emulates half precision and is far slower
    in it.
    """
    if not torch.cuda.is_available():
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability() >= AMPERE else torch.float16


def compute_dtype(recipe: Recipe) -> torch.dtype | None:
    """The half-precision format of matrix products, or None for float32.

    `auto` never chooses float16 for a model whose activations exceed its range (`fp16: false`).
    """
    if recipe["precision"] != "auto":
        return NAMED.get(recipe["precision"])
    half = half_precision()
    return None if half is torch.float16 and not recipe.get("fp16", True) else half


def weights_dtype(recipe: Recipe) -> torch.dtype:
    """The format of the weights in training: float32 master weights for `full`, the compute format
    for a frozen base."""
    return torch.float32 if traits_of(recipe).trains_all else result_dtype(recipe)


def result_dtype(recipe: Recipe) -> torch.dtype:
    """The format of a trained model's weights when it is saved, evaluated and served: its compute
    format.

    `full` needs float32 master weights only for small training steps.
    """
    return compute_dtype(recipe) or torch.float32


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """Half-precision compute over float32 master weights; no autocast for float32 or for a frozen
    base.

    A frozen base is in half precision already. Autocast would compute its norms in float32, and
    everything after them would stay in float32. Gradient checkpointing casts the weights again for
    the recomputation, so no copies are cached.
    """
    half = compute_dtype(recipe)
    if half is None or not traits_of(recipe).trains_all:
        return nullcontext()
    return torch.autocast(device.type, dtype=half, cache_enabled=not recipe["gradient_checkpointing"])


def make_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for float16, whose small gradients would vanish (Micikevicius et al. 2018); off
    for other formats."""
    return torch.amp.GradScaler(device.type, enabled=compute_dtype(recipe) is torch.float16)
