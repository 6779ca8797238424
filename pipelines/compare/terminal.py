"""What fits on a terminal: its width, the columns of a table that fit, and sentences wrapped
between words.

Widths are in cells; a Korean syllable takes two.
"""

import os
import shutil
import sys
from collections.abc import Sequence

from wcwidth import wrap

# Cells between two columns of a table.
GAP = 2
# Indentation of the second and later lines of a wrapped sentence.
INDENT = "  "


def output_width() -> int | None:
    """Cells in a line of standard output, from the terminal or from COLUMNS; None if neither is
    known, as in a pipe."""
    named = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty() or (named.isdecimal() and int(named)):
        return shutil.get_terminal_size().columns
    return None


def columns_that_fit(widths: Sequence[int], by_importance: Sequence[Sequence[int]], room: int) -> list[int]:
    """The columns with these `widths` that fit into `room`, in the order of the table.

    `by_importance` lists groups of columns, the most important first. A group is shown completely
    or not at all; the first group is always shown.
    """
    first, *others = by_importance
    chosen = list(first)
    for group in others:
        candidate = [*chosen, *group]
        if sum(widths[place] for place in candidate) + GAP * (len(candidate) - 1) <= room:
            chosen = candidate
    return sorted(chosen)


def wrapped(sentence: str, room: int | None) -> str:
    """The sentence wrapped into lines of at most `room` cells."""
    return (
        "\n".join(wrap(sentence, room, subsequent_indent=INDENT, break_on_hyphens=False))
        if room and sentence
        else sentence
    )
