"""How often 95 % intervals hold the truth, a method's expected loss over records and training runs.

The simulation uses the functions behind the tables. It varies the number of records and runs, the
spread between runs, and the shape of the records' losses. A line states `covered_pct` and `width`,
the interval's mean width relative to the width with known variances.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

import numpy as np

from pipelines.compare.quality import Interval, Qualities, Quality
from pipelines.compare.seeds import Spread
from pipelines.evaluate.statistics import Z95

# Simulated cells a case: a share of 95 % is then known to within 1 point
REPEATS = 2_000
# Simulated cells with the same record sizes; they are resampled together
SHARED = 50
RECORDS, RUNS, SPREADS = (10, 40, 200), (1, 2, 3, 5), (0.0, 0.5, 1.0, 3.0)
# Degrees of freedom of a borrowed spread
KNOWN_RUNS = 12


@dataclass(frozen=True)
class Shape:
    """Distribution of the records.

    - `sizes`: standard deviation of the logarithm of a record's bytes
    - `nats_spread`: standard deviation of nats per byte around 1, `skewed` or normal
    - `noise`: standard deviation of one run on one record, as a share of `nats_spread`
    """

    name: str
    sizes: float
    nats_spread: float
    skewed: bool = False
    noise: float = 0.0

    def draw_sizes(self, records: int, rng: np.random.Generator) -> np.ndarray:
        return rng.lognormal(0, self.sizes, records)

    def draw_nats_per_byte(self, count: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Nats per byte with mean 1 and standard deviation `nats_spread`."""
        if not self.skewed:
            return rng.normal(1, self.nats_spread, count)
        deviation = sqrt(log(1 + self.nats_spread**2))
        return rng.lognormal(-(deviation**2) / 2, deviation, count)

    def records_error(self, records: int) -> float:
        """Standard error of nats per byte, a ratio of sums, due to the choice of records."""
        return self.nats_spread * exp(self.sizes**2 / 2) / sqrt(records)


SHAPES = (
    Shape("even", 0.0, 0.3),
    Shape("uneven", 0.6, 0.3),
    Shape("very skewed", 0.6, 0.45, skewed=True),
    Shape("noisy", 0.6, 0.3, noise=0.5),
    # For comparison, the packaged corpus: sizes 0.6, nats per byte 0.13 and less skewed
    Shape("skewed", 0.6, 0.3, skewed=True),
)


@dataclass(frozen=True)
class Case:
    """One combination of the simulated factors.

    - `spread`: standard deviation between training runs, in standard errors of the records
    - `known`: an estimate of the spread from other cells exists
    """

    shape: Shape
    records: int
    runs: int
    spread: float
    known: bool = False

    @property
    def run_deviation(self) -> float:
        return self.spread * self.shape.records_error(self.records)

    def intervals(self, repeats: int, rng: np.random.Generator) -> list[Interval]:
        """The intervals of `repeats` simulated cells, each on its own records. The truth is 1 nat a
        byte."""
        return [one for start in range(0, repeats, SHARED) for one in self._together(min(SHARED, repeats - start), rng)]

    def _together(self, cells: int, rng: np.random.Generator) -> list[Interval]:
        sizes = self.shape.draw_sizes(self.records, rng)
        per_byte = self.shape.draw_nats_per_byte((cells, 1, self.records), rng)
        per_byte = per_byte + rng.normal(0, self.run_deviation, (cells, self.runs, 1))
        noise = self.shape.noise * self.shape.nats_spread
        per_byte = per_byte + rng.normal(0, noise, (cells, self.runs, self.records))
        examples = tuple(map(str, range(self.records)))
        known = {(f"m{number}", "x"): Quality(examples, one * sizes, sizes) for number, one in enumerate(per_byte)}
        known["untouched", "base"] = Quality(examples, np.zeros((1, self.records)), sizes, trained=False)
        assumed = {cell: self._estimate(rng) for cell in known} if self.known else {}
        rows = [{"model": model, "method": method} for model, method in known if method == "x"]
        base = {"model": "untouched", "method": "base"}
        intervals = Qualities(known, assumed=assumed).method_differences(rows, base)
        return [one for one in intervals if one]

    def _estimate(self, rng: np.random.Generator) -> Spread:
        """The spread as KNOWN_RUNS runs of other cells would estimate it, in bits."""
        deviation = self.run_deviation * sqrt(rng.chisquare(KNOWN_RUNS) / KNOWN_RUNS)
        return Spread(deviation / log(2), KNOWN_RUNS, "other cells")

    def known_width(self) -> float:
        """The interval's width in bits per byte if all variances were known."""
        error = self.shape.records_error(self.records)
        noise = (self.shape.noise * error) ** 2
        return 2 * Z95 * sqrt(error**2 + (self.run_deviation**2 + noise) / self.runs) / log(2)


def covered(intervals: list[Interval]) -> float:
    """The share of intervals that hold the truth."""
    return sum(one.low <= 1 / log(2) <= one.high for one in intervals) / len(intervals)


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        for records in RECORDS:
            for runs in RUNS:
                for spread in SPREADS:
                    yield Case(shape, records, runs, spread)
                    if runs == 1:
                        yield Case(shape, records, runs, spread, known=True)


def measure() -> Iterator[dict[str, Any]]:
    for number, case in enumerate(cases()):
        intervals = case.intervals(REPEATS, np.random.default_rng(number))
        yield {
            "benchmark": "coverage",
            "records_are": case.shape.name,
            "records": case.records,
            "runs": case.runs,
            "spread_known": case.known,
            "spread": case.spread,
            "covered_pct": round(100 * covered(intervals), 1),
            "width": round(float(np.mean([one.high - one.low for one in intervals])) / case.known_width(), 2),
        }
