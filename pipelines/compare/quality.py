"""Quality with its uncertainty: a cell's bits per byte over held-out records, and how much of a difference between two cells is
more than the choice of these records (and seeds).

Intervals are 95 % bootstrap intervals over records (Efron & Tibshirani 1993), expanded for small samples
(`statistics.expanded_tail`). Two cells are compared on the same resamples of the same records, so that what makes a record hard for
both cancels out (Koehn 2004; Berg-Kirkpatrick et al. 2012). Several training runs widen them by what the runs differ by
(`seeds.widening`): three runs are too few to be resampled.
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
MIN_RECORDS = 5  # fewer have no interval worth the name
MIN_DEGREES = 2  # of freedom, three runs: two say too little of their own method
RESAMPLES = 4_000
GROUPS = (
    250  # of more records, so many groups are resampled: the spread is known within 5 %, and the work stays the same
)
SEED = 1
TAIL = 0.025
BATCH = 500  # cells whose resamples are held in memory together


@dataclass(frozen=True)
class Interval:
    """A value in bits per byte and its 95 % interval; of a difference, below zero is better."""

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
    """What a cell lost on each record. `nats`: (runs, records), of the completions' ordinary tokens; `sizes`: (records,), their
    UTF-8 bytes; `examples`: the records' ids, sorted; `seeds`: those of the runs, empty where they do not matter. Runs that are not
    `trained` are all alike."""

    examples: tuple[str, ...]
    nats: np.ndarray
    sizes: np.ndarray
    seeds: tuple[int, ...] = ()
    trained: bool = True

    def on(self, examples: Sequence[str]) -> "Quality":
        """The same on some of its records."""
        place = {name: number for number, name in enumerate(self.examples)}
        chosen = [place[name] for name in examples]
        return replace(self, examples=tuple(examples), nats=self.nats[:, chosen], sizes=self.sizes[chosen])

    @property
    def mean_nats(self) -> np.ndarray:
        """(1, records): the mean over the runs."""
        return self.nats.mean(axis=0, keepdims=True)

    @property
    def runs(self) -> int:
        """How many training runs tell of the method; none where nothing was trained."""
        return len(self.nats) if self.trained else 0

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.mean(axis=0).sum() / (log(2) * self.sizes.sum()))

    def interval(self) -> Interval | None:
        return intervals([self.nats if self.trained else self.nats[:1]], self.sizes)[0]


def record_values(evaluation: Evaluation) -> dict[str, tuple[float, int]]:
    """example_id → (nats of the completion's ordinary tokens, its UTF-8 bytes), of every record that was measured."""
    rows = read_jsonl(evaluation.folder / "losses.jsonl")
    return {row["example_id"]: (row["scored_nats"], row["bytes"]) for row in rows}


def quality_of(evaluations: Sequence[Evaluation], *, seeds: Sequence[int] = (), trained: bool = True) -> Quality | None:
    """The quality over the evaluations of a cell's runs; None where they were not measured on the same records, or on none."""
    runs = [record_values(evaluation) for evaluation in evaluations]
    if not runs or not runs[0] or any(one.keys() != runs[0].keys() for one in runs):
        return None
    examples = tuple(sorted(runs[0]))
    nats = np.array([[one[name][0] for name in examples] for one in runs], dtype=float)
    sizes = np.array([runs[0][name][1] for name in examples], dtype=float)
    return Quality(examples, nats, sizes, tuple(seeds), trained)


class Qualities:
    """The quality of every row that has one, and their differences.

    How far training runs lie apart is seen in `runs`, all that there are of a cell, else in what is `known` of it. `assumed`: of a
    cell, for as long as none of its model was trained with several seeds.
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
        """Bits per byte of `row` less those of `other`; None where they were not measured on the same records."""
        return self.differences([row], other)[0]

    def differences(self, rows: Sequence[Row], other: Row) -> list[Interval | None]:
        """Between what was measured: of a cell that was trained once, between this run and the other."""
        return self._differences(rows, other, borrow=False)

    def method_difference(self, row: Row, other: Row) -> Interval | None:
        return self.method_differences([row], other)[0]

    def method_differences(self, rows: Sequence[Row], other: Row) -> list[Interval | None]:
        """Between the methods: of a cell that was trained once, widened by the spread between training runs, where it is known."""
        return self._differences(rows, other, borrow=True)

    def spread(self, row: Row) -> Spread | None:
        """Between the training runs of the row's method. Of a row with several it is their own, and of a cell that has three beyond
        what the profile names; else that of all cells of the model that have several, pooled; else what is assumed, or None."""
        quality = self.of(row)
        if quality is None or not quality.trained:
            return None
        cell = row["model"], row["method"]
        own = self._own_spreads.get(cell)
        if quality.runs > 1 or (own and own.degrees >= MIN_DEGREES):
            return own
        return self._pooled.get(row["model"]) or self._assumed.get(cell)

    def sources(self, row: Row, other: Row) -> Sources | None:
        """What makes the difference between the methods uncertain; None where it has no interval."""
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
        """The spreads that the differences between the methods of `rows` were widened by, each once."""
        single_runs = [row for row in rows if (quality := self.of(row)) and quality.runs == 1]
        return list(dict.fromkeys(spread for row in single_runs if (spread := self.spread(row))))

    def basis(self, rows: Sequence[Row]) -> str:
        """What a verdict between the methods of `rows` rests on: how many training runs, and what its intervals were widened by."""
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
    """Bits per byte of `one` less those of `other`, on the same records."""
    nats = one.mean_nats - other.mean_nats
    (interval,) = over_records([nats], one.sizes)
    return interval and _widened(interval, nats[0], one.sizes, _components(one, other))


def _components(one: Quality, other: Quality) -> list[Component]:
    """What the training runs of both add to the variance of their difference. Runs of equal seeds saw the data in the same order,
    so that they are compared seed by seed; others count as independent. One run says nothing of its method's spread."""
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
    """`interval`, over the records of `nats` and `sizes`, with what training runs add to it."""
    if not components:
        return interval
    wider = widening(len(sizes), records_variance(nats, sizes), components)
    low, high = wider.of(interval.value - interval.low), wider.of(interval.high - interval.value)
    return Interval(interval.value, interval.value - low, interval.value + high)


def intervals(nats: Sequence[np.ndarray], sizes: np.ndarray) -> list[Interval | None]:
    """Σ nats / (ln 2 × Σ bytes) of each of `nats`, (runs, records) over the same records of `sizes` bytes, with its interval over
    records and, where there are several, training runs; None under `MIN_RECORDS` records."""
    means = [one.mean(axis=0, keepdims=True) for one in nats]
    parts = zip(nats, means, over_records(means, sizes), strict=True)
    return [
        interval and _widened(interval, mean[0], sizes, [added] if (added := component(one, sizes)) else [])
        for one, mean, interval in parts
    ]


def over_records(nats: Sequence[np.ndarray], sizes: np.ndarray) -> list[Interval | None]:
    """Σ nats / (ln 2 × Σ bytes) of each of `nats`, (1, records) over the same records of `sizes` bytes, with its interval over the
    records; None under `MIN_RECORDS` of them."""
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
    """(1, records) summed into (1, groups), always the same records in a group."""
    order = np.random.default_rng(SEED).permutation(values.shape[1]) % GROUPS
    return np.stack([np.bincount(order, weights=one, minlength=GROUPS) for one in values])


@lru_cache(maxsize=4)
def record_counts(records: int) -> np.ndarray:
    """(resamples, records): how often each record stands in each resample; the same for whoever asks, which is what pairs them."""
    drawn = np.random.default_rng(SEED).integers(0, records, (RESAMPLES, records))
    places = drawn + records * np.arange(RESAMPLES)[:, None]
    return np.bincount(places.ravel(), minlength=RESAMPLES * records).reshape(RESAMPLES, records).astype(float)
