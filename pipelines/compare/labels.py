"""Places names beside the points of a picture without overlaps between names or with points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Points between a mark and its name.
GAP = 4
# Places for a name, in order: right, left, above, below, the corners; then the same at a larger
# distance.
PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
DISTANCES = (1, 2.4)
HORIZONTAL = {1: "left", 0: "center", -1: "right"}
VERTICAL = {1: "bottom", 0: "center", -1: "top"}
# Left, bottom, right, top in pixels.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """`text` for the point at `x`, `y` in data coordinates, with a mark of `radius` points."""

    x: float
    y: float
    text: str
    radius: float


def place_labels(axes: Any, labels: Sequence[Label], others: Sequence[Label] = (), **style: Any) -> int:
    """Write the labels in their order, each where there is room, and return the number of labels
    without room.

    The marks of `others` are kept free too. The limits and scales of the axes must be final.
    """
    figure = axes.figure
    # Fixes the layout: from here on the axes have the position in which they are saved.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    occupied = [_around(axes, one) for one in (*labels, *others)]
    occupied += [text.get_window_extent().extents for text in axes.texts]
    left_out = 0
    for label in labels:
        text = axes.annotate(label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", **style)
        for right, up, away, box in _places(text, label, _around(axes, label), figure.dpi / 72):
            if _inside(box, axes.bbox.extents) and not any(_overlap(box, other) for other in occupied):
                text.set(position=(right * away, up * away), ha=HORIZONTAL[right], va=VERTICAL[up])
                occupied.append(box)
                break
        else:
            text.remove()
            left_out += 1
    return left_out


def _places(text: Any, label: Label, mark: Box, pixels: float) -> Iterator[tuple[int, int, float, Box]]:
    """Candidate places of the text: direction, distance in points, and its box. `pixels` is the
    number per point."""
    size = text.get_window_extent()
    x, y = (mark[0] + mark[2]) / 2, (mark[1] + mark[3]) / 2
    for distance in DISTANCES:
        for right, up in PLACES:
            away = label.radius * (0.7 if right and up else 1) + GAP * distance
            left = x + right * away * pixels + (right - 1) / 2 * size.width
            bottom = y + up * away * pixels + (up - 1) / 2 * size.height
            yield right, up, away, (left - 1, bottom - 1, left + size.width + 1, bottom + size.height + 1)


def _around(axes: Any, label: Label) -> Box:
    x, y = axes.transData.transform((label.x, label.y))
    radius = label.radius * axes.figure.dpi / 72
    return x - radius, y - radius, x + radius, y + radius


def _inside(box: Box, room: Box) -> bool:
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
