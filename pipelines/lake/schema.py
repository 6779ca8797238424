"""The schema of a table: columns with a type, a meaning, a unit and a heading.

The terminal, the report, the warehouse and its documentation all use this one description of a
column. compare/columns defines the columns of every published table.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

Type = Literal["VARCHAR", "DOUBLE", "BIGINT", "INTEGER", "BOOLEAN", "TIMESTAMPTZ"]
Better = Literal["lower", "higher"]
Source = Literal[
    "configuration", "spec", "result", "training", "evaluation", "export", "estimate", "comparison", "judge", "cleaning", "journal",
    "vote", "night",
]  # fmt: skip
Row = dict[str, Any]
SIZES = {"GB": "1e9 bytes", "MB": "1e6 bytes"}
IN_UTC = "Kept in UTC; a client shows it in its own time zone."


@dataclass(frozen=True)
class Column:
    """One column. `type` is DuckDB's, `meaning` one plain sentence, `better` the better direction
    or None.

    `heading` and `digits` (decimals; None: the value unchanged) are for tables that people read.
    """

    name: str
    type: Type
    meaning: str
    unit: str | None = None
    better: Better | None = None
    heading: str = ""
    digits: int | None = None
    group: str = ""
    source: Source | None = None

    def __post_init__(self) -> None:
        if not self.heading:
            object.__setattr__(self, "heading", self.name.replace("_", " "))

    @property
    def description(self) -> str:
        """The meaning with its unit, the better direction and the time zone, as one text."""
        size = f" ({SIZES[self.unit]})" if self.unit in SIZES else ""
        unit = f" Unit: {self.unit}{size}." if self.unit else ""
        better = f" {self.better.capitalize()} is better." if self.better else ""
        zone = f" {IN_UTC}" if self.type == "TIMESTAMPTZ" else ""
        return f"{self.meaning}{unit}{better}{zone}"


@dataclass(frozen=True)
class Table:
    """A published table with its columns in order."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @cached_property
    def by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def __getitem__(self, name: str) -> Column:
        if name not in self.by_name:
            raise KeyError(self._unknown(name))
        return self.by_name[name]

    def pick(self, *names: str) -> tuple[Column, ...]:
        """The columns with these names, in the order of the names."""
        return tuple(self[name] for name in names)

    def with_columns(self, *more: Column) -> "Table":
        """This table with `more` columns after its own.

        Raises:
            ValueError: a duplicate column; SQL treats `a` and `A` as one name.
        """
        names = {column.name.lower() for column in self.columns}
        for column in more:
            if column.name.lower() in names:
                raise ValueError(f"table {self.name} has a column {column.name!r} already")
            names.add(column.name.lower())
        return replace(self, columns=(*self.columns, *more))

    def groups(self) -> dict[str, list[Column]]:
        """The columns by group, groups in the order of their first column."""
        groups: dict[str, list[Column]] = {}
        for column in self.columns:
            groups.setdefault(column.group, []).append(column)
        return groups

    def measured_by(self, source: Source) -> tuple[str, ...]:
        """The names of the columns that come from `source`."""
        return tuple(column.name for column in self.columns if column.source == source)

    def empty(self) -> Row:
        """A row with every value unknown."""
        return dict.fromkeys(self.by_name)

    def narrowed(self, row: Mapping[str, Any]) -> Row:
        """The values of `row` that have a column here, for rows written by older or newer code."""
        return {name: value for name, value in row.items() if name in self.by_name}

    def require_known(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Raises ValueError if a row has an unknown column; a typo would become NULL."""
        names = self.by_name.keys()
        for row in rows:
            if not row.keys() <= names:
                raise ValueError(self._unknown(min(row.keys() - names)))

    def _unknown(self, name: str) -> str:
        nearest = difflib.get_close_matches(name, self.by_name, n=1, cutoff=0.0)
        return f"table {self.name} has no column {name!r}; the nearest is {nearest[0]!r}"


@dataclass(frozen=True)
class View:
    """Some columns of a published table, in reading order."""

    name: str
    meaning: str
    table: Table
    columns: tuple[Column, ...]


def text(name: str, meaning: str, *, heading: str = "") -> Column:
    """A column of text."""
    return Column(name, "VARCHAR", meaning, heading=heading)


def flag(name: str, meaning: str, *, heading: str = "") -> Column:
    """A column of true and false."""
    return Column(name, "BOOLEAN", meaning, heading=heading)


def moment(name: str, meaning: str, *, heading: str = "") -> Column:
    """A column of points in time."""
    return Column(name, "TIMESTAMPTZ", meaning, heading=heading)


def count(
    name: str, meaning: str, unit: str | None = None, *, better: Better | None = None, heading: str = ""
) -> Column:
    """A column of whole numbers that may be large."""
    return Column(name, "BIGINT", meaning, unit, better, heading, 0)


def whole(
    name: str, meaning: str, unit: str | None = None, *, better: Better | None = None, heading: str = ""
) -> Column:
    """A column of whole numbers that stay small."""
    return Column(name, "INTEGER", meaning, unit, better, heading, 0)


def real(
    name: str, meaning: str, unit: str | None, digits: int | None, *, better: Better | None = None, heading: str = ""
) -> Column:
    """A column of numbers, shown with `digits` decimals."""
    return Column(name, "DOUBLE", meaning, unit, better, heading, digits)


def group(name: str, source: Source, *columns: Column) -> tuple[Column, ...]:
    """`columns` that belong together and come from `source`."""
    return tuple(replace(column, group=name, source=source) for column in columns)
