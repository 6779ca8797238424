"""What a mark of a picture says when the pointer rests on it: an SVG `<title>`, which browsers show without any script.

The text travels through matplotlib as the mark's group id, the one thing that its SVG backend writes for every mark.
"""

import html
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import escape

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.show import full_name, row_text

Row = dict[str, Any]
MARK, POINTS = "title:", "titles:"  # before the text of one mark, and before the texts of the points of a line
BETWEEN = "\x1e"  # the texts of two points
HIT_SIZE = 11  # points across: the place that answers the pointer, wider than what is drawn


def row_says(row: Row, *columns: str) -> str:
    """A row of the comparison: its name, and a line for each of the columns."""
    lines = [f"{column.heading}: {row_text(row, column)}" for column in COMPARISON.pick(*columns)]
    return "\n".join([full_name(row), *lines])


def say(mark: Any, text: str) -> None:
    """`mark`: a patch or a collection."""
    mark.set_gid(MARK + text)


def say_points(axes: Any, x: Sequence[Any], y: Sequence[Any], texts: Sequence[str]) -> None:
    """Lay an unseen mark over each point, which says its text. Every point lies within the axes."""
    unseen: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": HIT_SIZE, "color": "k", "alpha": 0}
    axes.plot(x, y, **unseen, zorder=9, gid=POINTS + BETWEEN.join(texts))


def titled(svg: str) -> str:
    """matplotlib's SVG with the texts as titles of their marks."""
    head, *pieces = re.split(rf' id="({MARK}|{POINTS})([^"]*)"', svg)
    parts = [head]
    for kind, text, following in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        titles = [f"<title>{escape(one)}</title>" for one in html.unescape(text).split(BETWEEN)]
        if kind == MARK:
            parts.append(following.replace(">", f">{titles[0]}", 1))
        else:
            parts.append(_each(following, titles))
    return "".join(parts)


def _each(svg: str, titles: Sequence[str]) -> str:
    left = iter(titles)
    return re.sub(r"<use ([^>]*)/>", lambda use: f"<use {use[1]}>{next(left)}</use>", svg, count=len(titles))
