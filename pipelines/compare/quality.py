"""Quality with its uncertainty: a cell's bits per byte over held-out records, and how much of a difference between two cells is
more than the choice of these records (and seeds).

Intervals are 95 % bootstrap intervals over records (Efron & Tibshirani 1993), expanded for small samples
(`statistics.expanded_tail`). Two cells are compared on the same resamples of the same records, so that what makes a record hard for
both cancels out (Koehn 2004; Berg-Kirkpatrick et al. 2012). Several seeds are resampled beside the records (Owen 2007).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Any

import numpy as np

from pipelines.files import read_jsonl
from pipelines.runs.cells import Evaluation
from pipelines.statistics import expanded_tail

Row = dict[str, Any]
Cell = tuple[str, str]
LEAST_RECORDS = 5  # fewer have no interval worth the name
RESAMPLES = 4_000
GROUPS = (
    250  # of more records, so many groups are resampled: the spread is known within 5 %, and the work stays the same
)
SEED = 1
TAIL = 0.025
AT_ONCE = 500  # cells whose resamples are held in memory together


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
    """What a cell lost on each record. `nats`: (seeds, records), of the completions' ordinary tokens; `sizes`: (records,), their
    UTF-8 bytes; `examples`: the records' ids, sorted."""

    examples: tuple[str, ...]
    nats: np.ndarray
    sizes: np.ndarray

    def on(self, examples: Sequence[str]) -> "Quality":
        """The same on some of its records."""
        place = {name: number for number, name in enumerate(self.examples)}
        chosen = [place[name] for name in examples]
        return Quality(tuple(examples), self.nats[:, chosen], self.sizes[chosen])

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.mean(axis=0).sum() / (log(2) * self.sizes.sum()))

    def interval(self) -> Interval | None:
        return intervals([self.nats], self.sizes)[0]


def record_values(evaluation: Evaluation) -> dict[str, tuple[float, int]]:
    """example_id → (nats of the completion's ordinary tokens, its UTF-8 bytes), of every record that was measured."""
    rows = read_jsonl(evaluation.folder / "losses.jsonl")
    return {row["example_id"]: (row["scored_nats"], row["bytes"]) for row in rows}


def quality_of(evaluations: Sequence[Evaluation]) -> Quality | None:
    """The quality over the evaluations of a cell's seeds; None where they were not measured on the same records, or on none."""
    found = [record_values(evaluation) for evaluation in evaluations]
    if not found or not found[0] or any(one.keys() != found[0].keys() for one in found):
        return None
    examples = tuple(sorted(found[0]))
    nats = np.array([[one[name][0] for name in examples] for one in found], dtype=float)
    return Quality(examples, nats, np.array([found[0][name][1] for name in examples], dtype=float))


class Qualities:
    """The quality of every row that has one, and their differences."""

    def __init__(self, known: Mapping[Cell, Quality]) -> None:
        self._known = known

    def of(self, row: Row) -> Quality | None:
        return self._known.get((row["model"], row["method"]))

    def difference(self, row: Row, other: Row) -> Interval | None:
        """Bits per byte of `row` less those of `other`; None where they were not measured on the same records."""
        return self.differences([row], other)[0]

    def differences(self, rows: Sequence[Row], other: Row) -> list[Interval | None]:
        theirs = self.of(other)
        if theirs is None:
            return [None] * len(rows)
        paired = {n: mine.nats for n, row in enumerate(rows) if (mine := self.of(row)) and same_records(mine, theirs)}
        made = intervals([_difference(nats, theirs.nats) for nats in paired.values()], theirs.sizes)
        found = dict(zip(paired, made, strict=True))
        return [found.get(number) for number in range(len(rows))]


def same_records(one: Quality, other: Quality) -> bool:
    return one.examples == other.examples and bool((one.sizes == other.sizes).all())


def paired_difference(one: Quality, other: Quality) -> Interval | None:
    """Bits per byte of `one` less those of `other`, on the same records."""
    return intervals([_difference(one.nats, other.nats)], one.sizes)[0]


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(seeds, records); of unequal numbers of seeds, the means over them: (1, records)."""
    if one.shape == other.shape:
        return one - other
    return one.mean(axis=0, keepdims=True) - other.mean(axis=0, keepdims=True)


def intervals(nats: Sequence[np.ndarray], sizes: np.ndarray) -> list[Interval | None]:
    """Σ nats / (ln 2 × Σ bytes) of each of `nats`, (seeds, records) over the same records of `sizes` bytes, with its interval; None
    under `LEAST_RECORDS` records."""
    if len(sizes) < LEAST_RECORDS:
        return [None] * len(nats)
    tail = expanded_tail(TAIL, len(sizes))
    made: list[Interval | None] = []
    for start in range(0, len(nats), AT_ONCE):
        some = nats[start : start + AT_ONCE]
        sampled = np.column_stack([_resampled(one, sizes) for one in some])
        lows, highs = np.quantile(sampled, [tail, 1 - tail], axis=0)
        values = [one.mean(axis=0).sum() / (log(2) * sizes.sum()) for one in some]
        made += [Interval(float(v), float(lo), float(hi)) for v, lo, hi in zip(values, lows, highs, strict=True)]
    return made


def _resampled(nats: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(resamples,): bits per byte of each resample of records, and of seeds where there are several."""
    if len(sizes) > GROUPS:
        nats, sizes = _grouped(nats), _grouped(sizes[None])[0]
    counts = record_counts(len(sizes))
    per_seed = counts @ nats.T
    return (per_seed * seed_shares(len(nats))).sum(axis=1) / (log(2) * (counts @ sizes))


def _grouped(values: np.ndarray) -> np.ndarray:
    """(seeds, records) summed into (seeds, groups), always the same records in a group."""
    order = np.random.default_rng(SEED).permutation(values.shape[1]) % GROUPS
    return np.stack([np.bincount(order, weights=one, minlength=GROUPS) for one in values])


@lru_cache(maxsize=4)
def record_counts(records: int) -> np.ndarray:
    """(resamples, records): how often each record stands in each resample; the same for whoever asks, which is what pairs them."""
    drawn = np.random.default_rng(SEED).integers(0, records, (RESAMPLES, records))
    places = drawn + records * np.arange(RESAMPLES)[:, None]
    return np.bincount(places.ravel(), minlength=RESAMPLES * records).reshape(RESAMPLES, records).astype(float)


@lru_cache(maxsize=8)
def seed_shares(seeds: int) -> np.ndarray:
    """(resamples, seeds): the share of each seed in each resample."""
    return np.random.default_rng(SEED).multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
