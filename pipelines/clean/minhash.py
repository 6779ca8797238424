"""MinHash signatures of character 3-shingles, cut into bands: texts that share a bucket of a band
may be near-duplicates.

MinHash and banding: Broder (1997); Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3. Each row of the signature is one hash function. Its range is cut into one bin per band,
and each bin has one minimum (one permutation hashing: Li, Owen and Zhang, 2012). An empty bin takes
the minimum of another bin; the choice is random, but the same for every text (Shrivastava, 2017).
So a signature of 32 bands of 8 rows costs 8 hashes per shingle, not 256.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipelines.clean.shingles import Hashes, Indexes, mixed, shingles

BANDS = 32
MOST_ROWS = 8
# The bands miss at most this share of the pairs that lie exactly at the threshold.
MISSED = 1e-4
EMPTY = np.uint32(2**32 - 1)


def band_rows(jaccard: float) -> int:
    """The most rows per band for which the bands miss at most MISSED of the pairs of this Jaccard.

    A pair is found with probability 1 - (1 - J^rows)^bands.
    """
    return next(rows for rows in range(MOST_ROWS, 0, -1) if rows == 1 or (1 - jaccard**rows) ** BANDS < MISSED)


def buckets(texts: Sequence[str], rows: int) -> Hashes:
    """The bucket of each text in each band, uint64 [BANDS, texts]; equal texts have equal
    buckets."""
    grams, owners = shingles(texts)
    hashes = np.zeros((len(texts), BANDS), dtype=np.uint64)
    for row in range(rows):
        multiplier = mixed(np.array([2 * row + 1], dtype=np.uint64)) | np.uint64(1)
        hashes = mixed(hashes + _minima(grams * multiplier, owners, len(texts)).astype(np.uint64))
    return np.ascontiguousarray(hashes.T)


def _minima(hashes: Hashes, owners: Indexes, texts: int) -> NDArray[np.uint32]:
    """The least hash of each text in each bin, uint32 [texts, BANDS].

    The upper bits choose the bin, the lower ones are compared.
    """
    bins = ((hashes >> np.uint64(32)) * np.uint64(BANDS)) >> np.uint64(32)
    values = ((hashes >> np.uint64(20)) & np.uint64(2**32 - 1)).astype(np.uint32)
    least = np.full(texts * BANDS, EMPTY)
    np.minimum.at(least, owners * BANDS + bins.astype(np.int64), values)
    return _densified(least.reshape(texts, BANDS))


def _densified(least: NDArray[np.uint32]) -> NDArray[np.uint32]:
    filled = least.copy()
    texts, bins = np.nonzero(least == EMPTY)
    for donors in _donors():
        if not len(texts):
            break
        minima = least[texts, donors[bins]]
        filled[texts, bins] = minima
        empty = minima == EMPTY
        texts, bins = texts[empty], bins[empty]
    return filled


@cache
def _donors() -> Indexes:
    """For each bin (column), all bins in random order: an empty bin takes the minimum of the first
    non-empty one."""
    keys = mixed(np.arange(BANDS * BANDS, dtype=np.uint64) + np.uint64(1)).reshape(BANDS, BANDS)
    return np.argsort(keys, axis=0)
