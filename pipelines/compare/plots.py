"""The pictures people look at, drawn by matplotlib: SVG with real text for the report, whose colours are the page's own (light,
dark, print), and PNG for Dagster. Each is narrow enough to be read on a phone; each returns None where there is nothing to draw."""

import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from statistics import fmean
from typing import Any, Literal

from pipelines.clean.summary import BIN_CHARS
from pipelines.compare.disturbed import MARK, is_marked, speed_stands
from pipelines.compare.hover import row_says, say, say_points, titled
from pipelines.compare.labels import Label, place_labels
from pipelines.compare.show import full_name
from pipelines.compare.stamp import moment

Row = dict[str, Any]
INK = "#76808f"  # reads on a light and on a dark page
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
# what the page calls them, so that its style sheet decides what they look like
THEME = {INK: "--soft", **{color: f"--c{number}" for number, color in enumerate(COLORS)}}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")  # colour alone tells some people nothing
DASHES = ("-", "--", "-.", ":")
Kind = Literal["png", "svg"]
WIDTH = 4.6  # inches
MOST_SERIES = 18
WIDE = 8  # times the least memory: more, and its scale doubles from tick to tick
MOST_POINTS = 250  # of a line: more do not show, and a long run would make a page of many megabytes
MOST_SAID = 12  # points of a curve that say their numbers
MEMORY_SAYS = ("status", "peak_memory_gb", "estimated_memory_gb", "memory_budget_gb")
MOST_BARS = 40
MOST_PANELS = 8


def loss_curves(curves: Mapping[str, Sequence[Row]], kind: Kind = "svg") -> bytes | None:
    """Train loss and, below it, loss on a sample of held-out records over examples seen, one line a cell."""
    curves = {name: points for name, points in itertools.islice(curves.items(), MOST_SERIES) if points}
    if not curves:
        return None
    figure, axes = _stacked(2, 2.3)
    for style, (name, points) in zip(_styles(), curves.items(), strict=False):
        for panel, column in zip(axes, ("train_loss", "eval_loss"), strict=True):
            known = [(p["examples"], p[column]) for p in points if p.get(column) is not None]
            known = known if column == "eval_loss" else _means(known)
            if known:
                marked = style if column == "eval_loss" else style | {"marker": ""}
                panel.plot(*zip(*known, strict=True), label=name, **marked)
                _say_line(panel, known, name, "nats per token", "examples")
    for panel, title in zip(axes, ("training loss of each step", "loss on held-out records (a sample)"), strict=True):
        _dress(panel, title, "examples seen", "nats per token")
    _legend(figure, axes)
    return _render(figure, kind)


