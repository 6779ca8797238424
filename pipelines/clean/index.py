"""An index of texts on disk: the bytes and buckets of every text, and the exact Jaccard of pairs of
texts.

A text's place in the index is its rank: of two similar texts, the one with the smaller place is the
better one.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.clean.minhash import BANDS, band_rows, buckets
from pipelines.clean.shingles import Hashes, Indexes, distinct_grams, shingles

# Texts whose signatures are computed at once: their arrays fit into the processor's cache.
RANGE = 500
# Pairs verified at once, at most, and the bytes of their texts.
PAIRS = 500
CHARS = 4_000_000
Floats = NDArray[np.float64]


class TextIndex:
    """Texts by place: their bytes in one file, their buckets in another (memory-mapped: [BANDS,
    texts], 8 bytes each)."""

    def __init__(self, folder: Path, *, texts: int, jaccard: float, threads: int) -> None:
        self.texts, self.jaccard, self.threads = texts, jaccard, threads
        self._rows = band_rows(jaccard)
        self._file = (folder / "texts.bin").open("w+b")
        self._starts = np.zeros(texts, dtype=np.int64)
        self._bytes = np.zeros(texts, dtype=np.int64)
        self._buckets = np.memmap(folder / "buckets.bin", dtype=np.uint64, mode="w+", shape=(BANDS, max(texts, 1)))

    def __enter__(self) -> "TextIndex":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def fill(self, ranges: Iterable[tuple[Indexes, list[str]]]) -> None:
        """Add ranges of (places, texts)."""
        with ThreadPoolExecutor(self.threads) as threads:
            end = 0
            for places, texts in ranges:
                coded = [text.encode() for text in texts]
                lengths = np.fromiter(map(len, coded), dtype=np.int64, count=len(coded))
                self._file.write(b"".join(coded))
                self._bytes[places] = lengths
                self._starts[places] = end + np.cumsum(lengths) - lengths
                end += int(lengths.sum())
                parts = range(0, len(texts), RANGE)
                bucket_parts = threads.map(lambda at, own=texts: buckets(own[at : at + RANGE], self._rows), parts)
                self._buckets[:, places] = np.concatenate(list(bucket_parts), axis=1)
        self._file.flush()

    def band(self, number: int, places: Indexes) -> Hashes:
        """The bucket of each of these places in a band."""
        return self._buckets[number][places]

    def jaccards(self, one: Indexes, other: Indexes) -> Floats:
        """The exact Jaccard of the distinct 3-shingles of each pair of places."""
        parts = list(self._parts(one, other))
        with ThreadPoolExecutor(self.threads) as threads:
            values = threads.map(lambda part: self._jaccards(one[part], other[part]), parts)
            return np.concatenate([np.zeros(0), *values])

    def _parts(self, one: Indexes, other: Indexes) -> Iterator[slice]:
        """Pairs in slices of bounded length and text."""
        weight = np.cumsum(self._bytes[one] + self._bytes[other])
        start = 0
        while start < len(one):
            before = weight[start - 1] if start else 0
            end = min(start + PAIRS, int(np.searchsorted(weight, before + CHARS)) + 1)
            yield slice(start, end)
            start = end

    def _jaccards(self, one: Indexes, other: Indexes) -> Floats:
        places, at = np.unique(np.concatenate([one, other]), return_inverse=True, sorted=True)
        grams, owners = distinct_grams(*shingles(self._texts(places)))
        counts = np.bincount(owners, minlength=len(places))
        first, second = at[: len(one)], at[len(one) :]
        total = counts[first] + counts[second]
        pairs = np.concatenate([np.arange(len(one)), np.arange(len(one))])
        common = _in_common(grams, np.cumsum(counts) - counts, counts, np.concatenate([first, second]), pairs)
        return common / (total - common)

    def _texts(self, places: Indexes) -> list[str]:
        read, number = os.pread, self._file.fileno()
        where = zip(self._bytes[places].tolist(), self._starts[places].tolist(), strict=True)
        return [read(number, length, start).decode() for length, start in where]


def _in_common(grams: Hashes, starts: Indexes, counts: Indexes, texts: Indexes, pairs: Indexes) -> NDArray[Any]:
    """How many grams the two texts of each pair share. `texts[i]` (one row of grams) belongs to
    pair `pairs[i]`."""
    lengths = counts[texts]
    ends = np.cumsum(lengths)
    # The position in `grams` of every gram of every text, one text after another.
    at = np.arange(ends[-1]) - np.repeat(ends - lengths - starts[texts], lengths)
    keys = np.sort((np.repeat(pairs, lengths).astype(np.uint64) << np.uint64(40)) | grams[at])
    twice = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(40)
    return np.bincount(twice.astype(np.int64), minlength=len(pairs) // 2)
