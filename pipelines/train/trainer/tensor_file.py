"""Write tensors into a safetensors file piece by piece.

The library's own `save_file` copies a card's tensors to the host and keeps all copies until the
file is written. For a checkpoint that is the model and the optimizer's state, and the host may have
less memory than its card. Here a card's tensors pass through one buffer, and the host's are written
in place. The file has the same bytes as the library's.
"""
# ruff: noqa: TID253

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PIECE_BYTES = 64 * 2**20
# The format's names of the dtypes, in the library's order: it writes the last ones first.
KINDS = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32",
    torch.uint32: "U32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
PLACES = {dtype: place for place, dtype in enumerate(KINDS)}


def save_file(
    tensors: Mapping[str, torch.Tensor], filename: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` as `safetensors.torch.save_file` does. Tensors may share memory; each is
    written in full.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    order = sorted(tensors, key=lambda name: (-PLACES[tensors[name].dtype], name))
    # The host reads paged memory, which the card may still be writing.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    buffer = _buffer(list(tensors.values()))
    with Path(filename).open("wb") as file:
        file.write(_header(tensors, order, metadata))
        for name in order:
            for piece in _pieces(tensors[name], buffer):
                file.write(piece)


@contextmanager
def used_by_transformers() -> Iterator[None]:
    """Inside the context `save_pretrained` of a full model writes with this module.

    PEFT writes adapters itself; they are small.
    """
    from transformers import modeling_utils

    library: Any = modeling_utils
    plain = library.safe_save_file
    library.safe_save_file = save_file
    try:
        yield
    finally:
        library.safe_save_file = plain


def _header(tensors: Mapping[str, torch.Tensor], order: list[str], metadata: Mapping[str, str] | None) -> bytes:
    """The header: its length (8 bytes) and a JSON description, padded with spaces to a multiple of
    8 bytes."""
    description: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        description[name] = {
            "dtype": KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(description, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _buffer(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """Host memory for a piece of any of `tensors`; None if all of them lie on the host."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return None
    return _pinned(min(PIECE_BYTES, max(tensor.numel() * tensor.element_size() for tensor in tensors)))


def _pinned(size: int) -> torch.Tensor:
    """Host memory that a card can copy into directly."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _pieces(tensor: torch.Tensor, buffer: torch.Tensor | None) -> Iterator[memoryview]:
    """The bytes of `tensor` in order. With a `buffer`, each piece is valid until the next one
    overwrites it."""
    if not tensor.numel():
        return
    # This copies a tensor that is not contiguous, one at a time.
    flat = tensor.detach().contiguous().view(-1)
    for part in flat.view(torch.uint8).split(PIECE_BYTES):
        piece = part if buffer is None else buffer[: len(part)]
        if buffer is not None:
            piece.copy_(part)
        yield piece.numpy().data
