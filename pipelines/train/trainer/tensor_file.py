"""Tensors into a safetensors file, a piece at a time.

The library's own `save_file` copies a card's tensors to the host and keeps all copies until the file is written. That is the model
and what its optimizer remembers, in a host that may have less memory than its card. Here a card's tensors pass through one buffer,
and the processor's are written from where they lie. The bytes are those that the library writes.
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
# The format's names, in the library's own order of kinds: it writes the last of them first
KINDS = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32",
    torch.uint32: "U32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
PLACES = {dtype: place for place, dtype in enumerate(KINDS)}


def save_file(
    tensors: Mapping[str, torch.Tensor], filename: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` as `safetensors.torch.save_file` does. Tensors may share memory, and each is written whole.

    Raises:
        OSError: the disk is full, or another reason why nothing can be written.
    """
    order = sorted(tensors, key=lambda name: (-PLACES[tensors[name].dtype], name))
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # memory that card and host share is read from the host
    buffer = _buffer(list(tensors.values()))
    with Path(filename).open("wb") as file:
        file.write(_header(tensors, order, metadata))
        for name in order:
            for piece in _pieces(tensors[name], buffer):
                file.write(piece)


@contextmanager
def used_by_transformers() -> Iterator[None]:
    """Inside, `save_pretrained` of a whole model writes with this module. Of an adapter PEFT writes, and it is small."""
    from transformers import modeling_utils

    library: Any = modeling_utils
    plain = library.safe_save_file
    library.safe_save_file = save_file
    try:
        yield
    finally:
        library.safe_save_file = plain


def _header(tensors: Mapping[str, torch.Tensor], order: list[str], metadata: Mapping[str, str] | None) -> bytes:
    """The length of the description (8 bytes), and the description: JSON, filled up with spaces to a multiple of 8."""
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
    """Room on the host for a piece of any of `tensors`; None where all lie on the host already."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return None
    return _pinned(min(PIECE_BYTES, max(tensor.numel() * tensor.element_size() for tensor in tensors)))


def _pinned(size: int) -> torch.Tensor:
    """Bytes of the host that a card copies into directly."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _pieces(tensor: torch.Tensor, buffer: torch.Tensor | None) -> Iterator[memoryview]:
    """The bytes of `tensor` in order; through `buffer`, where there is one, each piece is overwritten by the next."""
    if not tensor.numel():
        return
    flat = tensor.detach().contiguous().view(-1)  # one that lies otherwise is copied, and it alone
    for part in flat.view(torch.uint8).split(PIECE_BYTES):
        piece = part if buffer is None else buffer[: len(part)]
        if buffer is not None:
            piece.copy_(part)
        yield piece.numpy().data
