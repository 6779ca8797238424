"""An optimizer whose states lie in paged memory, which may leave the card for the host (bitsandbytes' paged ones).

bitsandbytes never gives such memory back, and PyTorch's allocator does not count it. So the optimizer is kept for the whole of a
run and emptied where another one would be made anew, a checkpoint is read into the memory that it has, and its size is told apart.
Without a card nothing is paged, and all of this comes to the same.
"""
# ruff: noqa: TID253

from typing import Any

import torch

MAPS = ("qmap1", "qmap2")  # what the numbers of an 8-bit state stand for; no part of what is remembered


def is_paged(optimizer: Any) -> bool:
    """Whether `optimizer` asks for paged memory."""
    return getattr(optimizer, "is_paged", False)


def forget(optimizer: Any) -> None:
    """Let `optimizer` remember nothing of earlier steps, as if it were new."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # paged memory is written from the host here
    for state in optimizer.state.values():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                state[name] = 0  # the number of steps
            elif name not in MAPS:
                value.zero_()


def make_room(optimizer: Any) -> None:
    """Let `optimizer` take the memory for what it will remember, as its first step does."""
    for group_place, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if not optimizer.state[parameter]:
                optimizer.init_state(group, parameter, group_place, place)


def is_page(tensor: Any) -> bool:
    """Whether `tensor` lies in paged memory."""
    return getattr(tensor, "is_paged", False)


def pageable_bytes(optimizer: Any) -> int | None:
    """Bytes in paged memory; None where there is none."""
    if not is_paged(optimizer):
        return None
    remembered = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in remembered if is_page(value)) or None
