"""AdamW, and PEFT's variants for LoRA: LoRA+ (Hayou et al. 2024) and LoRA-FA (Zhang et al. 2023).

AdamW's states have 32 bits or 8 bits (blockwise, Dettmers et al. 2022). bitsandbytes computes the
8-bit variants on a CPU as well. The paged one needs a card for its paging and is a plain 8-bit one
without.
"""
# ruff: noqa: TID253

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from pipelines.errors import UnavailableError
from pipelines.settings.methods import LORA_FA
from pipelines.train.trainer import moving_ranks

# Part of the names of an adapter's parameters.
_OF_LORA = "lora_"
# The key of a parameter group's factor on the step's learning rate.
RATIO = "rate_ratio"


def make_optimizer(model: Any, recipe: dict[str, Any]) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters of `model`; for AdaLoRA its steps also
    move the ranks.

    Raises:
        UnavailableError: PEFT's optimizer for LoRA does not fit this adapter.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind, options = _class_and_options(recipe, parameters)
    if recipe["optimizer"] == LORA_FA:
        optimizer = _lora_fa(model, options)
    elif ratio := recipe.get("loraplus_lr_ratio"):
        optimizer = _lora_plus(model, kind, options, ratio)
    else:
        optimizer = kind(parameters, **options)
    moving_ranks.move_with(optimizer, model)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step; LoRA+ gives B a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATIO, 1.0)


def _class_and_options(recipe: Mapping[str, Any], parameters: list[torch.nn.Parameter]) -> tuple[Any, dict[str, Any]]:
    rate = recipe["learning_rate"]
    options: Any = {"lr": rate[0] if isinstance(rate, list) else rate, "weight_decay": recipe["weight_decay"]}
    if recipe["optimizer"] in ("adamw", LORA_FA):
        # The fused version runs one kernel rather than a dozen passes. It makes no copies, which
        # would be as large as the largest parameter on a CPU and as all parameters on a card.
        fused = True if all(parameter.device.type in ("cpu", "cuda") for parameter in parameters) else None
        return torch.optim.AdamW, {**options, "fused": fused}
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    kind = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}
    return kind[recipe["optimizer"]], options


def _lora_plus(model: Any, kind: Any, options: dict[str, Any], ratio: float) -> torch.optim.Optimizer:
    """LoRA+ with PEFT's parameter groups: B and vectors learn `ratio` times as fast as A.

    Raises:
        UnavailableError: an embedding has an adapter; PEFT gives it a fixed learning rate.
    """
    from peft.optimizers import create_loraplus_optimizer

    if any(hasattr(module, "lora_embedding_A") and len(module.lora_embedding_A) for module in model.modules()):
        raise UnavailableError(
            "loraplus_lr_ratio: PEFT gives an adapter on an embedding a fixed learning rate of its own: "
            "leave the embedding out of the targets"
        )
    decay = options.pop("weight_decay")
    optimizer = create_loraplus_optimizer(model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **options)
    for group in optimizer.param_groups:
        group[RATIO] = group["lr"] / options["lr"]
    return optimizer


def _lora_fa(model: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """PEFT's LoRA-FA, with the state of each pair of A and B under B, where a checkpoint looks for
    it.

    Raises:
        UnavailableError: the adapter has other parameters than pairs of A and B; PEFT would pair
            them wrongly.
    """
    from peft.optimizers import create_lorafa_optimizer

    _has_pairs_alone(model)
    config = model.active_peft_config
    optimizer = create_lorafa_optimizer(
        model, r=config.r, lora_alpha=config.lora_alpha, lr=options["lr"], weight_decay=options["weight_decay"]
    )
    _keep_by_parameter(optimizer)
    optimizer.register_load_state_dict_post_hook(_keep_by_parameter)
    return optimizer


def _keep_by_parameter(optimizer: torch.optim.Optimizer) -> None:
    (group,) = optimizer.param_groups
    state = _ByParameter(dict(zip(group["names"], group["params"], strict=True)))
    state.update(optimizer.state)
    optimizer.state = state


def _has_pairs_alone(model: Any) -> None:
    names = [name for name, _ in model.named_parameters() if _OF_LORA in name]
    pairs = zip(names[::2], names[1::2], strict=False)
    if len(names) % 2 or any(one.replace(".lora_A.", ".lora_B.", 1) != other or one == other for one, other in pairs):
        raise UnavailableError(
            "optimizer: lorafa takes an adapter's parameters in pairs of lora_A and lora_B, and this one has others "
            "(DoRA, biases, an embedding's): leave them out, or use adamw"
        )


class _ByParameter(defaultdict[Any, dict[str, Any]]):
    """An optimizer's state by parameter, which also accepts LoRA-FA's names as keys.

    Such a name is that of a parameter, or that of a pair up to `lora`, which stands for its B.
    """

    def __init__(self, named: Mapping[str, torch.nn.Parameter]) -> None:
        super().__init__(dict)
        # B comes after A, so each pair's name ends up with its B.
        self._named = {_pair(name) if _OF_LORA in name else name: p for name, p in named.items()}

    def __missing__(self, key: Any) -> dict[str, Any]:
        if isinstance(key, str):
            return self[self._named[key]]
        return super().__missing__(key)


def _pair(name: str) -> str:
    """PEFT's name for a pair of A and B: `….q_proj.lora`."""
    return name[: name.find(_OF_LORA)] + _OF_LORA.rstrip("_")
