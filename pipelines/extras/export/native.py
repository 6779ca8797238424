"""llama.cpp's C interface (llama.h, ggml.h), from the library that xllamacpp ships.

xllamacpp's Python interface serves answers. It does not expose log-probabilities of a given text or
quantization, but its library has both. Only functions with long stable signatures are called. The
library fills the parameter structures in oversized buffers. Only their first fields are changed,
after a check of their positions.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UnavailableError, WorkError

# Size of the buffers in 32-bit words, more than twice that of the structures.
ROOM = 256
# The first fields of llama_context_params: n_ctx, n_batch, n_ubatch, n_seq_max.
CONTEXT_DEFAULTS = [512, 2048, 512, 1]


class _Parameters(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * ROOM)]


class _Batch(ctypes.Structure):
    """llama_batch"""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [_POINTER, _POINTER]),
    "llama_model_default_params": (_Parameters, []),
    "llama_context_default_params": (_Parameters, []),
    "llama_model_load_from_file": (_POINTER, [ctypes.c_char_p, _Parameters]),
    "llama_init_from_model": (_POINTER, [_POINTER, _Parameters]),
    "llama_model_free": (None, [_POINTER]),
    "llama_free": (None, [_POINTER]),
    "llama_set_n_threads": (None, [_POINTER, _INT, _INT]),
    "llama_n_ctx": (ctypes.c_uint32, [_POINTER]),
    "llama_model_get_vocab": (_POINTER, [_POINTER]),
    "llama_vocab_n_tokens": (_INT, [_POINTER]),
    "llama_tokenize": (
        _INT,
        [_POINTER, ctypes.c_char_p, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool],
    ),
    "llama_batch_init": (_Batch, [_INT, _INT, _INT]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (_INT, [_POINTER, _Batch]),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [_POINTER]),
    "llama_get_memory": (_POINTER, [_POINTER]),
    "llama_memory_clear": (None, [_POINTER, ctypes.c_bool]),
    "ggml_quantize_chunk": (ctypes.c_size_t, [_INT, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER]),
    "ggml_row_size": (ctypes.c_size_t, [_INT, _SIZE]),
}
# The error level of ggml_log_level.
ERROR = 4
_errors: list[str] = []


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _POINTER)
def _listen(level: int, text: bytes, _data: Any) -> None:
    """Keep llama.cpp's error messages and drop the others."""
    if level == ERROR:
        _errors.append(text.decode(errors="replace").strip())


@cache
def library() -> ctypes.CDLL:
    """The library with typed functions, and without log output to the terminal.

    Raises:
        UnavailableError: it lacks a function, or its parameter structure is not that of the known
            version.
    """
    import xllamacpp.xllamacpp as xllamacpp

    loaded = ctypes.CDLL(xllamacpp.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(loaded, name)
        except AttributeError:
            raise UnavailableError(_other_version(f"it has no function {name}")) from None
        function.restype, function.argtypes = result, arguments
    loaded.llama_log_set(ctypes.cast(_listen, _POINTER), None)
    if (defaults := list(loaded.llama_context_default_params().words[:4])) != CONTEXT_DEFAULTS:
        raise UnavailableError(_other_version(f"its context parameters start with {defaults}, not {CONTEXT_DEFAULTS}"))
    return loaded


def _other_version(why: str) -> str:
    return f"the installed xllamacpp cannot be used for this: {why}; install the version that requirements.lock pins."


def quantize_rows(rows: np.ndarray, ggml_type: int) -> np.ndarray:
    """Quantize `rows` (rows × width, float32) to a GGML type, as bytes (rows × bytes per row).

    This calls llama.cpp's `ggml_quantize_chunk` without an importance matrix. `width` must be a
    multiple of the type's block size.
    """
    lib = library()
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    count, width = rows.shape
    packed = np.empty((count, lib.ggml_row_size(ggml_type, width)), dtype=np.uint8)
    written = lib.ggml_quantize_chunk(ggml_type, rows.ctypes.data, packed.ctypes.data, 0, count, width, None)
    if written != packed.nbytes:
        raise WorkError(f"llama.cpp wrote {written} bytes of GGML type {ggml_type} where {packed.nbytes} were expected")
    return packed


class LlamaCpp:
    """A GGUF file loaded in this process, for one text at a time. Use it as a context manager."""

    def __init__(self, gguf: Path, *, context: int, threads: int) -> None:
        """`context` is the maximum number of tokens of one text.

        Raises:
            WorkError: llama.cpp refuses the file.
        """
        self._lib, self.context = library(), context
        self._model = self._lib.llama_model_load_from_file(str(gguf).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise WorkError(f"llama.cpp cannot load {gguf}: {' | '.join(_errors[-3:])}")
        parameters = self._lib.llama_context_default_params()
        # A text is one batch, so that all its logits are available at once.
        parameters.words[:2] = [context, context]
        self._context = self._lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise WorkError(f"llama.cpp cannot make a context of {context} tokens for {gguf}")
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.words = self._lib.llama_vocab_n_tokens(self._vocab)
        self._batch = self._lib.llama_batch_init(context, 0, 1)

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`, with special tokens parsed as such.

        `add_special` adds the tokens that the file puts around a text.
        """
        raw = text.encode()
        room = (_INT * (len(raw) + 8))()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), room, len(room), add_special, True)
        return list(room[: max(count, 0)])

    def log_probabilities(self, ids: Sequence[int]) -> np.ndarray:
        """ln p(ids[i + 1] | ids[:i + 1]) for every i (length − 1, float64)."""
        self._start()
        logits = self._decode(ids, 0, every=True)[:-1].astype(np.float64)
        highest = logits.max(axis=1)
        sums = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
        return logits[np.arange(len(ids) - 1), list(ids[1:])] - sums

    def greedy(self, prompt: Sequence[int], *, limit: int, stops: Sequence[int]) -> list[int]:
        """The greedy continuation, at most `limit` tokens, including the stop token that ends
        it."""
        self._start()
        logits, produced = self._decode(prompt, 0), []
        while True:
            produced.append(int(logits[-1].argmax()))
            if produced[-1] in stops or len(produced) == limit:
                return produced
            logits = self._decode(produced[-1:], len(prompt) + len(produced) - 1)

    def _start(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _decode(self, ids: Sequence[int], start: int, *, every: bool = False) -> np.ndarray:
        """Logits (positions × vocabulary) after the last id, or with `every` after each id.

        They are valid until the next call.
        """
        if start + len(ids) > self.context:
            raise WorkError(f"a text of {start + len(ids)} tokens does not fit a context of {self.context}")
        batch, last = self._batch, len(ids) - 1
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == last
        if status := self._lib.llama_decode(self._context, batch):
            raise WorkError(f"llama.cpp ended a decode of {len(ids)} tokens with status {status}")
        rows = len(ids) if every else 1
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), shape=(rows, self.words))
