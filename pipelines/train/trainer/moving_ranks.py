"""AdaLoRA (Zhang et al. 2023): after every optimizer step PEFT takes ranks from the layers that
need them less.

Its memory of each parameter is part of the optimizer's state. So a checkpoint holds it, a new
optimizer starts without it, and an optimizer that returns to an earlier state takes it along. A
step at learning rate zero must leave no trace and therefore moves no ranks.
"""
# ruff: noqa: TID253

from collections.abc import Iterator
from typing import Any

import torch

from pipelines.errors import UnavailableError

# The states of a parameter: its importance and the uncertainty of that (both in its shape), the
# mask of a layer's remaining ranks (for singular values only), and the number of counted steps.
IMPORTANCE, SPREAD, KEPT, STEPS = "rank_importance", "rank_spread", "rank_kept", "rank_steps"
# The number of optimizer steps in PEFT's configuration until the plan is known.
UNPLANNED = 2**30


def allocating(model: Any) -> Any | None:
    """The part of a PEFT model that moves ranks; None if its ranks are fixed."""
    base = getattr(model, "base_model", None)
    return base if hasattr(base, "rankallocator") else None


def plan(model: Any, steps: int) -> None:
    """Spread AdaLoRA's schedule over that many optimizer steps.

    Raises:
        UnavailableError: there are too few steps for ranks to move.
    """
    if (base := allocating(model)) is None:
        return
    config = base.peft_config[base.trainable_adapter_name]
    last = steps - config.tfinal
    if last <= max(1, config.tinit):
        raise UnavailableError(
            f"AdaLoRA moves ranks after step {max(1, config.tinit)} (tinit) and before the last {config.tfinal} (tfinal), "
            f"and this plan has {steps} optimizer steps: use smaller tinit and tfinal, more epochs or fewer "
            "examples_per_step"
        )
    config.total_step = steps


def move_with(optimizer: torch.optim.Optimizer, model: Any) -> None:
    """Move ranks after each step of `optimizer`, starting from its present state."""
    if (base := allocating(model)) is None:
        return
    adapter = base.trainable_adapter_name
    named = {name: p for name, p in base.model.named_parameters() if "lora_" in name and adapter in name}
    values = [name for name in named if f"lora_E.{adapter}" in name]
    base.peft_config[adapter].rank_pattern = None

    def after_step(*_: Any) -> None:
        if not any(group["lr"] for group in optimizer.param_groups):
            return
        counter = optimizer.state[named[values[0]]]
        _load_state(base, optimizer, named)
        step = int(counter.get(STEPS, 0)) + 1
        base.update_and_allocate(step)
        _store_state(base, optimizer, named)
        counter[STEPS] = step

    optimizer.register_step_post_hook(after_step)


def _load_state(base: Any, optimizer: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter]) -> None:
    """Copy AdaLoRA's memory from the optimizer's state into PEFT's allocator."""
    allocator, config = base.rankallocator, base.peft_config[base.trainable_adapter_name]
    states = {name: optimizer.state[p] for name, p in named.items() if IMPORTANCE in optimizer.state[p]}
    # PEFT only checks whether a name is in `ipt`.
    allocator.ipt = dict.fromkeys(states)
    allocator.exp_avg_ipt = {name: state[IMPORTANCE] for name, state in states.items()}
    allocator.exp_avg_unc = {name: state[SPREAD] for name, state in states.items()}
    masks = {name: optimizer.state[p][KEPT] for name, p in named.items() if KEPT in optimizer.state[p]}
    config.rank_pattern = {name: mask.view(-1).bool().tolist() for name, mask in masks.items()} or None


def _store_state(base: Any, optimizer: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter]) -> None:
    """Move AdaLoRA's memory from PEFT's allocator into the optimizer's state, so that only one copy
    stays."""
    allocator, config = base.rankallocator, base.peft_config[base.trainable_adapter_name]
    for name, parameter in named.items():
        state = optimizer.state[parameter]
        for key, averages in ((IMPORTANCE, allocator.exp_avg_ipt), (SPREAD, allocator.exp_avg_unc)):
            if name in averages:
                state[key] = averages[name]
            else:
                # The schedule has ended.
                state.pop(key, None)
    for name, mask in (config.rank_pattern or {}).items():
        singular_values = named[name]
        optimizer.state[singular_values][KEPT] = torch.tensor(
            mask, dtype=torch.uint8, device=singular_values.device
        ).view(-1, 1)
    allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc = {}, {}, {}


@torch.no_grad()
def settle(model: Any) -> None:
    """Before the adapter is saved, make PEFT leave out exactly the ranks whose singular value is
    zero.

    PEFT's own pattern is that of the last step, but the saved weights may be those of an earlier,
    better step.
    """
    if (base := allocating(model)) is None:
        return
    adapter = base.trainable_adapter_name
    base.peft_config[adapter].rank_pattern = {
        name: (weight != 0).view(-1).tolist()
        for name, weight in base.model.named_parameters()
        if f"lora_E.{adapter}" in name
    }


def penalty(model: Any) -> torch.Tensor | None:
    """The penalty that keeps A's rows and B's columns orthogonal: orth_reg_weight × the mean of
    ‖AAᵀ − I‖ and ‖BᵀB − I‖.

    AdaLoRA adds it to a step's loss (`peft.tuners.adalora.model.AdaLoraModel.forward`). None if
    there is no penalty.
    """
    if (base := allocating(model)) is None:
        return None
    adapter = base.trainable_adapter_name
    weight = base.peft_config[adapter].orth_reg_weight
    if not weight:
        return None
    norms = [
        torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device))
        for product in _products(base)
    ]
    return weight * torch.stack(norms).mean()


def _products(base: Any) -> Iterator[torch.Tensor]:
    adapter = base.trainable_adapter_name
    for name, weight in base.model.named_parameters():
        if f"lora_A.{adapter}" in name:
            yield weight @ weight.T
        elif f"lora_B.{adapter}" in name:
            yield weight.T @ weight
