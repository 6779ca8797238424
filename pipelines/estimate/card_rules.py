"""What CUDA does otherwise than a CPU, for a rehearsal that has no card: dropout keeps one byte a value, attention never
spells out its scores, and autocast computes norms and softmax in float32 (PyTorch's list of CUDA operators for autocast)."""
# ruff: noqa: TID253

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from pipelines.train.dropout import CheapDropout


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """While open, the few functions of torch.nn.functional that differ in memory do as CUDA's kernels. They are replaced where
    they are looked up, since PyTorch's function modes do not reach what a checkpoint computes again."""
    plain = {name: getattr(functional, name) for name in ("layer_norm", "softmax", "log_softmax")}
    changed: dict[str, Callable[..., Any]] = {name: _in_float32(function) for name, function in plain.items()}
    changed |= {
        "dropout": _dropout,
        "scaled_dot_product_attention": _attention(functional.scaled_dot_product_attention),
    }
    before = {name: getattr(functional, name) for name in changed}
    for name, function in changed.items():
        setattr(functional, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(functional, name, function)


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input, *args, **kwargs: function(input.float(), *args, **kwargs)


def _attention(function: Callable[..., Any]) -> Callable[..., Any]:
    """On a CPU dropout would make it spell the scores out."""
    return lambda *args, **kwargs: function(*args, **{**kwargs, "dropout_p": 0.0})


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return CheapDropout(p).train(training and p > 0)(input)