def trade_off(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Peak memory (right: more) against bits per byte (down: better) with the interval of its difference to the untouched model;
    the area grows with the time to train, or is small and its name marked `*` where that time is disturbed; rows that another one
    beats are hollow. A colour is a method, or, where there are several models, a model."""
    shown = [row for row in rows if row["status"] == "ok" and row["peak_memory_gb"] and row["eval_bits_per_byte"]]
    if not shown:
        return None
    models = list(dict.fromkeys(row["model"] for row in shown))
    several = len(models) > 1
    figure, (axes,) = _stacked(1, 5.2 if several else 3.9)
    longest = max((row["train_seconds"] or 0 for row in shown if speed_stands(row)), default=0) or 1
    labels = []
    for number, row in enumerate(shown):
        color, marker = _look(models.index(row["model"])) if several else (COLORS[number % len(COLORS)], "o")
        time = (row["train_seconds"] or 0) / longest if speed_stands(row) else 0
        area = 18 + 110 * time if several else 40 + 320 * time
        _trade_off_mark(axes, row, area, color, marker, 0.35 if several else 1)
        name = row["method"] + (f" {MARK}" if is_marked(row, "train_seconds") else "")
        labels.append(Label(row["peak_memory_gb"], row["eval_bits_per_byte"], name, (area**0.5) / 2))
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
    _dress(axes, "lower, further left and smaller is better", "peak memory, GB", "bits per byte")
    _legend(figure, [axes])
    named = [label for label, row in zip(labels, shown, strict=True) if not several or row["is_pareto"]]
    named.sort(key=lambda label: label.y)
    place_labels(axes, named, labels, color=INK, fontsize=9)
    return _render(figure, kind)


def _look(number: int) -> tuple[str, str]:
    """A colour and a marker, another pair for each of the first 81 numbers."""
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
    said = row_says(row, "eval_bits_per_byte", "delta_base", "delta_base_low", "delta_base_high", "peak_memory_gb",
                    "train_seconds", "is_pareto")  # fmt: skip
    say(mark, said)
    say_points(axes, [memory], [bits], [said])


def _untouched(axes: Any, rows: Sequence[Row]) -> None:
    """A dotted line for the untouched model; where rows were measured on different records there are several."""
    bases = sorted({row["base_bits_per_byte"] for row in rows if row["base_bits_per_byte"]})
    for base in bases:
        axes.axhline(base, color=INK, linestyle=":", linewidth=1)
    for base in bases[-1:]:
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 2), "textcoords": "offset points"}
        axes.annotate("untouched model", (1, base), color=INK, fontsize=8.5, ha="right", va="bottom", **place)


def _doubling(axes: Any) -> None:
    """A scale of powers of two, for memory from a small model's to a large one's."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def swept_ranks(rows: Sequence[Row], kind: Kind = "svg", *, title: str | None = None) -> bytes:
    """Loss on held-out records, minutes and peak memory by rank; a rank without a number is marked with its status."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    places = range(len(rows))
    shown = (
        ("eval_loss", "loss", "nats per token"),
        ("minutes", "time", "minutes"),
        ("peak_memory_gb", "memory", "GB at most"),
    )
    if title:
        figure.suptitle(title, fontsize=9, color=INK)
    for axes, color, (column, name, unit) in zip(figure.subplots(1, 3), COLORS, shown, strict=False):
        known = [(place, row[column]) for place, row in zip(places, rows, strict=True) if row[column] is not None]
        for place, value in known:
            good = rows[place]["status"] == "ok"
            axes.plot(place, value, "o" if good else "x", color=color, markersize=6)
            axes.annotate(
                f"{value:.3g}{f' {MARK}' if is_marked(rows[place], column) else ''}",
                (place, value),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                color=INK,
                fontsize=8.5,
            )
        ok = [(place, value) for place, value in known if rows[place]["status"] == "ok"]
        axes.plot(*zip(*ok, strict=True), color=color, linewidth=1.8) if ok else None
        for place, row in zip(places, rows, strict=True):
            if row["status"] != "ok":
                said = row["status"].replace("_", " ")
                axes.annotate(
                    said, (place, 0.03), xycoords=("data", "axes fraction"), ha="center", color=COLORS[7], fontsize=8
                )
        axes.set_xticks(places, [f"{row['rank']}" for row in rows])
        axes.margins(y=0.3)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        if column != "eval_loss":
            axes.set_ylim(bottom=0)
        _dress(axes, f"{name} by rank", "rank", unit)
    return _render(figure, kind)


def memory_bars(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Per row the measured peak (bar), the predicted one (diamond) and the budget (line). A row that ran out of memory always has
    a hatched bar: what it needs at least, as far as that is known."""
    shown = with_memory(rows)[:MOST_BARS]
    if not shown:
        return None
    figure, (axes,) = _stacked(1, 1.0 + 0.3 * len(shown))
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
    axes.set_yticks(places, _row_names(shown))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(left=0)
    _memory_legend(axes, shown)
    _dress(axes, "peak memory of training", "GB", "")
    _legend(figure, [axes])
    return _render(figure, kind)


def _memory_legend(axes: Any, shown: Sequence[Row]) -> None:
    axes.plot([], [], color=COLORS[0], linewidth=7, label="measured")
    if any(row["estimated_memory_gb"] for row in shown):
        axes.plot([], [], marker="D", color=COLORS[1], linestyle="", label="predicted")
    if any(row["memory_budget_gb"] for row in shown):
        axes.plot([], [], color=COLORS[7], linewidth=2, label="budget")
    if any(row["status"] == "out_of_memory" for row in shown):
        axes.fill_between([], [], facecolor="none", edgecolor=COLORS[7], hatch="////", label="out of memory")


def with_memory(rows: Sequence[Row]) -> list[Row]:
    """The rows that a picture of memory shows: what was measured or predicted, and every one that ran out of memory."""
    return [
        row
        for row in rows
        if row["status"] == "out_of_memory"
        or (row["trainable_params"] != 0 and (row["peak_memory_gb"] or row["estimated_memory_gb"]))
    ]


def least_needed(row: Row) -> float | None:
    """GB that a row which ran out of memory needs at least: the largest of what it had when it failed, the prediction and the
    budget, which was too small. None where nothing of it is known."""
    known = (row[name] for name in ("peak_memory_gb", "estimated_memory_gb", "memory_budget_gb"))
    return max(filter(None, known), default=None)


def left_out(found: int, most: int, what: str = "cells") -> str:
    """What a caption says of a picture that draws `most` at most; nothing where it draws all."""
    return f" {most} of {found} {what} are drawn; the numbers below hold all." if found > most else ""


def left_out_of_panels(rows: Sequence[Row], panel: str) -> str:
    """The same of a picture that has a panel for each value of the column `panel`."""
    panels = Counter(row[panel] for row in rows)
    most = max(panels.values(), default=0)
    return left_out(len(panels), MOST_PANELS, "panels") + left_out(most, MOST_BARS, "cells of a panel")


def _row_names(rows: Sequence[Row]) -> list[str]:
    """By method, and by model where there are several."""
    several = len({row["model"] for row in rows}) > 1
    return [f"{row['model']} {row['method']}" if several else row["method"] for row in rows]


def rank_sweep(families: Mapping[str, Sequence[tuple[int, Row]]], kind: Kind = "svg") -> bytes | None:
    """Bits per byte, minutes and peak memory over the adapter's rank; a line a family of cells that differ in rank alone. Minutes
    that are disturbed are left out."""
    families = {name: points for name, points in families.items() if len(points) > 1}
    if not families:
        return None
    figure, axes = _stacked(3, 1.75)
    panels: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
        ("quality", "bits per byte", lambda row: row["eval_bits_per_byte"]),
        ("time to train", "minutes", _quiet_minutes),
        ("peak memory", "GB", lambda row: row["peak_memory_gb"]),
    )
    ranks = sorted({rank for points in families.values() for rank, _ in points})
    for panel, (title, unit, value) in zip(axes, panels, strict=True):
        for style, (name, points) in zip(_styles(), families.items(), strict=False):
            known = [(rank, number) for rank, row in points if (number := value(row)) is not None]
            if known:
                panel.plot(*zip(*known, strict=True), label=name, **style)
                _say_line(panel, known, name, unit, "rank")
        panel.set_xscale("log", base=2)
        panel.set_xticks(ranks, [str(rank) for rank in ranks])
        panel.minorticks_off()
        _dress(panel, title, "rank" if panel is axes[-1] else "", unit)
    _legend(figure, axes)
    return _render(figure, kind)


