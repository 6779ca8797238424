"""Cells outside the profile: run by hand under it, but not named by it.

Each is a row of the comparison, marked `outside profile`. Such a row is never picked, marked as
Pareto or recommended. It changes no number of the profile's own rows, except that its training runs
add to the estimate of the spread between runs.
"""

from collections.abc import Collection, Sequence
from typing import Any

from pipelines.errors import UsageError

MARK = "outside profile"
Row = dict[str, Any]


def is_outside(row: Row) -> bool:
    """Whether the row is outside the profile. Older publications held only the profile's cells,
    so it is False for their rows."""
    return bool(row.get("outside_profile"))


def note(rows: Sequence[Row]) -> str | None:
    """One sentence that explains the mark in a table; None if no row has it."""
    marked = [row for row in rows if is_outside(row)]
    return (
        f"run by hand, and not named by profile {marked[0]['profile']}: compared, but never picked" if marked else None
    )


def of_profile(rows: Sequence[Row]) -> list[Row]:
    """The rows whose cells the profile names, and the teachers."""
    return [row for row in rows if not is_outside(row)]


def considered(rows: Sequence[Row], also: Collection[tuple[str, str]]) -> list[Row]:
    """The profile's rows and the rows outside it that `also` names, as if those belonged to the
    profile.

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
