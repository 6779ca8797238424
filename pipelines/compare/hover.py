"""Hover texts for the marks of a picture: SVG `<title>` elements, which browsers show without any
script.

matplotlib carries the text as the mark's group id, the only attribute that its SVG backend writes
for every mark.
"""

import html
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import escape

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.show import full_name, row_text

Row = dict[str, Any]
# Prefixes of a group id: the text of one mark, and the texts of the points of a line.
MARK, POINTS = "title:", "titles:"
# Separates the texts of two points.
BETWEEN = "\x1e"
# Diameter in points of the area that reacts to the pointer; it is larger than the drawn mark.
HIT_SIZE = 11


def row_says(row: Row, *columns: str) -> str:
    """The hover text of a comparison row: its name, and a line for each of the columns."""
    lines = [f"{column.heading}: {row_text(row, column)}" for column in COMPARISON.pick(*columns)]
    return "\n".join([full_name(row), *lines])


def say(mark: Any, text: str) -> None:
    """Give `mark`, a patch or a collection, a hover text."""
    mark.set_gid(MARK + text)


def say_points(axes: Any, x: Sequence[Any], y: Sequence[Any], texts: Sequence[str]) -> None:
    """Lay an invisible mark with a hover text over each point. Every point must lie within the
    axes."""
    unseen: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": HIT_SIZE, "color": "k", "alpha": 0}
    axes.plot(x, y, **unseen, zorder=9, gid=POINTS + BETWEEN.join(texts))


def titled(svg: str) -> str:
    """matplotlib's SVG with the hover texts as titles of their marks."""
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
