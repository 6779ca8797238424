"""bitsandbytes' paged optimizers, whose states lie in memory that can move from the card to the
host.

bitsandbytes never frees such memory, and PyTorch's allocator does not count it. So one optimizer
serves the whole run: where other optimizers are replaced by new ones, its states are set to zero. A
checkpoint is read into the memory that the optimizer already has. The size of that memory is a
column of its own. Without a card nothing is paged, and the functions below give the same results.
"""
# ruff: noqa: TID253

from typing import Any

import torch

# Constant tables from the codes of an 8-bit state to its values.
MAPS = ("qmap1", "qmap2")


def is_paged(optimizer: Any) -> bool:
    """Whether `optimizer` asks for paged memory."""
    return getattr(optimizer, "is_paged", False)


def forget(optimizer: Any) -> None:
    """Set the optimizer's states to zero, as if it were new."""
    # The host writes the paged memory here, so the card must have finished with it.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for state in optimizer.state.values():
        for name, value in state.items():
            # The only number is the count of steps.
            if not isinstance(value, torch.Tensor):
                state[name] = 0
            elif name not in MAPS:
                value.zero_()


def make_room(optimizer: Any) -> None:
    """Allocate the optimizer's states, as its first step does."""
    for group_place, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if not optimizer.state[parameter]:
                optimizer.init_state(group, parameter, group_place, place)


def is_page(tensor: Any) -> bool:
    """Whether `tensor` lies in paged memory."""
    return getattr(tensor, "is_paged", False)


def pageable_bytes(optimizer: Any) -> int | None:
    """The bytes in paged memory; None if there are none."""
    if not is_paged(optimizer):
        return None
    remembered = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in remembered if is_page(value)) or None
