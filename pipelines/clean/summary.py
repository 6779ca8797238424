"""A cleaning result for people: its summary in lines, lengths for a histogram, a sample of its
rejects."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.clean.explain import one_line
from pipelines.clean.results import ACCEPTED, CleaningResult, queried

Row = dict[str, Any]
BIN_CHARS = 50
# Index of the last bin, which holds everything longer.
LAST_BIN = 40


def lines(result: CleaningResult, *, examples: bool = False) -> Iterator[str]:
    """The counts, the reasons, and the shapes of each source, for a terminal.

    With `examples`, also three rejects for every reason and a command that shows all.
    """
    yield f"{result.read} records read = {result.accepted} accepted + {result.rejected} rejected"
    yield f"{result.train} train, {result.eval} eval; {'unchanged' if result.reused else 'written'}: {result.folder}"
    examples_by_reason = _examples(result) if examples else {}
    for reason, count in result.reasons.items():
        yield f"  {count:>6}  {reason}"
        yield from examples_by_reason.get(reason, ())
    if examples_by_reason:
        yield f"every reject: duckdb -c \"FROM '{result.folder}/rejects.parquet'\""
    for source, shapes in result.shapes.items():
        counts = ", ".join(f"{count} as {shape}" for shape, count in shapes.items())
        dropped_turns = result.dropped_turns.get(source)
        name = json.dumps(source, ensure_ascii=False)
        yield f"fields of {name}: {counts}{f'; {dropped_turns} turns dropped' if dropped_turns else ''}"
        if notes := result.notes.get(source):
            yield f"  not used or changed: {', '.join(f'{count} × {note}' for note, count in notes.items())}"
    for warning in result.warnings:
        yield f"warning: {warning}"


def next_steps(
    result: CleaningResult, before: CleaningResult | None, *, tried: bool, files: Sequence[str]
) -> Iterator[str]:
    """Lines on the next steps: whether the result is current, and how to train on `files`.

    `before` is the result that was current. Cells use the current examples, so a change of these
    makes rows stale.
    """
    sources = f"sources: {{files: {json.dumps(list(files), ensure_ascii=False)}}} in experiments.yaml"
    if tried:
        yield "tried only: the current examples are as before"
        if files:
            yield f"to train on these files: {sources}, then `make run`"
        return
    if files:
        yield f"these are the current examples now, until the next `clean` without --input; to keep them: {sources}"
    if before and before.fingerprint != result.fingerprint:
        yield "the examples have changed: rows that were trained or evaluated on others are stale (--try changes nothing)"


def _examples(result: CleaningResult, count: int = 3) -> dict[str, list[str]]:
    """Reason → up to `count` rejects, one line each."""
    rows = queried(
        result,
        """
        SELECT reason, detail, left(record, 400) AS record
        FROM (SELECT *, row_number() OVER (PARTITION BY reason ORDER BY record_id) AS turn FROM rejects)
        WHERE turn <= $count ORDER BY reason, turn
        """,
        {"count": count},
    )
    lines_by_reason: dict[str, list[str]] = {}
    for row in rows:
        line = f"{one_line(row['detail'] or '', 90)} | {one_line(row['record'], 110)}"
        lines_by_reason.setdefault(row["reason"], []).append(f"          {line}")
    return lines_by_reason


def length_counts(result: CleaningResult) -> dict[str, list[tuple[int, int]]]:
    """Lengths of prompts and outputs: kind → (characters at the start of the bin, examples) for
    each non-empty bin.

    A bin has 50 characters; the last one holds everything longer.
    """
    rows = queried(
        result,
        f"""
        SELECT kind, least(chars // {BIN_CHARS}, {LAST_BIN}) * {BIN_CHARS} AS start, count(*) AS examples
        FROM (SELECT unnest([{{'kind': 'prompt', 'chars': length(instruction) + length(input)}},
                             {{'kind': 'output', 'chars': length(output)}}], recursive := true) FROM examples)
        GROUP BY ALL ORDER BY ALL
    """,
    )
    return {
        kind: [(row["start"], row["examples"]) for row in rows if row["kind"] == kind] for kind in ("prompt", "output")
    }


def language_counts(result: CleaningResult) -> list[Row]:
    """Per side of the split and language: examples, and their share of that side."""
    return queried(
        result,
        """
        SELECT *, examples / sum(examples) OVER (PARTITION BY split) AS share
        FROM (SELECT split, language, count(*) AS examples FROM examples GROUP BY ALL) ORDER BY ALL
    """,
    )


def sample_rejects(result: CleaningResult, count: int = 10) -> list[Row]:
    """`count` rejects, about equally many for every reason, always the same; records are cut at 500
    characters."""
    return queried(
        result,
        """
        SELECT reason, detail, source, left(record, 500) AS record
        FROM (SELECT *, row_number() OVER (PARTITION BY reason ORDER BY record_id) AS turn FROM rejects)
        ORDER BY turn, reason LIMIT $count
    """,
        {"count": count},
    )


def reject_shares(rows: list[Row]) -> dict[str, float]:
    """Source → the share of its records that were rejected, from the rows of the summary."""
    totals: dict[str, int] = {}
    accepted: dict[str, int] = {}
    for row in rows:
        totals[row["source"]] = totals.get(row["source"], 0) + row["records"]
        accepted[row["source"]] = accepted.get(row["source"], 0) + (row["records"] if row["reason"] == ACCEPTED else 0)
    return {source: 1 - accepted[source] / total for source, total in totals.items()}
