"""AdaLoRA (Zhang et al. 2023): after every optimizer step PEFT takes ranks from the layers that need them less.

What it remembers of each parameter lies with what the optimizer remembers of it, so that a checkpoint holds it, a new optimizer
has forgotten it, and an optimizer that goes back to an earlier state takes it along. A step at a learning rate of zero, which must
leave no trace, moves nothing.
"""
# ruff: noqa: TID253

from collections.abc import Iterator
from typing import Any

import torch

from pipelines.errors import UnavailableError

# Of a parameter: its importance and that one's spread (both its shape), what is left of a layer's ranks (of its singular values
# alone), and the steps that were counted
IMPORTANCE, SPREAD, KEPT, STEPS = "rank_importance", "rank_spread", "rank_kept", "rank_steps"
UNPLANNED = 2**30  # optimizer steps, as long as nobody knows how many there will be


def allocating(model: Any) -> Any | None:
    """The part of a PEFT model that moves ranks; None where they stay."""
    base = getattr(model, "base_model", None)
    return base if hasattr(base, "rankallocator") else None


def plan(model: Any, steps: int) -> None:
    """Spread the schedule over so many optimizer steps.

    Raises:
        UnavailableError: there are too few of them for ranks to move.
    """
    if (base := allocating(model)) is None:
        return
    config = base.peft_config[base.trainable_adapter_name]
    last = steps - config.tfinal
    if last <= max(1, config.tinit):
        raise UnavailableError(
            f"AdaLoRA moves ranks after step {max(1, config.tinit)} (tinit) and before the last {config.tfinal} (tfinal), and here "
            f"are {steps} optimizer steps: take smaller tinit and tfinal, more epochs or fewer examples_per_step"
        )
    config.total_step = steps


def move_with(optimizer: torch.optim.Optimizer, model: Any) -> None:
    """Let ranks move with the steps of `optimizer`, from the state that it has."""
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
    """Give PEFT what the optimizer's state holds."""
    allocator, config = base.rankallocator, base.peft_config[base.trainable_adapter_name]
    states = {name: optimizer.state[p] for name, p in named.items() if IMPORTANCE in optimizer.state[p]}
    allocator.ipt = dict.fromkeys(states)  # it looks for the name alone
    allocator.exp_avg_ipt = {name: state[IMPORTANCE] for name, state in states.items()}
    allocator.exp_avg_unc = {name: state[SPREAD] for name, state in states.items()}
    masks = {name: optimizer.state[p][KEPT] for name, p in named.items() if KEPT in optimizer.state[p]}
    config.rank_pattern = {name: mask.view(-1).bool().tolist() for name, mask in masks.items()} or None


def _store_state(base: Any, optimizer: torch.optim.Optimizer, named: dict[str, torch.nn.Parameter]) -> None:
    """Keep in the optimizer's state what PEFT holds, and nothing of it twice."""
    allocator, config = base.rankallocator, base.peft_config[base.trainable_adapter_name]
    for name, parameter in named.items():
        state = optimizer.state[parameter]
        for key, averages in ((IMPORTANCE, allocator.exp_avg_ipt), (SPREAD, allocator.exp_avg_unc)):
            if name in averages:
                state[key] = averages[name]
            else:
                state.pop(key, None)  # the schedule is at its end
    for name, mask in (config.rank_pattern or {}).items():
        singular_values = named[name]
        optimizer.state[singular_values][KEPT] = torch.tensor(
            mask, dtype=torch.uint8, device=singular_values.device
        ).view(-1, 1)
    allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc = {}, {}, {}


@torch.no_grad()
def settle(model: Any) -> None:
    """Before the adapter is saved: let PEFT leave out the ranks whose singular value is nought now, and no others. What it was told
    after the last step may be of other weights, where an earlier step's are saved."""
    if (base := allocating(model)) is None:
        return
    adapter = base.trainable_adapter_name
    base.peft_config[adapter].rank_pattern = {
        name: (weight != 0).view(-1).tolist()
        for name, weight in base.model.named_parameters()
        if f"lora_E.{adapter}" in name
    }


def penalty(model: Any) -> torch.Tensor | None:
    """What AdaLoRA adds to a step's loss so that A's rows and B's columns stay orthogonal: orth_reg_weight × the mean of
    ‖AAᵀ − I‖ and ‖BᵀB − I‖ (`peft.tuners.adalora.model.AdaLoraModel.forward`); None where nothing is added."""
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
