"""The picture for decisions: peak memory against quality, with the time to train as the size of
a mark."""

from collections.abc import Sequence
from typing import Any

from pipelines.compare.disturbed import MARK, has_valid_speed, is_marked
from pipelines.compare.drawing import COLORS, INK, MARKERS, Kind, Row, dress, legend, render, stacked
from pipelines.compare.hover import row_says, say, say_points
from pipelines.compare.labels import Label, place_labels
from pipelines.compare.outside import is_outside

# If the largest memory exceeds the smallest by this factor, the memory axis is logarithmic (powers
# of two).
WIDE = 8


def trade_off(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Peak memory (right: more) against bits per byte (down: better), with the interval of the
    difference to the untouched model.

    The area of a mark grows with the time to train. If that time is disturbed, the mark is small
    and its name has a `*`. Rows that another row beats are hollow. A colour stands for a method,
    and a triangle lies outside the profile. With several models, colour and marker stand for the
    model.
    """
    shown = [row for row in rows if row["status"] == "ok" and row["peak_memory_gb"] and row["eval_bits_per_byte"]]
    if not shown:
        return None
    models = list(dict.fromkeys(row["model"] for row in shown))
    several = len(models) > 1
    figure, (axes,) = stacked(1, 5.2 if several else 3.9)
    labels = _marks(axes, shown, models)
    if several:
        for number, model in enumerate(models):
            color, marker = _look(number)
            axes.plot([], [], linestyle="", label=model, color=color, marker=marker)
    else:
        _untouched(axes, shown)
    most = [row["peak_memory_gb"] for row in shown]
    if max(most) > WIDE * min(most):
        _doubling(axes)
    axes.margins(x=0.2, y=0.12)
    dress(axes, "lower, further left and smaller is better", "peak memory, GB", "bits per byte")
    legend(figure, [axes])
    named = [label for label, row in zip(labels, shown, strict=True) if not several or row["is_pareto"]]
    named.sort(key=lambda label: label.y)
    place_labels(axes, named, labels, color=INK, fontsize=9)
    return render(figure, kind)


def _look(number: int) -> tuple[str, str]:
    """A colour and a marker; the first 81 numbers get different pairs."""
    turn, place = divmod(number, len(COLORS))
    return COLORS[place], MARKERS[(place + turn) % len(MARKERS)]


def _trade_off_mark(axes: Any, row: Row, area: float, color: str, marker: str, strength: float) -> None:
    memory, bits, base = row["peak_memory_gb"], row["eval_bits_per_byte"], row["base_bits_per_byte"]
    if base and row["delta_base_low"] is not None:
        ends = [base + row["delta_base_low"], base + row["delta_base_high"]]
        axes.plot([memory] * 2, ends, color=color, linewidth=1.4, marker="_", markersize=7, alpha=strength)
    face = "none" if row["is_pareto"] is False else color
    mark = axes.scatter(
        memory, bits, s=area, facecolors=face, edgecolors=color, linewidths=1.6, zorder=3, marker=marker
    )
    text = row_says(row, "eval_bits_per_byte", "delta_base", "delta_base_low", "delta_base_high", "peak_memory_gb",
                    "train_seconds", "is_pareto")  # fmt: skip
    say(mark, text)
    say_points(axes, [memory], [bits], [text])


def _marks(axes: Any, shown: Sequence[Row], models: Sequence[str]) -> list[Label]:
    """Draw a mark for each row and return the labels."""
    several = len(models) > 1
    longest = max((row["train_seconds"] or 0 for row in shown if has_valid_speed(row)), default=0) or 1
    labels = []
    for number, row in enumerate(shown):
        color, marker = (
            _look(models.index(row["model"]))
            if several
            else (COLORS[number % len(COLORS)], "^" if is_outside(row) else "o")
        )
        time = (row["train_seconds"] or 0) / longest if has_valid_speed(row) else 0
        area = 18 + 110 * time if several else 40 + 320 * time
        _trade_off_mark(axes, row, area, color, marker, 0.35 if several else 1)
        name = row["method"] + (f" {MARK}" if is_marked(row, "train_seconds") else "")
        labels.append(Label(row["peak_memory_gb"], row["eval_bits_per_byte"], name, (area**0.5) / 2))
    return labels


def _untouched(axes: Any, rows: Sequence[Row]) -> None:
    """A dotted line for the untouched model, or several if rows were measured on different
    records."""
    bases = sorted({row["base_bits_per_byte"] for row in rows if row["base_bits_per_byte"]})
    for base in bases:
        axes.axhline(base, color=INK, linestyle=":", linewidth=1)
    for base in bases[-1:]:
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 2), "textcoords": "offset points"}
        axes.annotate("untouched model", (1, base), color=INK, fontsize=8.5, ha="right", va="bottom", **place)


def _doubling(axes: Any) -> None:
    """Use a scale of powers of two, for a wide range of memory."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
