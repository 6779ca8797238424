"""Whether answers ended by themselves, or were cut off by the limit of tokens."""

from collections.abc import Mapping, Sequence
from typing import Any


def has_ended(row: Mapping[str, Any], limit: int | None) -> bool | None:
    """Whether the answer ended by itself: by its own word, else by its tokens, of which there were fewer than `limit`. None where
    neither tells: one of earlier code that is as long as it might be may have ended with its last token."""
    ended, tokens = row.get("ended"), row.get("answer_tokens")
    if isinstance(ended, bool):
        return ended
    return True if isinstance(limit, int) and isinstance(tokens, int) and tokens < limit else None


def ended_pct(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Percentage of the answers that ended by themselves; None of nothing, and where that is not known of each."""
    endings = [row.get("ended") for row in rows]
    if not endings or None in endings:
        return None
    return 100 * sum(map(bool, endings)) / len(endings)