def by_layers(lines: Mapping[str, Sequence[Row]], kind: Kind = "svg") -> bytes | None:
    """Bits per byte, peak memory of training and tokens answered per second over the number of layers that are left; a line a
    name. None where no row has a number of layers and bits per byte."""
    known = {
        name: found
        for name, rows in itertools.islice(lines.items(), MOST_SERIES)
        if (found := [row for row in rows if row["layers"] and row["eval_bits_per_byte"] is not None])
    }
    if not known:
        return None
    figure, axes = _stacked(3, 1.75)
    panels: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
        ("quality", "bits per byte", lambda row: row["eval_bits_per_byte"]),
        ("peak memory of training", "GB", lambda row: row["peak_memory_gb"] if row["trainable_params"] else None),
        ("answers", "tokens/s", lambda row: row["answer_tokens_per_second"] if speed_stands(row) else None),
    )
    layers = sorted({row["layers"] for rows in known.values() for row in rows})
    for panel, (title, unit, value) in zip(axes, panels, strict=True):
        for style, (name, rows) in zip(_styles(), known.items(), strict=False):
            points = sorted((row["layers"], number) for row in rows if (number := value(row)) is not None)
            if points:
                panel.plot(*zip(*points, strict=True), label=name, **style)
                _say_line(panel, points, name, unit, "layers")
        panel.set_xticks(layers, [f"{number:g}" for number in layers])
        panel.margins(y=0.15)
        _dress(panel, title, "layers" if panel is axes[-1] else "", unit)
    _legend(figure, axes)
    return _render(figure, kind)


def _means(points: Sequence[tuple[Any, float]]) -> list[tuple[Any, float]]:
    """At most MOST_POINTS points, each the mean of as many that follow one another, at the place of its last."""
    size = -(-len(points) // MOST_POINTS) or 1
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], fmean(y for _, y in piece)) for piece in pieces]


