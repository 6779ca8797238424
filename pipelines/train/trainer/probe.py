"""Find out in seconds whether a cell fits into memory: two optimizer steps on the heaviest
micro-batches.

They leave no trace. Adam allocates its states in the first step, so only the second holds
everything that training holds: weights, gradients, states and the largest activations. Every cell
is probed, even a short one: the probe costs two or three micro-batches.
"""
# ruff: noqa: TID253

import gc
from typing import Any

import torch

from pipelines.train.trainer.examples import Tokenized


def probe(trainer: Any, groups: list[list[Tokenized]]) -> None:
    """Two optimizer steps at learning rate zero, the second over the micro-batches `groups`.

    No weight changes, so no copy of the weights is needed: p − 0 × update is p to the bit, whatever
    the optimizer (only a negative zero may lose its sign). The caller restores the random states.
    """
    # With loss scaling, a step that overflows would be skipped, and Adam's states would not be
    # allocated.
    trainer.scaler = torch.amp.GradScaler(enabled=False)
    # A single row is enough for the step that allocates the states.
    trainer.step([groups[-1][-1:]], 0.0)
    trainer.step(groups, 0.0)
    trainer.reset_optimizer()
    gc.collect()
