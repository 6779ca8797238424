"""How much a terminal shows: its width, which columns of a table fit, and sentences broken between words. Widths are in cells, of
which a Korean syllable takes two."""

import os
import shutil
import sys
from collections.abc import Sequence

from wcwidth import wrap

GAP = 2  # cells between two columns of a table
INDENT = "  "  # of a sentence's second and later lines


def output_width() -> int | None:
    """Cells in a line of standard output: the terminal's, or what COLUMNS says. None where neither is known, as in a pipe."""
    named = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty() or (named.isdecimal() and int(named)):
        return shutil.get_terminal_size().columns
    return None


def columns_that_fit(widths: Sequence[int], by_importance: Sequence[Sequence[int]], room: int) -> list[int]:
    """Which of the columns with these `widths` fit into `room`, in the table's order. `by_importance` are groups of columns, the
    most important first; a group is shown whole or not at all, and the first always."""
    first, *others = by_importance
    chosen = list(first)
    for group in others:
        candidate = [*chosen, *group]
        if sum(widths[place] for place in candidate) + GAP * (len(candidate) - 1) <= room:
            chosen = candidate
    return sorted(chosen)


def wrapped(sentence: str, room: int | None) -> str:
    """The sentence in lines of at most `room` cells."""
    return (
        "\n".join(wrap(sentence, room, subsequent_indent=INDENT, break_on_hyphens=False))
        if room and sentence
        else sentence
    )
