"""How often a run turns aside from its steps: when a checkpoint is due, and how often the curve is measured, and on what.

What decides about the curve is counted, never timed, so that a run that goes on from a checkpoint has the same points.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.runs.clock import Stopwatch
from pipelines.train.trainer.examples import Tokenized

DEFAULT_MINUTES = 10.0  # between checkpoints, of a spec that was written before there was the setting
SHARE = 0.05  # of a run's time is for checkpoints at most, and for the curve of a long run
CURVE_RECORDS = 256  # held-out records that the curve is measured on, of as many as there are
FEW_RECORDS = 32  # so few cost little: as often as the setting says
FEWEST_POINTS = 20  # on a curve, whatever they cost
PASSES = 3  # a training step costs so many times the evaluation of its tokens: forward, and twice that backward


class CheckpointPace:
    """When the next checkpoint is due: after every `checkpoint_every_steps` where the spec names them. Else by time: every
    `checkpoint_every_minutes`, and no sooner than the last one took, divided by SHARE."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._steps: int | None = spec.get("checkpoint_every_steps")
        self._least = 60 * (spec.get("checkpoint_every_minutes") or DEFAULT_MINUTES)
        self._wait = self._least
        self._since = Stopwatch()

    @property
    def by_time(self) -> bool:
        """Whether a clock decides, which differs from rank to rank."""
        return self._steps is None

    def is_due(self, step: int) -> bool:
        """Whether to write one after `step` steps."""
        return self._since.total() >= self._wait if self._steps is None else step % self._steps == 0

    def written(self, seconds: float) -> None:
        """One has just been written, which took `seconds`."""
        self._wait = max(self._least, seconds / SHARE)
        self._since = Stopwatch()


def curve_sample(held_out: Sequence[Tokenized]) -> list[Tokenized]:
    """The examples of at most CURVE_RECORDS records, chosen by their ids alone, in the order of `held_out`."""
    ids = list(dict.fromkeys(example.example_id for example in held_out))
    if len(ids) <= CURVE_RECORDS:
        return list(held_out)
    ranked = sorted(ids, key=lambda name: hashlib.sha256(f"curve/{name}".encode()).digest())
    chosen = set(ranked[:CURVE_RECORDS])
    return [example for example in held_out if example.example_id in chosen]


def curve_every(plan: Sequence[Sequence[Tokenized]], sample: Sequence[Tokenized], every: int) -> int:
    """After how many steps of `plan` the loss on `sample` is measured again: `every`, or the multiple of it that keeps the
    tokens evaluated within SHARE of those computed in training, as long as FEWEST_POINTS remain. Never more for few records."""
    if len({example.example_id for example in sample}) <= FEW_RECORDS:
        return every
    tokens_per_step = sum(len(example) for step in plan for example in step) / len(plan)
    factor = sum(map(len, sample)) / (SHARE * PASSES * tokens_per_step * every)
    largest_factor = len(plan) // (FEWEST_POINTS * every)
    return every * max(1, min(math.ceil(factor), largest_factor))
