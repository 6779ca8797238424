"""Text that many records of a source share: a system prompt, the head of an instruction, a
template.

It does not make records near-duplicates. A piece of LENGTH characters is shared if it occurs in at
least `max(20, 5 %)` of a source's records. Shared pieces are found in a sample of each source and
left out of the compared text. The sample is drawn by content, so the order of records does not
matter. A source may have several templates, as long as each is in that many records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.clean.comparable import comparable_in_sql
from pipelines.clean.shingles import Hashes, code_points, distinct_grams, mixed
from pipelines.clean.work import Work

# Characters of a piece. The gram is built by doubling: 1 + 1 + 2 + 4 + 8.
LENGTH = 16
LEAST_RECORDS = 20
LEAST_SHARE = 0.05
# Records sampled from a source (5 % of them are a hundred), and characters of each.
SAMPLE = 2000
SAMPLE_CHARS = 4000
# If fewer characters than this remain of a record, it may be compared whole.
LITTLE = 30
# If at least this share of an answer is shared, little remains because the record itself is common.
MOSTLY = 0.5
# SQL for the text of `staged` by which near-duplicates are judged.
COMPARED = comparable_in_sql("coalesce(compared, normalized)")
# Between the remaining pieces. No compared text contains a line break.
JOINT = "\n"


@dataclass(frozen=True)
class SharedText:
    """Source → the hashes of its shared pieces, ascending. Sources without any are left out."""

    pieces: dict[str, Hashes] = field(default_factory=dict)

    def compared(self, sources: Sequence[str], texts: Sequence[str], answer_chars: Sequence[int]) -> list[str]:
        """The compared part of each text; the last `answer_chars` characters of a text are its
        answer."""
        result = list(texts)
        by_source: dict[str, list[int]] = {}
        for at, source in enumerate(sources):
            if source in self.pieces:
                by_source.setdefault(source, []).append(at)
        for source, places in by_source.items():
            remaining = _without(self.pieces[source], [texts[at] for at in places], [answer_chars[at] for at in places])
            for at, text in zip(places, remaining, strict=True):
                result[at] = text
        return result


def find_shared(work: Work) -> SharedText:
    """The shared pieces of every source that has any, from the table `places`."""
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
    """The pieces whose share in the sample corresponds to at least max(20, 5 %) of the source's
    `total` records."""
    grams, owners = pieces_of(texts)
    if not len(grams):
        return np.zeros(0, dtype=np.uint64)
    grams, _ = distinct_grams(grams, owners)
    values, counts = np.unique(grams, return_counts=True)
    least = max(LEAST_RECORDS, LEAST_SHARE * total) * len(texts) / total
    return values[counts >= least]


def pieces_of(texts: Sequence[str]) -> tuple[Hashes, np.ndarray]:
    """The hash of every piece of each text, uint64 [n], and the text that each belongs to, int64
    [n]."""
    points, owners = code_points(texts)
    if len(points) < LENGTH:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    grams = points
    # 2-grams from characters, 4-grams from 2-grams, then 8-grams and 16-grams.
    for width in (1, 2, 4, 8):
        grams = mixed(grams[:-width]) + grams[width:]
    inside = owners[LENGTH - 1 :] == owners[: len(owners) - LENGTH + 1]
    return mixed(grams)[inside], owners[: len(grams)][inside]


def _without(shared: Hashes, texts: Sequence[str], answer_chars: Sequence[int]) -> list[str]:
    """Each text without its shared pieces; the whole text if too little remains because its answer
    is common, too."""
    grams, owners = pieces_of(texts)
    # distinct_grams keeps the upper 40 bits.
    is_shared = _is_in(grams >> np.uint64(24), shared)
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
    remaining = JOINT.join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    if len(remaining) >= LITTLE:
        return remaining
    answer = covered[len(text) - answer_chars :]
    is_common = answer.mean() >= MOSTLY if len(answer) else True
    return text if is_common or not remaining.strip() else remaining
