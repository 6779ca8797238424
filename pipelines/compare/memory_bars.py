"""The picture of memory: measured, predicted and allowed, with a bar for every cell that ran out
of it."""

from collections.abc import Sequence
from typing import Any

from pipelines.compare.drawing import COLORS, MAX_BARS, Kind, Row, dress, legend, render, row_names, stacked
from pipelines.compare.hover import row_says, say, say_points

MEMORY_SAYS = ("status", "peak_memory_gb", "estimated_memory_gb", "memory_budget_gb")


def memory_bars(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Draw the measured peak (bar), the predicted peak (diamond) and the budget (line) of each row.

    A row that ran out of memory always has a hatched bar: the least memory it needs, as far as that
    is known.
    """
    shown = with_memory(rows)[:MAX_BARS]
    if not shown:
        return None
    figure, (axes,) = stacked(1, 1.0 + 0.3 * len(shown))
    places = range(len(shown))[::-1]
    for place, row in zip(places, shown, strict=True):
        failed = row["status"] == "out_of_memory"
        look: dict[str, Any] = {"facecolor": "none", "edgecolor": COLORS[7], "hatch": "////"}
        length = least_needed(row) if failed else row["peak_memory_gb"]
        (bar,) = axes.barh(place, length or 0, height=0.6, **(look if failed else {"color": COLORS[0]}))
        say(bar, row_says(row, *MEMORY_SAYS))
        if failed and not length:
            axes.annotate("out of memory", (0, place), color=COLORS[7], fontsize=9, va="center")
        if row["estimated_memory_gb"]:
            axes.plot(row["estimated_memory_gb"], place, marker="D", color=COLORS[1], markersize=6, linestyle="")
            say_points(axes, [row["estimated_memory_gb"]], [place], [row_says(row, *MEMORY_SAYS)])
        if row["memory_budget_gb"]:
            axes.plot([row["memory_budget_gb"]] * 2, [place - 0.42, place + 0.42], color=COLORS[7], linewidth=2)
    axes.set_yticks(places, row_names(shown))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(left=0)
    _memory_legend(axes, shown)
    dress(axes, "peak memory of training", "GB", "")
    legend(figure, [axes])
    return render(figure, kind)


def _memory_legend(axes: Any, shown: Sequence[Row]) -> None:
    axes.plot([], [], color=COLORS[0], linewidth=7, label="measured")
    if any(row["estimated_memory_gb"] for row in shown):
        axes.plot([], [], marker="D", color=COLORS[1], linestyle="", label="predicted")
    if any(row["memory_budget_gb"] for row in shown):
        axes.plot([], [], color=COLORS[7], linewidth=2, label="budget")
    if any(row["status"] == "out_of_memory" for row in shown):
        axes.fill_between([], [], facecolor="none", edgecolor=COLORS[7], hatch="////", label="out of memory")


def with_memory(rows: Sequence[Row]) -> list[Row]:
    """The rows for the picture of memory: those with a measurement or a prediction, and all that
    ran out of memory."""
    return [
        row
        for row in rows
        if row["status"] == "out_of_memory"
        or (row["trainable_params"] != 0 and (row["peak_memory_gb"] or row["estimated_memory_gb"]))
    ]


def least_needed(row: Row) -> float | None:
    """The least GB that a row which ran out of memory needs; None if nothing is known.

    It is the largest of three numbers: the memory in use at the failure, the prediction, and the
    budget that was too small.
    """
    known = (row[name] for name in ("peak_memory_gb", "estimated_memory_gb", "memory_budget_gb"))
    return max(filter(None, known), default=None)
