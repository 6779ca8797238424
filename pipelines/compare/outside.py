"""Cells outside the profile: somebody ran them by hand under it, but it does not name them.

Each is a row of the comparison, marked `outside profile`. No such row is picked, marked as Pareto or recommended, and none
changes a number of the profile's own rows, but that its training runs tell more of how far runs lie apart.
"""

from collections.abc import Collection, Sequence
from typing import Any

from pipelines.errors import UsageError

MARK = "outside profile"
Row = dict[str, Any]


def is_outside(row: Row) -> bool:
    """False for a row of an older publication, which held the profile's cells alone."""
    return bool(row.get("outside_profile"))


def note(rows: Sequence[Row]) -> str | None:
    """What the mark in a table means, as one sentence; None where no row bears it."""
    marked = [row for row in rows if is_outside(row)]
    return (
        f"run by hand, and not named by profile {marked[0]['profile']}: compared, but never picked" if marked else None
    )


def of_profile(rows: Sequence[Row]) -> list[Row]:
    """The rows whose cells the profile names, and the teachers."""
    return [row for row in rows if not is_outside(row)]


def considered(rows: Sequence[Row], also: Collection[tuple[str, str]]) -> list[Row]:
    """The profile's rows, and of those outside it the ones that somebody names, as if they were the profile's.

    Raises:
        UsageError: a named cell has no row.
    """
    held = {(row["model"], row["method"]) for row in rows}
    if missing := [f"{model}/{method}" for model, method in also if (model, method) not in held]:
        raise UsageError(
            f"{', '.join(missing)}: no such row; expected a cell of the profile, or one that was run under it, as MODEL/METHOD: "
            "`featherweight table` shows them"
        )
    named = [row for row in rows if not is_outside(row) or (row["model"], row["method"]) in also]
    return [{**row, "outside_profile": False} for row in named]
