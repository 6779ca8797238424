"""Whether answers ended by themselves or were cut off at the token limit."""

from collections.abc import Mapping, Sequence
from typing import Any


def has_ended(row: Mapping[str, Any], limit: int | None) -> bool | None:
    """Whether the answer ended by itself: its `ended` field, else whether it has fewer tokens than
    `limit`.

    None if neither decides: rows of earlier code have no `ended`, and an answer of full length may
    have ended with its last token.
    """
    ended, tokens = row.get("ended"), row.get("answer_tokens")
    if isinstance(ended, bool):
        return ended
    return True if isinstance(limit, int) and isinstance(tokens, int) and tokens < limit else None


def ended_pct(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Percentage of the answers that ended by themselves; None without rows or if any is
    unknown."""
    endings = [row.get("ended") for row in rows]
    if not endings or None in endings:
        return None
    return 100 * sum(map(bool, endings)) / len(endings)
