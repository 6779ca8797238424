"""Differences between CUDA and a CPU, for a rehearsal without a card.

On CUDA, dropout keeps one byte per value, attention never materializes its scores, autocast
computes norms and softmax in float32 (PyTorch's list of CUDA operators for autocast), and the
output head takes larger pieces.
"""
# ruff: noqa: TID253

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers.integrations import sdpa_attention

from pipelines.train.trainer import chunked
from pipelines.train.trainer.cpu.dropout import CheapDropout


@contextmanager
def as_on_cuda(*, norms_in_float32: bool, grouped_queries: bool, memory: int) -> Iterator[None]:
    """Inside this context, the few functions that differ in memory behave like CUDA's kernels.

    The functions are replaced where they are looked up, because PyTorch's function modes do not
    reach the recomputation of a checkpoint.

    `norms_in_float32`: as under autocast. `grouped_queries`: attention accepts fewer keys than
    queries (flash); otherwise each key is repeated for every query. `memory`: the card's memory in
    bytes, which decides the pieces of the output head.
    """
    functions: dict[str, Callable[..., Any]] = {
        "dropout": _dropout,
        "scaled_dot_product_attention": _attention(functional.scaled_dot_product_attention),
    }
    if norms_in_float32:
        functions |= {name: _in_float32(getattr(functional, name)) for name in ("layer_norm", "softmax", "log_softmax")}
    replacements: list[tuple[Any, str, Any]] = [(functional, name, function) for name, function in functions.items()]
    replacements.append((chunked, "rows_of_piece", lambda vocabulary, _: chunked.rows_on_card(vocabulary, memory)))
    if not grouped_queries:
        replacements.append((sdpa_attention, "use_gqa_in_sdpa", lambda *_: False))
    originals = [(place, name, getattr(place, name)) for place, name, _ in replacements]
    for place, name, function in replacements:
        setattr(place, name, function)
    try:
        yield
    finally:
        for place, name, function in originals:
            setattr(place, name, function)


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input, *args, **kwargs: function(input.float(), *args, **kwargs)


def _attention(function: Callable[..., Any]) -> Callable[..., Any]:
    """Attention without dropout: with it, a CPU would materialize the scores."""
    return lambda *args, **kwargs: function(*args, **{**kwargs, "dropout_p": 0.0})


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return CheapDropout(p).train(training and p > 0)(input)
