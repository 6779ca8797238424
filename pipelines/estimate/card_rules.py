"""What CUDA does otherwise than a CPU, for a rehearsal that has no card: dropout keeps one byte a value, attention never
spells out its scores, autocast computes norms and softmax in float32 (PyTorch's list of CUDA operators for autocast), and the
output head takes larger pieces."""
# ruff: noqa: TID253

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from pipelines.train import chunked
from pipelines.train.dropout import CheapDropout

CARD = 80 * 10**9  # bytes of the card whose pieces are rehearsed: none takes larger ones


@contextmanager
def as_on_cuda(*, autocast: bool) -> Iterator[None]:
    """While open, the few functions of torch.nn.functional that differ in memory do as CUDA's kernels, with `autocast` as under
    that. They are replaced where they are looked up, since PyTorch's function modes do not reach what a checkpoint computes
    again."""
    wide = ("layer_norm", "softmax", "log_softmax") if autocast else ()
    changed: dict[tuple[Any, str], Callable[..., Any]] = {
        (functional, name): _in_float32(getattr(functional, name)) for name in wide
    }
    changed |= {
        (functional, "dropout"): _dropout,
        (functional, "scaled_dot_product_attention"): _attention(functional.scaled_dot_product_attention),
        (chunked, "rows_of_piece"): lambda vocabulary, _device: chunked.rows_on_card(vocabulary, CARD),
    }
    before = {(place, name): getattr(place, name) for place, name in changed}
    for (place, name), function in changed.items():
        setattr(place, name, function)
    try:
        yield
    finally:
        for (place, name), function in before.items():
            setattr(place, name, function)


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input, *args, **kwargs: function(input.float(), *args, **kwargs)


def _attention(function: Callable[..., Any]) -> Callable[..., Any]:
    """On a CPU dropout would make it spell the scores out."""
    return lambda *args, **kwargs: function(*args, **{**kwargs, "dropout_p": 0.0})


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return CheapDropout(p).train(training and p > 0)(input)