def _say_line(panel: Any, points: Sequence[tuple[Any, float]], name: str, unit: str, of: str) -> None:
    """Have some points of a line, its last among them, say their numbers."""
    step = -(-len(points) // MOST_SAID)
    chosen = points[::-1][::step]
    at = [moment(x) if isinstance(x, datetime) else f"{x:g} {of}" for x, _ in chosen]
    said = [f"{name}\n{y:.4g} {unit}\n{place}" for (_, y), place in zip(chosen, at, strict=True)]
    say_points(panel, [x for x, _ in chosen], [y for _, y in chosen], said)


def _quiet_minutes(row: Row) -> float | None:
    return row["train_seconds"] / 60 if row["train_seconds"] and speed_stands(row) else None


def night_by_night(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Bits per byte (on the records shared with the night before) and minutes of every run, a line a cell that ran again. Minutes
    that are disturbed are left out."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    cells = dict(itertools.islice(ran_again(rows).items(), MOST_SERIES))
    if not cells:
        return None
    models, seeds = ({row[name] for runs in cells.values() for row in runs} for name in ("model", "seed"))
    figure, axes = _stacked(2, 2.1)
    for panel, column in zip(axes, ("bits_per_byte", "minutes"), strict=True):
        for style, runs in zip(_styles(), cells.values(), strict=False):
            parts = [runs[0]["model"]] * (len(models) > 1) + [runs[0]["method"]]
            parts += [f"seed {runs[0]['seed']}"] * (len(seeds) > 1)
            shown = [row for row in runs if row[column] is not None and not is_marked(row, column)]
            known = [(_time(row["finished_at"]), row[column]) for row in shown]
            if known:
                panel.plot(*zip(*known, strict=True), label=" ".join(parts), **style)
                _say_line(panel, known, " ".join(parts), column.replace("_", " "), "")
    for panel, title, unit in zip(axes, ("quality", "time to train"), ("bits per byte", "minutes"), strict=True):
        _dress(panel, title, "", unit)
        dates = AutoDateLocator(minticks=2, maxticks=6)
        panel.xaxis.set_major_locator(dates)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(dates))
    _legend(figure, axes)
    return _render(figure, kind)


def ran_again(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every cell with more than one run."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(f"{row['model']} {row['method']} {row['seed']}", []).append(row)
    return {name: runs for name, runs in cells.items() if len(runs) > 1}


def against_retrieval(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Each row's bits per byte minus those of the best retrieval arm of its model, with the 95 % interval; left of the line
    it beats retrieval."""
    from matplotlib.ticker import MaxNLocator

    shown = [row for row in rows if row["delta_retrieval_low"] is not None][:MOST_BARS]
    if not shown:
        return None
    figure, (axes,) = _stacked(1, 1.0 + 0.3 * len(shown))
    places = range(len(shown))[::-1]
    for place, row in zip(places, shown, strict=True):
        low, high = row["delta_retrieval_low"], row["delta_retrieval_high"]
        color = COLORS[2] if high < 0 else COLORS[7] if low > 0 else INK
        axes.plot([low, high], [place] * 2, color=color, linewidth=2, marker="|", markersize=8)
        axes.plot(row["delta_retrieval"], place, marker="o", color=color, markersize=6)
        said = row_says(row, "delta_retrieval", "delta_retrieval_low", "delta_retrieval_high")
        say_points(axes, [row["delta_retrieval"]], [place], [said])
    axes.axvline(0, color=INK, linestyle=":", linewidth=1)
    axes.set_yticks(places, _row_names(shown))
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    _dress(axes, "against the best retrieval arm: left is better", "difference, bits per byte", "")
    return _render(figure, kind)


def _time(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def reasons_bar(reasons: Mapping[str, int], kind: Kind = "svg") -> bytes | None:
    """How many records each reason dropped."""
    if not reasons:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = _stacked(1, 0.7 + 0.3 * len(reasons))
    names = list(reasons)[::-1]
    bars = axes.barh(names, [reasons[name] for name in names], color=COLORS[0], height=0.6)
    for name, bar in zip(names, bars, strict=True):
        say(bar, f"{name}: {reasons[name]:,} records")
    axes.bar_label(bars, color=INK, padding=4, fontsize=9)
    axes.margins(x=0.15)
    _dress(axes, "records dropped, by reason", "records", "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _render(figure, kind)


def provider_shares(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Per provider the shares of its requests with their 95 % intervals."""
    if not rows:
        return None
    names = ("answered", "valid", "refused", "truncated", "duplicate", "accepted")
    figure, (axes,) = _stacked(1, 3.2)
    width = 0.8 / len(rows)
    for i, (color, row) in enumerate(zip(_colors(), rows, strict=False)):
        places = [number + (i - (len(rows) - 1) / 2) * width for number in range(len(names))]
        shares, lows, highs = (
            [100 * (row[f"{name}_share{end}"] or 0) for name in names] for end in ("", "_low", "_high")
        )
        limits = [
            [max(0, share - low) for share, low in zip(shares, lows, strict=True)],
            [max(0, high - share) for share, high in zip(shares, highs, strict=True)],
        ]
        bars = axes.bar(
            places, shares, width * 0.9, color=color, label=row["provider"], yerr=limits, ecolor=INK, capsize=2
        )
        for bar, name, share, low, high in zip(bars, names, shares, lows, highs, strict=True):
            say(bar, f"{row['provider']}\n{name}: {share:.0f} % ({low:.0f} to {high:.0f})")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 105)
    _dress(axes, "what became of the requests (95 % intervals)", "", "% of the requests")
    axes.tick_params(axis="x", labelsize=8)
    _legend(figure, [axes])
    return _render(figure, kind)


def shares_beside_base(rows: Sequence[Row], kind: Kind = "svg", *, of: str = "answers") -> bytes | None:
    """A panel for each `metric`: every method's `share` with its interval (`low` to `high`), and an upright bar at the untouched
    model's (`base`) where that is known."""
    names = list(dict.fromkeys(row["metric"] for row in rows))[:MOST_PANELS]
    if not names:
        return None
    panels = [[row for row in rows if row["metric"] == name][:MOST_BARS] for name in names]
    figure, axes = _stacked(len(panels), 0, [0.75 + 0.26 * len(shown) for shown in panels])
    for panel, name, shown in zip(axes, names, panels, strict=True):
        places = range(len(shown))[::-1]
        for place, row in zip(places, shown, strict=True):
            if row["low"] is not None:
                panel.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=COLORS[0], linewidth=1.6)
            panel.plot(100 * row["share"], place, marker="o", color=COLORS[0], markersize=6, linestyle="")
            say_points(panel, [100 * row["share"]], [place], [_share_says(row, "share", row["base"])])
            if row["base"] is not None:
                panel.plot([100 * row["base"]] * 2, [place - 0.4, place + 0.4], color=COLORS[1], linewidth=2.4)
        panel.set_yticks(places, _row_names(shown))
        panel.set_xlim(-4, 104)
        panel.set_ylim(-0.6, len(shown) - 0.4)
        _dress(panel, name, f"% of the {of}" if panel is axes[-1] else "", "")
    axes[0].plot([], [], marker="o", color=COLORS[0], linestyle="-", label="share, 95 % interval")
    if any(row["base"] is not None for row in rows):
        axes[0].plot([], [], color=COLORS[1], linewidth=2.4, label="untouched model")
    _legend(figure, axes)
    return _render(figure, kind)


def win_rates(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """A panel for each `by`: every method's win `rate` with its interval (`low` to `high`), and a line at one half."""
    names = list(dict.fromkeys(row["by"] for row in rows))[:MOST_PANELS]
    if not names:
        return None
    panels = [[row for row in rows if row["by"] == name][:MOST_BARS] for name in names]
    figure, axes = _stacked(len(panels), 0, [0.85 + 0.26 * len(shown) for shown in panels])
    for color, panel, name, shown in zip(_colors(), axes, names, panels, strict=False):
        places = range(len(shown))[::-1]
        panel.axvline(50, color=INK, linestyle=":", linewidth=1.2)
        for place, row in zip(places, shown, strict=True):
            if row["low"] is not None:
                panel.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=color, linewidth=1.6)
            panel.plot(100 * row["rate"], place, marker="o", color=color, markersize=6, linestyle="")
            say_points(panel, [100 * row["rate"]], [place], [_share_says(row, "rate")])
        panel.set_yticks(places, _row_names(shown))
        panel.set_xlim(-4, 104)
        panel.set_ylim(-0.6, len(shown) - 0.4)
        _dress(panel, name, "% won against the untouched model" if panel is axes[-1] else "", "")
    return _render(figure, kind)


def _share_says(row: Row, column: str, base: float | None = None) -> str:
    """`tiny × full`, `58 % (32 to 81)`, `untouched model: 40 %`."""
    interval = "" if row["low"] is None else f" ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
    untouched = "" if base is None else f"\nuntouched model: {100 * base:.0f} %"
    return f"{full_name(row)}\n{100 * row[column]:.0f} %{interval}{untouched}"


def coverage_bars(covered: Sequence[Any], kind: Kind = "svg") -> bytes | None:
    """Share of each axis's values that a provider's valid records hit, a group of bars per axis."""
    covered = [one for one in covered if one.axes]
    if not covered:
        return None
    names = list(covered[0].axes)
    figure, (axes,) = _stacked(1, 3.2)
    width = 0.8 / len(covered)
    for i, (color, one) in enumerate(zip(_colors(), covered, strict=False)):
        places = [number + (i - (len(covered) - 1) / 2) * width for number in range(len(names))]
        axes.bar(places, [100 * one.axes.get(name, 0) for name in names], width * 0.9, color=color, label=one.provider)
    axes.set_xticks(range(len(names)), names, rotation=25)
    axes.set_ylim(0, 105)
    _dress(axes, "values of each axis that valid records cover", "", "% of the values asked for")
    _legend(figure, [axes])
    return _render(figure, kind)


def length_histograms(lengths: Mapping[str, Sequence[tuple[int, int]]], kind: Kind = "svg") -> bytes | None:
    """How long prompts and answers are: kind → (characters at the start of a bin, examples)."""
    from matplotlib.ticker import MaxNLocator

    if not any(lengths.values()):
        return None
    figure, axes = _stacked(len(lengths), 1.7)
    for panel, color, (name, bins) in zip(axes, _colors(), lengths.items(), strict=False):
        starts = [start for start, _ in bins]
        width = min((b - a for a, b in itertools.pairwise(starts)), default=BIN_CHARS)
        bars = panel.bar(starts, [count for _, count in bins], width=0.9 * width, align="edge", color=color)
        for bar, (start, count) in zip(bars, bins, strict=True):
            say(bar, f"{start:,} to {start + width - 1:,} characters: {count:,} examples")
        _dress(panel, f"length of the {name}", "characters" if panel is axes[-1] else "", "examples")
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _render(figure, kind)


def _stacked(panels: int, height: float, heights: Sequence[float] = ()) -> tuple[Any, list[Any]]:
    """A figure of so many panels below one another, each `height` inches, or of the `heights` given."""
    from matplotlib.figure import Figure

    ratios = list(heights) or [height] * panels
    figure = Figure(figsize=(WIDTH, sum(ratios)), layout="constrained")
    axes = figure.subplots(panels, 1, height_ratios=ratios)
    return figure, [axes] if panels == 1 else list(axes)


def _colors() -> list[str]:
    return [*COLORS] * 20


def _styles() -> Iterator[dict[str, Any]]:
    """Endless line styles; no two of the first 18 share colour and dash."""
    for number in itertools.count():
        turn, place = divmod(number, len(COLORS))
        yield {
            "color": COLORS[place],
            "marker": MARKERS[place],
            "markersize": 4.5,
            "linestyle": DASHES[turn % len(DASHES)],
            "linewidth": 1.7,
        }


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    found = {
        label: handle
        for panel in axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }  # fmt: skip
    if found:
        place = {"loc": "outside lower center", "ncols": 2 if max(map(len, found)) > 14 else 3, "frameon": False}
        figure.legend(list(found.values()), list(found), labelcolor=INK, fontsize=9, **place)


def _dress(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _render(figure: Any, kind: Kind) -> bytes:
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "featherweight", "text.parse_math": False}):
        if kind == "svg":
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
            return themed(out.getvalue().decode()).encode()
        figure.savefig(out, format="png", dpi=110, facecolor="white")
    return out.getvalue()


def themed(svg: str) -> str:
    """matplotlib's SVG, fit to stand in a page beside others: without its head, size, metadata, style sheet and fonts; ids are its
    own, and colours are the page's variables."""
    svg = titled(svg[svg.index("<svg") :])
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*" height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r' id="[A-Za-z0-9.]*_\d+"| ?font-family: [^;"]*;', "", svg)
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}-", svg)
    for color, name in THEME.items():
        svg = svg.replace(color, f"var({name})")
    return svg
