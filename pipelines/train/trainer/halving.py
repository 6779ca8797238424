"""Successive halving (Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization") over
learning rates: all are tried for a few steps, then the better half for twice as many, from the start again. All rounds together
take no more steps than a cap.

Nothing here trains: `measure` says the loss of a rate after so many steps, so the same losses make the same choice, also where some
of them were found out by an earlier process.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.settings.learning_rates import beyond

FEWEST_STEPS = 3  # of a trial: with fewer, warm-up is all there is
FEWEST_RATES = 3  # the best, and a worse one on either side
WARM_UP = 2  # steps of a trial, at least
NEAR = (
    0.005  # of the best loss: so near to it a smaller rate is chosen, since a rate too large costs the whole run more
)
MORE = 2  # rates past an end, where the best so far lies at it
Measure = Callable[[float, int], float | None]  # rate, steps → loss, None where it diverges


@dataclass(frozen=True)
class Trial:
    """`steps` optimizer steps at the peak rate `rate` ended at `loss`, None where they diverged."""

    rate: float
    loss: float | None
    steps: int

    @property
    def order(self) -> tuple[float, float]:
        """The best first; of equal losses the smaller rate."""
        return (math.inf if self.loss is None else self.loss), self.rate


def halve(rates: Sequence[float], budget: int, measure: Measure) -> list[Trial]:
    """Every trial that the search makes within `budget` steps; `chosen` says which is the best. Empty where there are too few steps
    to choose by.

    Where the first round's best lies at an end of what was tried, up to MORE rates past that end join the round, at the cost of
    those that follow: what lies past an end matters more than how long the last trials are.
    """
    halves = rounds(len(rates), budget)
    remaining = middle(rates, halves[0]) if halves else []
    trials: list[Trial] = []
    previous_steps = FEWEST_STEPS - 1
    for place, count in enumerate(halves):
        unspent = budget - sum(trial.steps for trial in trials)
        steps = unspent // _shares(halves[place:])
        if steps <= previous_steps:  # no longer than those it would be chosen by already
            break
        latest = [Trial(rate, measure(rate, steps), steps) for rate in remaining[:count]]
        for _ in range(0 if trials else min(MORE, unspent // steps - count)):
            if (rate := past_the_end(latest, rates)) is not None:
                latest.append(Trial(rate, measure(rate, steps), steps))
        trials, previous_steps = [*trials, *latest], steps
        remaining = [trial.rate for trial in sorted(latest, key=lambda trial: trial.order) if trial.loss is not None]
    return trials


def rate_share(step: int, *, total: int, warmup_share: float) -> float:
    """Linear warm-up, then the peak rate until the trial ends; `step` counts from 0. Between 0 and 1.

    A trial is the beginning of a whole run, where the cosine has hardly begun to fall. A cosine within a few steps would favor
    rates that are too large for the whole run.
    """
    warmup = max(WARM_UP, math.ceil(total * warmup_share))
    return min(1.0, (step + 1) / (warmup + 1))


def past_the_end(trials: Sequence[Trial], rates: Sequence[float]) -> float | None:
    """The next rate to try where the best of `trials` lies at an end: the neighbor in `rates`, else one as far past their end."""
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
    """The best trial of the last round, whose trials are the longest, or of the last one in which some did not diverge. Of those
    within `near` (a share of the best loss) it is the one with the smallest rate."""
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
    """How many rates each round tries, down to two. Fewer begin where `budget` is short; three make one round where it is very
    short, and none where not even they get FEWEST_STEPS each."""
    for first in range(rates, FEWEST_RATES - 1, -1):
        halves = [first]
        while halves[-1] > 2:
            halves.append(math.ceil(halves[-1] / 2))
        if budget // _shares(halves) >= FEWEST_STEPS:
            return halves
    return [FEWEST_RATES] if budget // FEWEST_RATES >= FEWEST_STEPS else []


def _shares(halves: Sequence[int]) -> int:
    """The cost of those rounds in steps of a trial of the first of them: each takes twice as many as the one before."""
    return sum(count * 2**place for place, count in enumerate(halves))


def middle(rates: Sequence[float], count: int) -> list[float]:
    """`count` neighbors from the middle of `rates`."""
    first = math.ceil((len(rates) - count) / 2)
    return list(rates[first : first + count])
