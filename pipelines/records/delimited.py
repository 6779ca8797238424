"""A strict reader of CSV rows: ambiguous quotation marks cost only their own row."""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TextIO

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
# Length limit of a cell, and of a line.
MAX_CHARS = 32 << 20
# Number of rows after a broken one that may still belong to it.
MAX_UNSURE = 1000
SHOWN_CHARS = 1000
NEVER_CLOSED = "a quotation mark is never closed"
NOT_DOUBLED = 'a quotation mark is never closed, or one inside a quoted cell is not doubled ("")'


@dataclass(frozen=True)
class Row:
    """One row. `first` and `last` are its lines, from 1.

    `problem` says why it cannot be read. `text` is its beginning.
    """

    first: int
    last: int
    cells: list[str]
    text: str
    problem: str | None = None

    @property
    def place(self) -> str:
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"


def rows(handle: TextIO, separator: str) -> Iterator[Row]:
    """Every row that is not blank.

    After a broken row, the next line begins a new row. But if a later line has a closing quotation
    mark without an opening one, it closes the broken row's cell, and all lines up to it belong to
    the broken row.
    """
    broken: Row | None = None
    unsure: list[Row] = []
    for row in _rows(handle, separator):
        if broken is None:
            if row.problem:
                broken = row
            else:
                yield row
        elif '"' in row.text and not row.problem and not _opens_a_cell(row.text, separator):
            yield replace(broken, last=row.last)
            broken, unsure = None, []
        else:
            unsure.append(row)
            if len(unsure) > MAX_UNSURE or ('"' in row.text and not row.problem):
                yield broken
                yield from unsure
                broken, unsure = None, []
    if broken:
        yield broken
        yield from unsure


def cells_of(line: str, separator: str) -> list[str]:
    """The cells of a single line; none if its quotation marks are ambiguous."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error:
        return []


def _opens_a_cell(text: str, separator: str) -> bool:
    return text.startswith('"') or f'{separator}"' in text


def _rows(handle: TextIO, separator: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_CHARS)
    lines = _Lines(handle)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = _in_words(str(error), many=len(lines.taken) > 1)
            lines.take_back()
            yield Row(lines.first, lines.first, [], lines.taken[0][:SHOWN_CHARS].rstrip("\r\n"), problem)
            continue
        if cells:
            yield Row(lines.first, lines.first + len(lines.taken) - 1, cells, "".join(lines.taken))


def _in_words(error: str, *, many: bool) -> str:
    if error == "unexpected end of data":
        return NEVER_CLOSED
    if "expected after" in error:
        return NOT_DOUBLED if many else 'a quotation mark inside a quoted cell is not doubled ("")'
    if "field larger" in error:
        return f"a cell is longer than {MAX_CHARS:,} characters; {NEVER_CLOSED}?"
    return error


class _Lines(Iterator[str]):
    """The lines of a file. All lines of a row but the first can be put back."""

    def __init__(self, handle: TextIO) -> None:
        self.first = 1
        self.taken: list[str] = []
        self._handle = handle
        self._ahead: deque[str] = deque()

    def begin(self) -> None:
        """Begin a row with the next line."""
        self.first += len(self.taken)
        self.taken = []

    def take_back(self) -> None:
        self._ahead.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else self._handle.readline(MAX_CHARS)
        if not line:
            raise StopIteration
        self.taken.append(line)
        if len(line) == MAX_CHARS and not line.endswith(("\n", "\r")):
            while (rest := self._handle.readline(MAX_CHARS)) and not rest.endswith(("\n", "\r")):
                pass
            raise csv.Error(f"longer than {MAX_CHARS:,} characters, only its start is kept")
        return line
