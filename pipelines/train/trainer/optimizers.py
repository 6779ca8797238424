"""AdamW with its states in 32 or in 8 bits (blockwise, Dettmers et al. 2022), the latter also in paged memory on a card; and what
PEFT makes of it for LoRA: LoRA+ (Hayou et al. 2024) and LoRA-FA (Zhang et al. 2023).

bitsandbytes computes the 8-bit ones on a CPU too; paging needs a card, and is plain 8-bit without one.
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

_OF_LORA = "lora_"  # in the name of an adapter's parameter
RATIO = "rate_ratio"  # of a group of parameters: how many times the step's learning rate it has


def make_optimizer(model: Any, recipe: dict[str, Any]) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters of `model` that train; of an adapter whose ranks move it moves them, too.

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
    """Let the next step have this learning rate; LoRA+ gives B a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATIO, 1.0)


def _class_and_options(recipe: Mapping[str, Any], parameters: list[torch.nn.Parameter]) -> tuple[Any, dict[str, Any]]:
    rate = recipe["learning_rate"]
    options: Any = {"lr": rate[0] if isinstance(rate, list) else rate, "weight_decay": recipe["weight_decay"]}
    if recipe["optimizer"] in ("adamw", LORA_FA):
        # one kernel rather than a dozen passes, and no copies: of the largest parameter on a CPU, of all of them on a card
        fused = True if all(parameter.device.type in ("cpu", "cuda") for parameter in parameters) else None
        return torch.optim.AdamW, {**options, "fused": fused}
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    kind = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}
    return kind[recipe["optimizer"]], options


def _lora_plus(model: Any, kind: Any, options: dict[str, Any], ratio: float) -> torch.optim.Optimizer:
    """PEFT's groups of LoRA+: B, and vectors, learn `ratio` times as fast as A.

    Raises:
        UnavailableError: an adapter on an embedding, to which PEFT gives a learning rate that does not follow the others.
    """
    from peft.optimizers import create_loraplus_optimizer

    if any(hasattr(module, "lora_embedding_A") and len(module.lora_embedding_A) for module in model.modules()):
        raise UnavailableError(
            "loraplus_lr_ratio: PEFT gives an adapter on an embedding a fixed learning rate of its own: leave the embedding out of "
            "the targets"
        )
    decay = options.pop("weight_decay")
    optimizer = create_loraplus_optimizer(model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **options)
    for group in optimizer.param_groups:
        group[RATIO] = group["lr"] / options["lr"]
    return optimizer


def _lora_fa(model: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """PEFT's LoRA-FA, whose memory of a pair of A and B lies with B, where a checkpoint looks for it.

    Raises:
        UnavailableError: an adapter that has more than pairs of A and B, which PEFT would pair up wrongly.
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
            "optimizer: lorafa takes an adapter's parameters in pairs of lora_A and lora_B, and this one has others (DoRA, biases, "
            "an embedding's): leave them out, or use adamw"
        )


class _ByParameter(defaultdict[Any, dict[str, Any]]):
    """An optimizer's state by parameter, which may also be asked for by the names that LoRA-FA gives: a parameter's own, or that of
    a pair up to `lora`, which means its B."""

    def __init__(self, named: Mapping[str, torch.nn.Parameter]) -> None:
        super().__init__(dict)
        self._named = {_pair(name) if _OF_LORA in name else name: p for name, p in named.items()}  # B comes after A

    def __missing__(self, key: Any) -> dict[str, Any]:
        if isinstance(key, str):
            return self[self._named[key]]
        return super().__missing__(key)


def _pair(name: str) -> str:
    """PEFT's name for what A and B share: `….q_proj.lora`."""
    return name[: name.find(_OF_LORA)] + _OF_LORA.rstrip("_")
