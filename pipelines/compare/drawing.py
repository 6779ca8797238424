"""Code shared by all pictures: colours, panels, legend and style, and rendering as SVG for the
report or PNG for Dagster."""

import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pipelines.compare.hover import titled

Row = dict[str, Any]
# Readable on a light and on a dark page.
INK = "#76808f"
COLORS: tuple[str, ...] = (
    "#4c78d8",
    "#e4803a",
    "#3fa34d",
    "#c04a8a",
    "#8a6bd1",
    "#2a9d9d",
    "#b8860b",
    "#d6455d",
    "#6b8e23",
)
# The page's names for the colours. Its style sheet decides their look.
THEME = {INK: "--soft", **{color: f"--c{number}" for number, color in enumerate(COLORS)}}
# A marker per colour, since some people cannot tell colours apart.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
DASHES = ("-", "--", "-.", ":")
Kind = Literal["png", "svg"]
# Width of a figure in inches.
WIDTH = 4.6
MAX_BARS = 40


def stacked(panels: int, height: float, heights: Sequence[float] = ()) -> tuple[Any, list[Any]]:
    """A figure with panels below one another, each `height` inches high, or with the given
    `heights`."""
    from matplotlib.figure import Figure

    ratios = list(heights) or [height] * panels
    figure = Figure(figsize=(WIDTH, sum(ratios)), layout="constrained")
    axes = figure.subplots(panels, 1, height_ratios=ratios)
    return figure, [axes] if panels == 1 else list(axes)


def colors() -> list[str]:
    """The colours repeated, for more series than there are colours."""
    return [*COLORS] * 20


def styles() -> Iterator[dict[str, Any]]:
    """Endless line styles; no two of the first 18 have the same colour and dash."""
    for number in itertools.count():
        turn, place = divmod(number, len(COLORS))
        yield {
            "color": COLORS[place],
            "marker": MARKERS[place],
            "markersize": 4.5,
            "linestyle": DASHES[turn % len(DASHES)],
            "linewidth": 1.7,
        }


def legend(figure: Any, axes: Sequence[Any]) -> None:
    """Add one legend for all axes below the figure, with as many columns as its longest name
    allows."""
    handles = {
        label: handle
        for panel in axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }  # fmt: skip
    if handles:
        longest = max(map(len, handles))
        columns = 3 if longest <= 14 else 2 if longest <= 24 else 1
        place = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        figure.legend(list(handles.values()), list(handles), labelcolor=INK, fontsize=9, **place)


def dress(axes: Any, title: str, x: str, y: str) -> None:
    """Set title, axis labels, grid and ink."""
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def render(figure: Any, kind: Kind) -> bytes:
    """The figure as the bytes of a file: themed SVG, or PNG on white."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "featherweight", "text.parse_math": False}):
        if kind == "svg":
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
            return themed(out.getvalue().decode()).encode()
        figure.savefig(out, format="png", dpi=110, facecolor="white")
    return out.getvalue()


def themed(svg: str) -> str:
    """matplotlib's SVG, made fit for a page with other pictures.

    Head, size, metadata, style sheet and fonts are removed. Ids get a prefix of their own, and
    colours become the page's variables.
    """
    svg = titled(svg[svg.index("<svg") :])
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*" height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r' id="[A-Za-z0-9.]*_\d+"| ?font-family: [^;"]*;', "", svg)
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}-", svg)
    for color, name in THEME.items():
        svg = svg.replace(color, f"var({name})")
    return svg


def row_names(rows: Sequence[Row]) -> list[str]:
    """The method of each row, with its model in front if there are several."""
    several = len({row["model"] for row in rows}) > 1
    return [f"{row['model']} {row['method']}" if several else row["method"] for row in rows]


def left_out(count: int, limit: int, things: str = "cells") -> str:
    """A caption's sentence for a picture that draws at most `limit` things; empty if it draws
    all."""
    return f" {limit} of {count} {things} are drawn; the numbers below hold all." if count > limit else ""
