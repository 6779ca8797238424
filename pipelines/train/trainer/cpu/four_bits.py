"""bitsandbytes on a CPU, ready sooner and in less memory, with the same bits.

Import: bitsandbytes compiles two functions that a CPU never calls. Here it is imported without
PyTorch's compiler.

Packing: for every weight bitsandbytes searches the 15 bounds between the 16 values, and it makes
eight arrays as large as the weight. Here a piece that fits into the processor's cache is compared
with each bound.

Unpacking: bitsandbytes makes a new array for every product. The holes in the C library's heap came
to half a gigabyte in one of four runs with OPT-350M. The kernel maps larger arrays anew each time,
which takes several times as long as the unpacking. Here the same memory serves all unpacked
weights.
"""
# ruff: noqa: TID253

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any, NoReturn

import torch

# Weights per piece. PyTorch splits more than 32,767 elements among threads, which would wait longer
# than they work here.
PIECE = 32704
# The divisor for a block of zeros, as in bitsandbytes.
TINY = 1e-38
CPU = torch.device("cpu")
# From this block size on bitsandbytes' AVX-512 code is inexact, and bitsandbytes itself unpacks by
# PyTorch.
LARGE_BLOCK = 2048


@cache
def prepare() -> None:
    """Import bitsandbytes, once per process, and register `pack` and `unpack_into` for CPUs.

    bitsandbytes itself unpacks into existing memory only on cards.
    """
    with _without_compiler():
        import bitsandbytes  # noqa: F401
    torch.library.impl("bitsandbytes::quantize_4bit", "CPU", pack)
    torch.library.impl("bitsandbytes::dequantize_4bit.out", "CPU", unpack_into)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Make torch.compile fail while bitsandbytes is imported.

    bitsandbytes then uses the plain functions. The call alone would import the compiler, which
    takes half as long as PyTorch itself.
    """
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
    """`bitsandbytes::quantize_4bit`: two values per byte (n / 2 × 1, viewed as `quant_storage`) and
    the blocks' absmax.

    The absmax are float32. A value is the one of the type's 16 that is nearest to weight / absmax
    (Dettmers et al. 2023, section 3); NaN counts as the lowest.
    """
    bounds, order = _bounds(quant_type)
    flat = weight.reshape(-1)
    count = flat.numel()
    absmax = torch.empty(-(-count // blocksize), dtype=torch.float32)
    packed = torch.empty(-(-count // 2), dtype=torch.uint8)
    step = PIECE // blocksize * blocksize or blocksize

    # Complete blocks, several in a piece.
    complete = count - count % blocksize
    for start in range(0, complete, step):
        end = min(complete, start + step)
        blocks = flat[start:end].float().view(-1, blocksize)
        largest = absmax[start // blocksize : end // blocksize]
        torch.amax(blocks.abs(), dim=-1, out=largest)
        scaled = blocks * (1.0 / largest.clamp(min=TINY)).view(-1, 1)
        _pack_piece(scaled.view(-1), (bounds, order), packed[start // 2 : end // 2])

    # The last block may be shorter; an odd number of weights is padded with a zero.
    if count > complete:
        rest = flat[complete:].float()
        absmax[-1] = rest.abs().max().clamp(min=TINY)
        scaled = torch.nn.functional.pad(rest / absmax[-1], (0, len(rest) % 2))
        _pack_piece(scaled, (bounds, order), packed[complete // 2 :])
    return packed.view(quant_storage).unsqueeze(1), absmax


def _pack_piece(scaled: torch.Tensor, table: tuple[list[float], torch.Tensor | None], packed: torch.Tensor) -> None:
    """Write the places of `scaled` (an even number of values) among the bounds into `packed`.

    Of two values the first one takes the upper four bits.
    """
    bounds, order = table
    above, counted = torch.empty_like(scaled), torch.zeros_like(scaled)
    # PyTorch vectorizes comparisons only if the results are floats: 0.0 and 1.0.
    for bound in bounds:
        counted.add_(torch.gt(scaled, bound, out=above))
    places = counted.to(torch.uint8)
    if order is not None:
        places = order[places.int()]
    torch.bitwise_or(places[::2] << 4, places[1::2], out=packed)


@cache
def _bounds(quant_type: str) -> tuple[list[float], torch.Tensor | None]:
    """The midpoints between the type's values in ascending order, and the codes of the values for
    fp4.

    nf4 needs no codes, since a value's code is its place in that order.
    """
    from bitsandbytes.functional import get_4bit_type

    values = get_4bit_type(quant_type, device="cpu", blocksize=64)
    order = torch.argsort(values)
    midpoints = (values[order[:-1]] + values[order[1:]]) / 2
    return midpoints.tolist(), None if quant_type == "nf4" else order.to(torch.uint8)


class Scratch:
    """Memory for one unpacked weight at a time, per format as large as the largest weight so
    far."""

    def __init__(self) -> None:
        self._memory: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    def shaped(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device = CPU
    ) -> torch.Tensor:
        """A tensor of `shape` with arbitrary values, in the memory of the previous one."""
        count, place = prod(shape), (dtype, device)
        if place not in self._memory or self._memory[place].numel() < count:
            # Free the smaller one before allocating the larger one.
            self._memory.pop(place, None)
            self._memory[place] = torch.empty(count, dtype=dtype, device=device)
        return self._memory[place][:count].view(*shape)


_scratch = Scratch()


def unpack(weight: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight (out × in) of a `bitsandbytes.nn.Params4bit` as `dtype`, valid until the next call
    overwrites it."""
    from bitsandbytes.functional import dequantize_4bit

    if weight.device.type == "cpu":
        prepare()
    state = weight.quant_state
    return dequantize_4bit(weight, state, out=_scratch.shaped(state.shape, state.dtype, weight.device)).to(dtype)


def unpack_into(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    out: torch.Tensor,
) -> None:
    """`bitsandbytes::dequantize_4bit.out`: each value × its block's absmax, written into `out`.

    It uses the library's own C function if there is an exact one, by the rule in
    bitsandbytes/backends/cpu/ops.py. Otherwise it copies from a new tensor.
    """
    function = _library().get((quant_type, dtype))
    if function is None or shape[-1] % 2 or blocksize >= LARGE_BLOCK or not out.is_contiguous():
        out.copy_(torch.ops.bitsandbytes.dequantize_4bit.default(packed, absmax, blocksize, quant_type, shape, dtype))
        return
    packed, scales = packed.contiguous(), absmax.float().contiguous()
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (packed, scales, out)]
    function(*pointers, *map(ctypes.c_longlong, (blocksize, prod(shape[:-1]), shape[-1])))


@cache
def _library() -> dict[tuple[str, torch.dtype], Any]:
    """The C functions that unpack, by 4-bit type and output format; empty if bitsandbytes has no
    compiled library."""
    from bitsandbytes.cextension import lib

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    library = getattr(lib, "_lib", None)
    function_names = {
        (kind, dtype): f"cdequantize_blockwise_cpu_{kind}_{name}"
        for kind in ("nf4", "fp4")
        for dtype, name in names.items()
    }
    return {key: getattr(library, name) for key, name in function_names.items() if hasattr(library, name)}
