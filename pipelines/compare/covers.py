"""What an interval covers, in words: the number of training runs, and the spread that widened
it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# seeds.py needs numpy, and printing a table does not.
if TYPE_CHECKING:
    from pipelines.compare.seeds import Spread

Row = dict[str, Any]
COUNTED = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def basis(runs: Sequence[int], spreads: "Sequence[Spread]") -> str:
    """The basis of a verdict between methods: the training runs of each, and the spreads that
    widened its intervals."""
    least, most = min(runs, default=0), max(runs, default=0)
    counts = in_words(most) if least == most else f"{_counted(least)} to {in_words(most)}"
    sources = " and ".join(f"{one.source}: {one.value:.4f}" for one in spreads)
    suffix = f", widened by the spread between training runs seen in {sources}" if spreads else ""
    return f"{counts}{' each' if len(runs) > 1 else ''}{suffix}"


def covers(row: Row) -> str:
    """The number of training runs that the row's interval covers besides the records."""
    return in_words(row["seeds_ok"] or 0)


def note(rows: Sequence[Row]) -> str | None:
    """What the intervals of a table's trained rows cover; None if none was trained."""
    counted = [row.get("seeds_ok") or 0 for row in rows if row["status"] == "ok" and row.get("trainable_params")]
    trained = [runs for runs in counted if runs]
    if not trained:
        return None
    if max(trained) == 1:
        return "intervals are over the held-out records, of one training run each: another seed may end elsewhere"
    return f"intervals are over the held-out records and the training runs, {basis(trained, [])}"


def in_words(runs: int) -> str:
    return f"{_counted(runs)} training run{'' if runs == 1 else 's'}"


def _counted(runs: int) -> str:
    return COUNTED[runs] if runs < len(COUNTED) else str(runs)
