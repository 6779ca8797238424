"""Messages to the user about a run: per source, rejected records and warnings, and the reasons if
hardly anything is left."""

import json
from collections.abc import Iterator
from typing import Any

from pipelines.clean.reasons import REASONS
from pipelines.clean.stage import Staged, storable
from pipelines.clean.work import Work
from pipelines.records.foreign_text import CONTROL

# If less than this share of a source's records is accepted, a warning gives the reasons.
FEW_SHARE = 0.1
# If more than this share of a source's records, and at least ALIKE_LEAST, are near-duplicates, a
# warning shows the largest cluster.
ALIKE_SHARE = 0.2
ALIKE_LEAST = 5
SHOWN_CHARS = 100
LINE_CHARS = 200
Row = dict[str, Any]


def one_line(text: str, chars: int = LINE_CHARS) -> str:
    """A text on one line of a terminal, cut, without control characters."""
    plain = " ".join(CONTROL.sub(" ", text).split())
    return plain if len(plain) <= chars else plain[: chars - 1] + "…"


def nothing_left(work: Work, staged: Staged, accepted: tuple[int, int]) -> str:
    """Why nothing is left to train or evaluate on: each source's fields and reasons, with examples
    and remedies."""
    train, held_out = accepted
    lines = [f"cleaning kept {train} train and {held_out} eval of {staged.read} records; both sides need at least one."]
    lines += [line for source in sorted(staged.shapes) for line in _source_lines(work, staged, source)]
    if not staged.read:
        lines.append("The sources hold no records: name a file that does.")
    elif train + held_out:
        lines.append(
            "A hash of each question decides whether it is among the cleaning.eval_share held out, so with few records "
            "one side may be empty: add records, name eval_files, or change eval_share."
        )
    return "\n".join(lines)


def _source_lines(work: Work, staged: Staged, source: str) -> Iterator[str]:
    counts = _counts(work, source)
    accepted = sum(count for reason, count in counts if reason is None)
    total = sum(count for _, count in counts)
    first = one_line(staged.first.get(source, "none"))
    yield f"{_named(source)}: {accepted} of {total} accepted; its first record has the fields {first}"
    for reason, count in counts:
        if reason is None:
            continue
        detail, record = _example(work, source, reason)
        yield f"  {count} × {reason} ({REASONS[reason].because}), such as {one_line(record, SHOWN_CHARS) or 'a broken record'}"
        yield f"      {one_line(detail)}"
        yield f"      {REASONS[reason].remedy}"


def _counts(work: Work, source: str) -> list[tuple[str | None, int]]:
    return work.db.execute(
        "SELECT reason, count(*) FROM staged LEFT JOIN verdicts USING (n) WHERE source = $source GROUP BY 1 ORDER BY "
        "2 DESC, 1",
        {"source": source},
    ).fetchall()


def _example(work: Work, source: str, reason: str) -> tuple[str, str]:
    """The detail that most rejects of a reason share, and the first record that has it."""
    detail, record = work.one(
        """
        SELECT detail, arg_min(left(record, 1000), n) FROM verdicts JOIN staged USING (n)
        WHERE source = $source AND reason = $reason GROUP BY detail ORDER BY count(*) DESC, min(n) LIMIT 1
        """,
        {"source": source, "reason": reason},
    )
    return detail or "", record


def warnings(work: Work, staged: Staged) -> list[str]:
    """Warnings of a successful run: sources with few accepted records, and sources with many
    near-duplicates."""
    texts: list[str] = []
    for source in sorted(staged.shapes):
        counts = dict(_counts(work, source))
        total, accepted = sum(counts.values()), counts.get(None, 0)
        if accepted < FEW_SHARE * total:
            texts.append("\n".join(_source_lines(work, staged, source)))
        alike = counts.get("near_duplicate", 0)
        if alike >= ALIKE_LEAST and alike > ALIKE_SHARE * total:
            texts.append(_largest_cluster(work, source, alike, total))
    return texts


def _largest_cluster(work: Work, source: str, alike: int, total: int) -> str:
    best, count, examples = work.one(
        """
        SELECT twin, count(*), list(one_line ORDER BY record_id)[:2]
        FROM (SELECT twin, record_id, left(instruction || ' → ' || output, 400) AS one_line
              FROM verdicts JOIN staged USING (n) JOIN ranked USING (n) WHERE source = $source AND reason = 'near_duplicate')
        GROUP BY twin ORDER BY count(*) DESC, twin LIMIT 1
        """,
        {"source": source},
    )
    (best_text,) = work.one(
        "SELECT left(instruction || ' → ' || output, 400) FROM ranked JOIN staged USING (n) WHERE record_id = $kept",
        {"kept": best},
    )
    lines = [
        f"{_named(source)}: {alike} of {total} records ({alike / total:.0%}) are near-duplicates; "
        f"the largest cluster has {count + 1}:",
        f"  kept     {one_line(best_text, LINE_CHARS)}",
        *(f"  dropped  {one_line(example, LINE_CHARS)}" for example in examples),
        "  If the differences matter, raise cleaning.near_duplicate_jaccard.",
    ]
    return "\n".join(lines)


def notes(staged: Staged) -> dict[str, dict[str, int]]:
    """Source → a field or feature of its records that was ignored or changed → how often."""
    return {
        source: {one_line(storable(note)): count for note, count in sorted(counts.items())}
        for source, counts in sorted(staged.notes.items())
        if counts
    }


def _named(source: str) -> str:
    return json.dumps(source, ensure_ascii=False)
