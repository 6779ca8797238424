"""When a run pauses its steps: when a checkpoint is due, and how often and on which examples the
curve is measured.

The curve's rhythm depends on counts, never on time, so that a resumed run has the same points.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.runs.clock import Stopwatch
from pipelines.train.trainer.examples import Tokenized

# Minutes between checkpoints for specs from before the setting existed.
DEFAULT_MINUTES = 10.0
# The largest share of a run's time for checkpoints, and for the curve of a long run.
SHARE = 0.05
# Held-out records of the curve, for specs from before the setting existed.
CURVE_RECORDS = 256
# Up to this many records cost little: the curve follows the setting.
FEW_RECORDS = 32
# A curve has at least this many points, whatever they cost.
FEWEST_POINTS = 20
# The cost of a training step in evaluations of its tokens: one forward pass, and a backward pass
# that costs two.
PASSES = 3


class CheckpointPace:
    """When the next checkpoint is due.

    It is due every `checkpoint_every_steps` if the spec names that. Otherwise time decides: every
    `checkpoint_every_minutes`, and not before the time of the last checkpoint divided by SHARE has
    passed.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._steps: int | None = spec.get("checkpoint_every_steps")
        self._least = 60 * (spec.get("checkpoint_every_minutes") or DEFAULT_MINUTES)
        self._wait = self._least
        self._since = Stopwatch()

    @property
    def by_time(self) -> bool:
        """Whether a clock decides; clocks differ between ranks."""
        return self._steps is None

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        return self._since.total() >= self._wait if self._steps is None else step % self._steps == 0

    def written(self, seconds: float) -> None:
        """Note that writing a checkpoint has just taken `seconds`."""
        self._wait = max(self._least, seconds / SHARE)
        self._since = Stopwatch()


def curve_sample(held_out: Sequence[Tokenized], most: int | None = None) -> list[Tokenized]:
    """The examples of at most `most` records (None: CURVE_RECORDS), chosen by their ids alone, in
    the order of `held_out`."""
    most = most or CURVE_RECORDS
    ids = list(dict.fromkeys(example.example_id for example in held_out))
    if len(ids) <= most:
        return list(held_out)
    ranked = sorted(ids, key=lambda name: hashlib.sha256(f"curve/{name}".encode()).digest())
    chosen = set(ranked[:most])
    return [example for example in held_out if example.example_id in chosen]


def curve_every(plan: Sequence[Sequence[Tokenized]], sample: Sequence[Tokenized], every: int) -> int:
    """The steps of `plan` between two measurements of the loss on `sample`: `every`, or a multiple
    of it.

    The multiple keeps the evaluation within SHARE of the training's computation, but leaves at
    least FEWEST_POINTS. For few records it is always `every`.
    """
    if len({example.example_id for example in sample}) <= FEW_RECORDS:
        return every
    tokens_per_step = sum(len(example) for step in plan for example in step) / len(plan)
    factor = sum(map(len, sample)) / (SHARE * PASSES * tokens_per_step * every)
    largest_factor = len(plan) // (FEWEST_POINTS * every)
    return every * max(1, min(math.ceil(factor), largest_factor))
