"""Speeds measured while other programs ran: which columns depend on them, how they are marked,
and the note about them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.compare.rates import MAX_NAMES, Name, Row

MARK = "*"
# Columns whose values would differ on a quiet machine. Latencies are not among them: they are
# measured later, when other programs are not watched.
SPEED_COLUMNS = ("train_seconds", "tokens_per_second", "seconds_to_target", "train_usd", "minutes")


def has_valid_speed(row: Mapping[str, Any]) -> bool:
    """Whether the row's training speed is the cell's own. Older code did not watch other
    programs; its rows count as valid."""
    return not row.get("speed_disturbed")


def is_marked(row: Mapping[str, Any], column: str) -> bool:
    """Whether the row's value in the column depends on a disturbed speed."""
    return column in SPEED_COLUMNS and not has_valid_speed(row) and row.get(column) is not None


def in_words(rows: Sequence[Row], name: Name) -> str:
    """A clause such as "other programs used 70 % of the processors while full was measured".

    All of `rows` must have disturbed speeds.
    """
    shown = rows[:MAX_NAMES]
    others = [f"{_share(row)} while {name(row)} was measured" for row in shown[1:]]
    more = f", and much while {len(rows) - MAX_NAMES} more were" if len(rows) > MAX_NAMES else ""
    first = f"{_share(rows[0])} of the processors while {name(rows[0])} was measured"
    return f"other programs used {', '.join([first, *others])}{more}"


def _share(row: Row) -> str:
    percent = row.get("other_cpu_pct")
    return "much" if percent is None else f"{percent:.0f} %"


def note(rows: Sequence[Row], name: Name) -> str | None:
    """The line that explains the marks under a table of `rows`; None if no value is marked."""
    marked = [row for row in rows if any(is_marked(row, column) for column in SPEED_COLUMNS)]
    return f"{MARK} speed disturbed: {in_words(marked, name)}" if marked else None
