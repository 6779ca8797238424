"""bitsandbytes on a CPU, sooner ready: imported without PyTorch's compiler, weights packed to 4 bits piece by piece. Same bits.

Its own packing searches the 15 bounds between the 16 values for every weight, and makes eight arrays as large as the weight; here
a piece that stays in the processor's cache is compared with each bound. Its import compiles two functions that a CPU never calls.
"""
# ruff: noqa: TID253

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn

import torch

PIECE = 32704  # weights; PyTorch splits work on more than 32,767 among threads, which here wait longer than they work
TINY = 1e-38  # the least divisor of a block of zeros, as bitsandbytes has it


@cache
def prepare() -> None:
    """Import bitsandbytes and have it pack weights on a CPU by `pack`. Once a process."""
    with _without_compiler():
        import bitsandbytes  # noqa: F401
    torch.library.impl("bitsandbytes::quantize_4bit", "CPU", pack)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """bitsandbytes asks for torch.compile while it is imported, and takes the plain function where that fails. Asking alone
    imports the compiler, which takes as long as half of PyTorch."""
    plain, torch.compile = torch.compile, _refuse
    try:
        yield
    finally:
        torch.compile = plain


def _refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise RuntimeError("not while bitsandbytes is imported")


def pack(
    weight: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """`bitsandbytes::quantize_4bit`: two values a byte (n / 2 × 1, seen as `quant_storage`) and each block's absmax (float32).

    A value is the nearest of the type's 16 to weight / absmax (Dettmers et al. 2023, section 3); NaN counts as the lowest.
    """
    bounds, order = _bounds(quant_type)
    flat = weight.reshape(-1)
    count = flat.numel()
    absmax = torch.empty(-(-count // blocksize), dtype=torch.float32)
    packed = torch.empty(-(-count // 2), dtype=torch.uint8)
    step = PIECE // blocksize * blocksize or blocksize
    whole = count - count % blocksize
    for start in range(0, whole, step):
        end = min(whole, start + step)
        blocks = flat[start:end].float().view(-1, blocksize)
        largest = absmax[start // blocksize : end // blocksize]
        torch.amax(blocks.abs(), dim=-1, out=largest)
        scaled = blocks * (1.0 / largest.clamp(min=TINY)).view(-1, 1)
        _pack_piece(scaled.view(-1), (bounds, order), packed[start // 2 : end // 2])
    if count > whole:
        rest = flat[whole:].float()
        absmax[-1] = rest.abs().max().clamp(min=TINY)
        scaled = torch.nn.functional.pad(rest / absmax[-1], (0, len(rest) % 2))
        _pack_piece(scaled, (bounds, order), packed[whole // 2 :])
    return packed.view(quant_storage).unsqueeze(1), absmax


def _pack_piece(scaled: torch.Tensor, table: tuple[list[float], torch.Tensor | None], packed: torch.Tensor) -> None:
    """Write the places of `scaled` (an even number of values) among the bounds into `packed`, the first of two above."""
    bounds, order = table
    above, counted = torch.empty_like(scaled), torch.zeros_like(scaled)
    for bound in bounds:  # PyTorch compares many numbers at once only where it may say 0.0 and 1.0
        counted.add_(torch.gt(scaled, bound, out=above))
    places = counted.to(torch.uint8)
    if order is not None:
        places = order[places.int()]
    torch.bitwise_or(places[::2] << 4, places[1::2], out=packed)


@cache
def _bounds(quant_type: str) -> tuple[list[float], torch.Tensor | None]:
    """The midpoints between the type's values in ascending order, and each one's code where that is not its place (fp4)."""
    from bitsandbytes.functional import get_4bit_type

    values = get_4bit_type(quant_type, device="cpu", blocksize=64)
    order = torch.argsort(values)
    midpoints = (values[order[:-1]] + values[order[1:]]) / 2
    return midpoints.tolist(), None if quant_type == "nf4" else order.to(torch.uint8)
