"""An optimizer whose states lie in paged memory, which may leave the card for the host (bitsandbytes' paged ones).

bitsandbytes never frees such memory, and PyTorch's allocator does not count it. So one optimizer serves the whole run: where
another would be replaced by a new one, its states are set to zero. A checkpoint is read into the memory that it already has, and
the size of that memory is a column of its own. Without a card nothing is paged, and the functions below give the same results.
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
