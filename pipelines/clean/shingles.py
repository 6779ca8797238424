"""Texts as arrays: the character n-grams of many texts at once, each as one number.

A batch of texts is two arrays: `grams`, uint64 [n-grams of all texts], and `owners`, int64 of the
same length, ascending: the index of the text to which each n-gram belongs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indexes = NDArray[np.int64]

SHINGLE = 3
# Characters. Natural text seldom repeats a gram of this length; a loop does all the time.
LONG_GRAM = 8
# Only the beginning of a longer text is judged.
JUDGED_CHARS = 20_000
CODE_POINT_BITS = np.uint64(21)


def mixed(values: Hashes) -> Hashes:
    """Each number mixed over 64 bits, one to one: the finalizer of SplitMix64 (Steele, Lea and
    Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(texts: Sequence[str]) -> tuple[Hashes, Indexes]:
    """Every character 3-shingle of each text, with repetitions; a shorter text counts as one
    shingle."""
    points, owners = code_points([text.ljust(SHINGLE, "\0") for text in texts])
    grams = (points[:-2] << np.uint64(42)) | (points[1:-1] << CODE_POINT_BITS) | points[2:]
    return _within(grams, owners, SHINGLE)


def repeated_share(texts: Sequence[str]) -> NDArray[np.float64]:
    """The share of each text's character 8-grams that occurred before in it (first 20,000
    characters, without digits).

    Near 0 for natural text, near 1 for a phrase over and over, numbered or not; 0 for a text of
    fewer than 8 characters.
    """
    points, owners = code_points([text[:JUDGED_CHARS] for text in texts])
    is_kept = (points < ord("0")) | (points > ord("9"))
    points, owners = points[is_kept], owners[is_kept]
    share = np.zeros(len(texts))
    if len(points) < LONG_GRAM:
        return share
    grams = points
    # 2-grams from characters, 4-grams from 2-grams, then 8-grams.
    for width in (1, 2, 4):
        grams = mixed(grams[:-width]) + grams[width:]
    grams, owners = _within(grams, owners, LONG_GRAM)
    total = np.bincount(owners, minlength=len(texts))
    distinct = np.bincount(distinct_grams(grams, owners)[1], minlength=len(texts))
    return np.divide(total - distinct, total, out=share, where=total > 0)


def distinct_grams(grams: Hashes, owners: Indexes) -> tuple[Hashes, Indexes]:
    """Each text's distinct grams, ascending, cut to 40 bits so that they sort together with up to
    2**24 owners.

    For two texts of 300 characters, the probability that two different grams coincide is below
    1e-7.
    """
    keys = np.sort((owners.astype(np.uint64) << np.uint64(40)) | (grams >> np.uint64(24)))
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    keys = keys[first]
    return keys & np.uint64(2**40 - 1), (keys >> np.uint64(40)).astype(np.int64)


def code_points(texts: Sequence[str]) -> tuple[Hashes, Indexes]:
    """The code points of all texts, uint64, and the index of the text to which each belongs."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    return points, np.repeat(np.arange(len(texts)), lengths)


def _within(grams: Hashes, owners: Indexes, size: int) -> tuple[Hashes, Indexes]:
    """The grams that do not reach from one text into the next, each mixed over 64 bits."""
    inside = owners[size - 1 :] == owners[: len(owners) - size + 1]
    return mixed(grams[inside]), owners[: len(grams)][inside]
