"""Quality with its uncertainty: a cell's bits per byte over held-out records, and differences
between cells with intervals.

Intervals are 95 % bootstrap intervals over records (Efron & Tibshirani 1993), expanded for small
samples (`statistics.expanded_tail`). Two cells are compared on the same resamples of the same
records, so the difficulty of a record cancels out (Koehn 2004; Berg-Kirkpatrick et al. 2012).
Several training runs widen the intervals by the spread between them (`seeds.widening`); three runs
are too few to be resampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import log
from typing import Any

import numpy as np

from pipelines.compare.covers import basis
from pipelines.compare.seeds import Component, Sources, Spread, component, pooled, records_variance, spread_of, widening
from pipelines.evaluate.statistics import expanded_tail
from pipelines.lake.files import read_jsonl
from pipelines.runs.cells import Evaluation

Row = dict[str, Any]
Cell = tuple[str, str]
# With fewer records a bootstrap interval is meaningless.
MIN_RECORDS = 5
# Degrees of freedom (three runs) that a method's own spread needs; two runs say too little.
MIN_DEGREES = 2
RESAMPLES = 4_000
# More records than this are resampled in this number of groups: the spread is known within 5 %, and
# the work is bounded.
GROUPS = 250
SEED = 1
TAIL = 0.025
# Cells whose resamples are in memory at the same time.
BATCH = 500


@dataclass(frozen=True)
class Interval:
    """A value in bits per byte and its 95 % interval. For a difference, below zero is better."""

    value: float
    low: float
    high: float

    @property
    def below(self) -> bool:
        return self.value < 0 and self.high < 0

    @property
    def above(self) -> bool:
        return self.value > 0 and self.low > 0


@dataclass(frozen=True, eq=False)
class Quality:
    """A cell's loss on each record.

    `nats`: (runs, records), the loss of the completions' ordinary tokens. `sizes`: (records,),
    their UTF-8 bytes. `examples`: the sorted ids of the records. `seeds`: the seeds of the runs,
    empty if they do not matter. Runs that are not `trained` are all equal.
    """

    examples: tuple[str, ...]
    nats: np.ndarray
    sizes: np.ndarray
    seeds: tuple[int, ...] = ()
    trained: bool = True

    def on(self, examples: Sequence[str]) -> "Quality":
        """The quality on some of its records."""
        place = {name: number for number, name in enumerate(self.examples)}
        chosen = [place[name] for name in examples]
        return replace(self, examples=tuple(examples), nats=self.nats[:, chosen], sizes=self.sizes[chosen])

    @property
    def mean_nats(self) -> np.ndarray:
        """(1, records): the mean over the runs."""
        return self.nats.mean(axis=0, keepdims=True)

    @property
    def runs(self) -> int:
        """The number of training runs; 0 if nothing was trained."""
        return len(self.nats) if self.trained else 0

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.mean(axis=0).sum() / (log(2) * self.sizes.sum()))

    def interval(self) -> Interval | None:
        return intervals([self.nats if self.trained else self.nats[:1]], self.sizes)[0]


def record_values(evaluation: Evaluation) -> dict[str, tuple[float, int]]:
    """example_id → (nats of the completion's ordinary tokens, its UTF-8 bytes) for every
    measured record."""
    rows = read_jsonl(evaluation.folder / "losses.jsonl")
    return {row["example_id"]: (row["scored_nats"], row["bytes"]) for row in rows}


def quality_of(evaluations: Sequence[Evaluation], *, seeds: Sequence[int] = (), trained: bool = True) -> Quality | None:
    """The quality over the evaluations of a cell's runs; None if they have no records or
    different ones."""
    runs = [record_values(evaluation) for evaluation in evaluations]
    if not runs or not runs[0] or any(one.keys() != runs[0].keys() for one in runs):
        return None
    examples = tuple(sorted(runs[0]))
    nats = np.array([[one[name][0] for name in examples] for one in runs], dtype=float)
    sizes = np.array([runs[0][name][1] for name in examples], dtype=float)
    return Quality(examples, nats, sizes, tuple(seeds), trained)


class Qualities:
    """The quality of every row that has one, and the differences between them.

    The spread between training runs comes from `runs`, all runs of a cell, else from the `known`
    quality. `assumed` holds spreads that are used while no cell of the model was trained with
    several seeds.
    """

    def __init__(
        self,
        known: Mapping[Cell, Quality],
        *,
        runs: Mapping[Cell, Quality] | None = None,
        assumed: Mapping[Cell, Spread] | None = None,
    ) -> None:
        self._known, self._runs, self._assumed = known, runs or {}, assumed or {}

    def of(self, row: Row) -> Quality | None:
        return self._known.get((row["model"], row["method"]))

    def difference(self, row: Row, other: Row) -> Interval | None:
        """Bits per byte of `row` minus those of `other`; None if they were not measured on the
        same records."""
        return self.differences([row], other)[0]

    def differences(self, rows: Sequence[Row], other: Row) -> list[Interval | None]:
        """Differences between the measured results. For a cell with one run, they hold for that
        run only."""
        return self._differences(rows, other, borrow=False)

    def method_difference(self, row: Row, other: Row) -> Interval | None:
        return self.method_differences([row], other)[0]

    def method_differences(self, rows: Sequence[Row], other: Row) -> list[Interval | None]:
        """Differences between the methods. For a cell with one run, the spread between training
        runs widens them, if known."""
        return self._differences(rows, other, borrow=True)

    def spread(self, row: Row) -> Spread | None:
        """The spread between the training runs of the row's method; None if it is not known.

        A row with several runs has its own spread. So has a cell with three runs in all, counting
        seeds that the profile does not name. Otherwise it is the pooled spread of the model's cells
        with several runs, else the assumed one.
        """
        quality = self.of(row)
        if quality is None or not quality.trained:
            return None
        cell = row["model"], row["method"]
        own = self._own_spreads.get(cell)
        if quality.runs > 1 or (own and own.degrees >= MIN_DEGREES):
            return own
        return self._pooled.get(row["model"]) or self._assumed.get(cell)

    def sources(self, row: Row, other: Row) -> Sources | None:
        """The sources of uncertainty of the difference between the methods; None if it has no
        interval."""
        mine, theirs = self.of(row), self.of(other)
        if mine is None or theirs is None or not same_records(mine, theirs) or len(mine.sizes) < MIN_RECORDS:
            return None
        records = records_variance((mine.mean_nats - theirs.mean_nats)[0], mine.sizes)
        runs = sum(one.variance for one in [*_components(mine, theirs), *self._borrowed_components(row, other)])
        spreads = [self.spread(one) for one, quality in ((row, mine), (other, theirs)) if quality.trained]
        known = [one.value**2 for one in spreads if one]
        return Sources(len(mine.sizes), records, runs, sum(known) if len(known) == len(spreads) else None)

    def _borrowed_components(self, row: Row, other: Row) -> list[Component]:
        spreads = [spread for one in (row, other) for spread in self.borrowed([one])]
        return [spread.of_single_runs(spreads.count(spread)) for spread in dict.fromkeys(spreads)]

    def borrowed(self, rows: Sequence[Row]) -> list[Spread]:
        """The spreads that widened the differences between the methods of `rows`, each once."""
        single_runs = [row for row in rows if (quality := self.of(row)) and quality.runs == 1]
        return list(dict.fromkeys(spread for row in single_runs if (spread := self.spread(row))))

    def basis(self, rows: Sequence[Row]) -> str:
        """The basis of a verdict between the methods of `rows`: the number of training runs, and
        the spreads that widened it."""
        spreads = self.borrowed(rows) if len(rows) > 1 else []
        return basis([quality.runs for row in rows if (quality := self.of(row)) and quality.trained], spreads)

    @cached_property
    def _pooled(self) -> dict[str, Spread]:
        by_model: dict[str, list[Spread]] = {}
        for (model, _), spread in self._own_spreads.items():
            by_model.setdefault(model, []).append(spread)
        return {model: common for model, spreads in by_model.items() if (common := pooled(spreads))}

    @cached_property
    def _own_spreads(self) -> dict[Cell, Spread]:
        spreads = {
            cell: spread_of(quality.nats, quality.sizes, cell[1])
            for cell, quality in {**self._known, **self._runs}.items()
            if quality.trained and len(quality.sizes) >= MIN_RECORDS
        }
        return {cell: spread for cell, spread in spreads.items() if spread}

    def _differences(self, rows: Sequence[Row], other: Row, *, borrow: bool) -> list[Interval | None]:
        theirs = self.of(other)
        if theirs is None:
            return [None] * len(rows)
        paired = {n: mine for n, row in enumerate(rows) if (mine := self.of(row)) and same_records(mine, theirs)}
        nats = [mine.mean_nats - theirs.mean_nats for mine in paired.values()]
        intervals = dict(zip(paired, over_records(nats, theirs.sizes), strict=True))
        differences: list[Interval | None] = [None] * len(rows)
        for (number, mine), values in zip(paired.items(), nats, strict=True):
            components = _components(mine, theirs)
            if borrow and mine is not theirs:
                components += self._borrowed_components(rows[number], other)
            if interval := intervals[number]:
                differences[number] = _widened(interval, values[0], theirs.sizes, components)
        return differences


def same_records(one: Quality, other: Quality) -> bool:
    return one.examples == other.examples and bool((one.sizes == other.sizes).all())


def paired_difference(one: Quality, other: Quality) -> Interval | None:
    """Bits per byte of `one` minus those of `other`, on the same records."""
    nats = one.mean_nats - other.mean_nats
    (interval,) = over_records([nats], one.sizes)
    return interval and _widened(interval, nats[0], one.sizes, _components(one, other))


def _components(one: Quality, other: Quality) -> list[Component]:
    """The contributions of both sides' training runs to the variance of their difference.

    Runs with equal seeds saw the data in the same order, so they are compared seed by seed; other
    runs count as independent. A single run contributes nothing.
    """
    if (
        one.trained
        and other.trained
        and len(one.nats) > 1
        and one.seeds == other.seeds
        and len(one.nats) == len(other.nats)
    ):
        components = [component(one.nats - other.nats, one.sizes)]
    else:
        components = [component(quality.nats, quality.sizes) for quality in (one, other) if quality.trained]
    return [added for added in components if added]


def _widened(interval: Interval, nats: np.ndarray, sizes: np.ndarray, components: Sequence[Component]) -> Interval:
    """`interval` over the records of `nats` and `sizes`, widened by the contributions of
    training runs."""
    if not components:
        return interval
    wider = widening(len(sizes), records_variance(nats, sizes), components)
    low, high = wider.of(interval.value - interval.low), wider.of(interval.high - interval.value)
    return Interval(interval.value, interval.value - low, interval.value + high)


def intervals(nats: Sequence[np.ndarray], sizes: np.ndarray) -> list[Interval | None]:
    """Bits per byte, Σ nats / (ln 2 × Σ bytes), of each item of `nats` with its interval.

    Each item is (runs, records), over the same records with `sizes` bytes. The interval covers
    records and, if there are several, training runs. None under `MIN_RECORDS` records.
    """
    means = [one.mean(axis=0, keepdims=True) for one in nats]
    parts = zip(nats, means, over_records(means, sizes), strict=True)
    return [
        interval and _widened(interval, mean[0], sizes, [added] if (added := component(one, sizes)) else [])
        for one, mean, interval in parts
    ]


def over_records(nats: Sequence[np.ndarray], sizes: np.ndarray) -> list[Interval | None]:
    """Bits per byte, Σ nats / (ln 2 × Σ bytes), of each item of `nats` with its interval over the
    records.

    Each item is (1, records), over the same records with `sizes` bytes. None under `MIN_RECORDS`
    records.
    """
    if len(sizes) < MIN_RECORDS:
        return [None] * len(nats)
    tail = expanded_tail(TAIL, len(sizes))
    results: list[Interval | None] = []
    for start in range(0, len(nats), BATCH):
        batch = nats[start : start + BATCH]
        sampled = np.column_stack([_resampled(one, sizes) for one in batch])
        lows, highs = np.quantile(sampled, [tail, 1 - tail], axis=0)
        values = [one[0].sum() / (log(2) * sizes.sum()) for one in batch]
        results += [Interval(float(v), float(lo), float(hi)) for v, lo, hi in zip(values, lows, highs, strict=True)]
    return results


def _resampled(nats: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(resamples,): bits per byte of each resample of records; `nats`: (1, records)."""
    if len(sizes) > GROUPS:
        nats, sizes = _grouped(nats), _grouped(sizes[None])[0]
    counts = record_counts(len(sizes))
    return (counts @ nats.T)[:, 0] / (log(2) * (counts @ sizes))


def _grouped(values: np.ndarray) -> np.ndarray:
    """Sum (1, records) into (1, groups). A group always has the same records."""
    order = np.random.default_rng(SEED).permutation(values.shape[1]) % GROUPS
    return np.stack([np.bincount(order, weights=one, minlength=GROUPS) for one in values])


@lru_cache(maxsize=4)
def record_counts(records: int) -> np.ndarray:
    """(resamples, records): how often each record occurs in each resample. Equal for all cells,
    which makes comparisons paired."""
    drawn = np.random.default_rng(SEED).integers(0, records, (RESAMPLES, records))
    places = drawn + records * np.arange(RESAMPLES)[:, None]
    return np.bincount(places.ravel(), minlength=RESAMPLES * records).reshape(RESAMPLES, records).astype(float)
