"""Find out in seconds whether a cell fits: two whole optimizer steps on the heaviest micro-batch, which leave no trace.

Adam's states come with the first step, so only the second holds all that training holds: weights, gradients, states and the
largest activations at once. Every cell is probed, also a short one: it costs two or three micro-batches.
"""
# ruff: noqa: TID253

import gc
from collections.abc import Sequence
from typing import Any

import torch

from pipelines.train import batches
from pipelines.train.examples import Tokenized

FLOATS_PER_WIDTH = 30  # numbers that a decoder layer keeps for the backward pass, per token and unit of width (roughly)


def heaviest(
    plan: Sequence[Sequence[Tokenized]], config: Any, *, max_tokens: int, ranks: int = 1, at_once: int | None = None
) -> list[list[Tokenized]]:
    """Micro-batches of one optimizer step that needs as much memory as any of `plan` on any of `ranks`: the heaviest one last, and
    before it a small one where steps accumulate, since then gradients are there already while its activations are.

    `at_once`: the positions whose logits are there together, where their gradient takes their place (`chunked`); None: those of
    all that learn, with their log-softmax and their gradient.
    """
    steps = [part for step in plan for part in batches.dealt(step, max_tokens=max_tokens, ranks=ranks) if part]

    def weight(batch: Sequence[Tokenized]) -> float:
        activations = len(batch) * len(batch[0]) * config.num_hidden_layers * config.hidden_size * FLOATS_PER_WIDTH
        learned = sum(example.learned for example in batch)
        rows = 3 * learned if at_once is None else min(learned, at_once)
        return activations + rows * config.vocab_size

    every = [batch for step in steps for batch in step]
    worst = max(every, key=weight)
    accumulates = any(len(step) > 1 for step in steps)
    return [min(every, key=weight)[-1:], worst] if accumulates else [worst]


def probe(trainer: Any, groups: list[list[Tokenized]]) -> None:
    """Two optimizer steps over `groups` at a learning rate of zero, so that no weight changes and no copy of them is needed
    (p − 0 × update is p, to the bit, whatever the optimizer; only a negative zero may lose its sign). The caller sets the
    random states back."""
    trainer.scaler = torch.amp.GradScaler(
        enabled=False
    )  # a step that overflows would be left out, and Adam's states with it
    trainer.step(groups[-1:], 0.0)
    trainer.step(groups, 0.0)
    trainer.reset_optimizer()
    gc.collect()
