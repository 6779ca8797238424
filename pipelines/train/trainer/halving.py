"""Successive halving over learning rates.

After Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization": all rates are tried for a few steps, then the better half for twice as many steps,
from the start again. All rounds together stay within a cap of steps.

Nothing here trains: `measure` returns the loss of a rate after a number of steps. So the same
losses always make the same choice, even if an earlier process measured some of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.settings.learning_rates import beyond

# The shortest trial: fewer steps would be warm-up only.
FEWEST_STEPS = 3
# The fewest rates to compare: the best, and a worse one on either side.
FEWEST_RATES = 3
# A trial warms up for at least this many steps.
WARM_UP = 2
# Within this share of the best loss the smaller rate wins: a rate that is too large costs the full
# run more.
NEAR = 0.005
# The most rates to add past an end of the range, if the best so far lies there.
MORE = 2
# rate, steps → loss, or None if the trial diverges.
Measure = Callable[[float, int], float | None]


@dataclass(frozen=True)
class Trial:
    """The `loss` after `steps` optimizer steps at the peak rate `rate`; None if they diverged."""

    rate: float
    loss: float | None
    steps: int

    @property
    def order(self) -> tuple[float, float]:
        """The sort key: the lowest loss first, and of equal losses the smaller rate."""
        return (math.inf if self.loss is None else self.loss), self.rate


def halve(rates: Sequence[float], budget: int, measure: Measure) -> list[Trial]:
    """All trials of the search within `budget` steps; empty if the budget is too small. `chosen`
    picks the best one.

    If the first round's best rate lies at an end of the range, up to MORE rates past that end join
    the round. The later rounds then get fewer steps: a rate past the end matters more than the
    length of the last trials.
    """
    halves = rounds(len(rates), budget)
    remaining = middle(rates, halves[0]) if halves else []
    trials: list[Trial] = []
    previous_steps = FEWEST_STEPS - 1
    for place, count in enumerate(halves):
        unspent = budget - sum(trial.steps for trial in trials)
        steps = unspent // _shares(halves[place:])
        # A trial no longer than the previous round's would add nothing.
        if steps <= previous_steps:
            break
        latest = [Trial(rate, measure(rate, steps), steps) for rate in remaining[:count]]
        for _ in range(0 if trials else min(MORE, unspent // steps - count)):
            if (rate := past_the_end(latest, rates)) is not None:
                latest.append(Trial(rate, measure(rate, steps), steps))
        trials, previous_steps = [*trials, *latest], steps
        remaining = [trial.rate for trial in sorted(latest, key=lambda trial: trial.order) if trial.loss is not None]
    return trials


def rate_share(step: int, *, total: int, warmup_share: float) -> float:
    """The share of the peak rate, between 0 and 1: linear warm-up, then constant. `step` counts
    from 0.

    A trial stands for the beginning of a full run, where the cosine has hardly begun to fall. A
    cosine over a few steps would favor rates that are too large for the full run.
    """
    warmup = max(WARM_UP, math.ceil(total * warmup_share))
    return min(1.0, (step + 1) / (warmup + 1))


def past_the_end(trials: Sequence[Trial], rates: Sequence[float]) -> float | None:
    """The next rate to try if the best of `trials` lies at an end: its neighbor in `rates`, else a
    rate past them.

    None if the best lies between others.
    """
    tried = sorted(trial.rate for trial in trials)
    best = min(trials, key=lambda trial: trial.order).rate
    if best not in (tried[0], tried[-1]):
        return None
    above = best == tried[-1]
    known = [rate for rate in rates if (rate > best if above else rate < best)]
    if known:
        return min(known) if above else max(known)
    return beyond(sorted({*rates, *tried}), above=above)


def chosen(trials: Sequence[Trial], *, near: float = NEAR) -> Trial:
    """The best of the longest trials that did not diverge.

    Of the trials within `near`, a share of the best loss, it is the one with the smallest rate.
    """
    converged = [trial for trial in trials if trial.loss is not None] or trials
    longest = max(trial.steps for trial in converged)
    last = [trial for trial in converged if trial.steps == longest]
    best = min(last, key=lambda trial: trial.order)
    if best.loss is None:
        return best
    return min((one for one in last if one.loss is not None and one.loss <= best.loss * (1 + near)), key=_rate)


def _rate(trial: Trial) -> float:
    return trial.rate


def rounds(rates: int, budget: int) -> list[int]:
    """The number of rates in each round, down to two.

    A small `budget` starts with fewer rates. A very small one gives a single round of three, or no
    round at all if not even these get FEWEST_STEPS each.
    """
    for first in range(rates, FEWEST_RATES - 1, -1):
        halves = [first]
        while halves[-1] > 2:
            halves.append(math.ceil(halves[-1] / 2))
        if budget // _shares(halves) >= FEWEST_STEPS:
            return halves
    return [FEWEST_RATES] if budget // FEWEST_RATES >= FEWEST_STEPS else []


def _shares(halves: Sequence[int]) -> int:
    """The cost of the rounds, in trials of the first round: each round's trials take twice as many
    steps as before."""
    return sum(count * 2**place for place, count in enumerate(halves))


def middle(rates: Sequence[float], count: int) -> list[float]:
    """`count` neighbors from the middle of `rates`."""
    first = math.ceil((len(rates) - count) / 2)
    return list(rates[first : first + count])
