"""AdamW with its states in 32 or in 8 bits (blockwise, Dettmers et al. 2022), the latter also in paged memory on a card.

bitsandbytes computes the 8-bit ones on a CPU too; paging needs a card, and is plain 8-bit without one.
"""
# ruff: noqa: TID253

import warnings
from typing import Any

import torch


def make_optimizer(model: Any, recipe: dict[str, Any]) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters of `model` that train."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = recipe["learning_rate"]
    options: Any = {"lr": rate[0] if isinstance(rate, list) else rate, "weight_decay": recipe["weight_decay"]}
    if recipe["optimizer"] == "adamw":
        # one kernel rather than a dozen passes, and no copies: of the largest parameter on a CPU, of all of them on a card
        fused = True if all(parameter.device.type in ("cpu", "cuda") for parameter in parameters) else None
        return torch.optim.AdamW(parameters, **options, fused=fused)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    kind = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}
    return kind[recipe["optimizer"]](parameters, **options)
