"""Find out in seconds whether a cell fits: two whole optimizer steps on the heaviest micro-batch, which leave no trace.

Adam's states come with the first step, so only the second holds all that training holds: weights, gradients, states and the
largest activations at once. Every cell is probed, also a short one: it costs two or three micro-batches.
"""
# ruff: noqa: TID253

import gc
from typing import Any

import torch

from pipelines.train.trainer.examples import Tokenized


def probe(trainer: Any, groups: list[list[Tokenized]]) -> None:
    """Two optimizer steps, the second over the micro-batches `groups`, at a learning rate of zero, so that no weight changes and no
    copy of them is needed (p − 0 × update is p, to the bit, whatever the optimizer; only a negative zero may lose its sign). The
    caller sets the random states back."""
    trainer.scaler = torch.amp.GradScaler(
        enabled=False
    )  # a step that overflows would be left out, and Adam's states with it
    trainer.step([groups[-1][-1:]], 0.0)  # a single row brings them
    trainer.step(groups, 0.0)
    trainer.reset_optimizer()
    gc.collect()
