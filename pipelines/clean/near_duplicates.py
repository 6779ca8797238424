"""Near-duplicates among the texts of an index, and texts too close to held-out ones, without
comparing all pairs.

Band by band, each member of a bucket is compared with the best member and with its neighbours in
the order of the next band. So the cost of a bucket is proportional to its size. Pairs already known
to be alike are not compared again. Every pair that counts was verified by its exact Jaccard.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.clean.index import Floats, TextIndex
from pipelines.clean.minhash import BANDS
from pipelines.clean.shingles import Indexes

# Failed comparisons of a text after which it counts as unique.
PATIENCE = 16


@dataclass(frozen=True)
class Twins:
    """Places of texts that are too close to another: `place[i]` is like `twin[i]`, with
    `jaccard[i]`."""

    place: Indexes
    twin: Indexes
    jaccard: Floats


def near_duplicates(index: TextIndex, places: Indexes) -> Twins:
    """The members of `places` in a cluster with a better one, each with the best of its cluster as
    its twin.

    Pairs of at least the index's Jaccard connect a cluster, so a text may be less similar to its
    twin.
    """
    labels = np.arange(len(places))
    failed = _Failures(len(places))
    for band in range(BANDS):
        one, other = _neighbours(*_buckets(index, band, places))
        untested = (labels[one] != labels[other]) & failed.may_try(one, other)
        one, other = one[untested], other[untested]
        alike = index.jaccards(places[one], places[other]) >= index.jaccard
        failed.note(one[~alike], other[~alike])
        join(labels, one[alike], other[alike])
    (worse,) = np.nonzero(labels != np.arange(len(places)))
    best = labels[worse]
    return Twins(places[worse], places[best], index.jaccards(places[worse], places[best]))


def too_close(index: TextIndex, places: Indexes, held_out: Indexes) -> Twins:
    """The members of `places` whose Jaccard with one of `held_out` is at least that of the
    index."""
    everyone = np.concatenate([held_out, places])
    twin = np.full(len(everyone), -1)
    jaccard = np.zeros(len(everyone))
    failed = _Failures(len(everyone))
    for band in range(BANDS):
        eval_side, other = _across(*_buckets(index, band, everyone), held_out=len(held_out))
        untested = (twin[other] < 0) & failed.may_try(eval_side, other)
        eval_side, other = eval_side[untested], other[untested]
        similarities = index.jaccards(everyone[eval_side], everyone[other])
        alike = similarities >= index.jaccard
        failed.note(eval_side[~alike], other[~alike])
        _keep_best(twin, jaccard, eval_side[alike], other[alike], similarities[alike])
    (close,) = np.nonzero(twin >= 0)
    return Twins(everyone[close], everyone[twin[close]], jaccard[close])


def _keep_best(twin: Indexes, jaccard: Floats, eval_side: Indexes, other: Indexes, similarities: Floats) -> None:
    # The last write wins: the most similar text, and among equals the better one.
    order = np.lexsort((-eval_side, similarities))
    twin[other[order]] = eval_side[order]
    jaccard[other[order]] = similarities[order]


class _Failures:
    """Pairs that turned out not to be alike. No pair is compared twice, and no text more often than
    PATIENCE allows."""

    def __init__(self, texts: int) -> None:
        self._texts = texts
        self._count = np.zeros(texts, dtype=np.int32)
        self._pairs = np.zeros(0, dtype=np.int64)

    def may_try(self, one: Indexes, other: Indexes) -> NDArray[np.bool_]:
        worse = np.maximum(one, other)
        codes = self._codes(one, other)
        at = np.searchsorted(self._pairs, codes)
        known = np.append(self._pairs, -1)[at] == codes
        return (self._count[worse] < PATIENCE) & ~known

    def note(self, one: Indexes, other: Indexes) -> None:
        np.add.at(self._count, np.maximum(one, other), 1)
        self._pairs = np.sort(np.concatenate([self._pairs, self._codes(one, other)]))

    def _codes(self, one: Indexes, other: Indexes) -> Indexes:
        return np.minimum(one, other) * self._texts + np.maximum(one, other)


def join(labels: Indexes, one: Indexes, other: Indexes) -> None:
    """Merge the clusters of every pair in place: all their members get the smaller label.

    `labels[i]` ≤ i is the first member of the cluster of i.
    """
    while len(one):
        low, high = np.minimum(labels[one], labels[other]), np.maximum(labels[one], labels[other])
        np.minimum.at(labels, high, low)
        while not np.array_equal(parents := labels[labels], labels):
            labels[:] = parents
        separate = labels[one] != labels[other]
        one, other = one[separate], other[separate]


def _buckets(index: TextIndex, band: int, places: Indexes) -> tuple[Indexes, NDArray[np.bool_]]:
    """The positions in `places` that share a bucket, bucket by bucket, and a mask of where each
    bucket starts.

    Inside a bucket, members with the same bucket of the next band are adjacent.
    """
    bucket = index.band(band, places)
    order = np.argsort(bucket)
    same = bucket[order[1:]] == bucket[order[:-1]]
    shared = np.concatenate([same, [False]]) | np.concatenate([[False], same]) if len(order) else order.astype(bool)
    members = order[shared]
    next_bucket = index.band((band + 1) % BANDS, places[members])
    members = members[np.lexsort((members, next_bucket, bucket[members]))]
    starts = np.ones(len(members), dtype=bool)
    np.not_equal(bucket[members[1:]], bucket[members[:-1]], out=starts[1:])
    return members, starts


def _neighbours(members: Indexes, starts: NDArray[np.bool_]) -> tuple[Indexes, Indexes]:
    """Pairs of each member with the best of its bucket and with the two before it."""
    group = np.cumsum(starts) - 1
    best = np.minimum.reduceat(members, np.flatnonzero(starts)) if len(members) else members
    pairs = [(best[group], members)] if len(members) else []
    for distance in (1, 2):
        same_group = group[distance:] == group[:-distance]
        pairs.append((members[:-distance][same_group], members[distance:][same_group]))
    return _distinct(pairs)


def _across(members: Indexes, starts: NDArray[np.bool_], *, held_out: int) -> tuple[Indexes, Indexes]:
    """Pairs of each member that is not held out with held-out members: the best of its bucket, the
    last before, the next."""
    if not len(members):
        return members, members
    group = np.cumsum(starts) - 1
    best = np.minimum.reduceat(members, np.flatnonzero(starts))[group]
    is_held_out = members < held_out
    at = np.arange(len(members))
    before = np.maximum.accumulate(np.where(is_held_out, at, -1))
    after = np.minimum.accumulate(np.where(is_held_out, at, len(members))[::-1])[::-1]
    pairs = [(best[~is_held_out & (best < held_out)], members[~is_held_out & (best < held_out)])]
    for neighbours in (before, after):
        known = ~is_held_out & (neighbours >= 0) & (neighbours < len(members))
        known[known] = group[neighbours[known]] == group[known]
        pairs.append((members[neighbours[known]], members[known]))
    return _distinct(pairs)


def _distinct(pairs: list[tuple[Indexes, Indexes]]) -> tuple[Indexes, Indexes]:
    """Every pair once, the smaller position first, without pairs of a position with itself."""
    one = np.concatenate([np.minimum(a, b) for a, b in pairs])
    other = np.concatenate([np.maximum(a, b) for a, b in pairs])
    codes = np.sort((one << 32) | other)
    codes = codes[np.diff(codes, prepend=-1) > 0]
    one, other = codes >> 32, codes & (2**32 - 1)
    return one[one != other], other[one != other]
