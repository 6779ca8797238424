"""Text that many records of a source share: a system prompt, the head of an instruction, a template. It is no sign of likeness.

A piece of LENGTH characters that stands in at least `max(20, 5 %)` of a source's records is shared. Shared pieces are found in a
sample of each source, drawn by content, so that the order of records cannot show, and left out of the text that near-duplicates
are judged by. Several templates in one source each count, as long as each is in that many records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.clean.comparable import comparable_in_sql
from pipelines.clean.shingles import Hashes, code_points, distinct_grams, mixed
from pipelines.clean.work import Work

LENGTH = 16  # characters of a piece: the sum of doublings, 2 + 2 + 4 + 8
LEAST_RECORDS = 20
LEAST_SHARE = 0.05
SAMPLE = 2000  # records of a source: 5 % of them are a hundred
SAMPLE_CHARS = 4000  # of each
LITTLE = 30  # characters left of a record, and it is compared whole
MOSTLY = 0.5  # of an answer being shared: then little is left since the record itself is common
COMPARED = comparable_in_sql(
    "coalesce(compared, normalized)"
)  # SQL for the text of `staged` that near-duplicates are judged by
JOINT = "\n"  # between what is left; no text that is compared holds a line break


@dataclass(frozen=True)
class SharedText:
    """Source → the hashes of its shared pieces, ascending. Sources without any are not in it."""

    pieces: dict[str, Hashes] = field(default_factory=dict)

    def compared(self, sources: Sequence[str], texts: Sequence[str], answer_chars: Sequence[int]) -> list[str]:
        """What of each text (the last `answer_chars` characters of it are its answer) is compared with others."""
        result = list(texts)
        by_source: dict[str, list[int]] = {}
        for at, source in enumerate(sources):
            if source in self.pieces:
                by_source.setdefault(source, []).append(at)
        for source, places in by_source.items():
            left = _without(self.pieces[source], [texts[at] for at in places], [answer_chars[at] for at in places])
            for at, text in zip(places, left, strict=True):
                result[at] = text
        return result


def find_shared(work: Work) -> SharedText:
    """The shared pieces of every source that has some, from the table `places`."""
    counts = work.db.execute(
        "SELECT source, count(*) FROM places JOIN staged USING (n) GROUP BY ALL HAVING count(*) >= $least ORDER BY ALL",
        {"least": LEAST_RECORDS},
    ).fetchall()
    by_source = {source: _shared_in(_sample(work, source), total) for source, total in counts}
    return SharedText({source: pieces for source, pieces in by_source.items() if len(pieces)})


def _sample(work: Work, source: str) -> list[str]:
    rows = work.db.execute(
        f"""
        SELECT left({COMPARED}, $chars) FROM places JOIN staged USING (n) WHERE source = $source
        ORDER BY md5(record_id), record_id LIMIT $records
        """,
        {"source": source, "chars": SAMPLE_CHARS, "records": SAMPLE},
    ).fetchall()
    return [text for (text,) in rows]


def _shared_in(texts: Sequence[str], total: int) -> Hashes:
    """The pieces that stand in so many of the sampled texts that they stand in max(20, 5 %) of the `total` that they stand for."""
    grams, owners = pieces_of(texts)
    if not len(grams):
        return np.zeros(0, dtype=np.uint64)
    grams, _ = distinct_grams(grams, owners)
    values, counts = np.unique(grams, return_counts=True)
    least = max(LEAST_RECORDS, LEAST_SHARE * total) * len(texts) / total
    return values[counts >= least]


def pieces_of(texts: Sequence[str]) -> tuple[Hashes, np.ndarray]:
    """The hash of every piece of each text, uint64 [n], and the text that each belongs to, int64 [n]."""
    points, owners = code_points(texts)
    if len(points) < LENGTH:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    grams = points
    for width in (1, 2, 4, 8):  # 2-grams out of characters, 4-grams out of 2-grams, 8- and 16-grams
        grams = mixed(grams[:-width]) + grams[width:]
    inside = owners[LENGTH - 1 :] == owners[: len(owners) - LENGTH + 1]
    return mixed(grams)[inside], owners[: len(grams)][inside]


def _without(shared: Hashes, texts: Sequence[str], answer_chars: Sequence[int]) -> list[str]:
    """Each text without its shared pieces; whole where too little of it remains because its answer is common too."""
    grams, owners = pieces_of(texts)
    is_shared = _is_in(grams >> np.uint64(24), shared)  # distinct_grams keeps the upper 40 bits
    starts = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(texts)))])
    return [
        _remaining(text, is_shared[starts[at] : starts[at + 1]], answer)
        for at, (text, answer) in enumerate(zip(texts, answer_chars, strict=True))
    ]


def _is_in(values: Hashes, sorted_values: Hashes) -> np.ndarray:
    at = np.searchsorted(sorted_values, values)
    return np.append(sorted_values, np.uint64(2**64 - 1))[at] == values


def _remaining(text: str, shared: np.ndarray, answer_chars: int) -> str:
    if not shared.any():
        return text
    covered = np.zeros(len(text) + 1, dtype=np.int32)
    at = np.flatnonzero(shared)
    np.add.at(covered, at, 1)
    np.add.at(covered, at + LENGTH, -1)
    covered = np.cumsum(covered)[:-1] > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[True], covered, [True]]).astype(np.int8)))
    left = JOINT.join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    if len(left) >= LITTLE:
        return left
    answer = covered[len(text) - answer_chars :]
    is_common = answer.mean() >= MOSTLY if len(answer) else True
    return text if is_common or not left.strip() else left
