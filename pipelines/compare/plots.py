"""The pictures, drawn by matplotlib: SVG with real text for the report and PNG for Dagster.

The SVG uses the page's own colours (light, dark, print). Each picture is narrow enough for a phone.
Each function returns None if there is nothing to draw.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from statistics import fmean
from typing import Any

from pipelines.clean.summary import BIN_CHARS
from pipelines.compare.disturbed import MARK, has_valid_speed, is_marked
from pipelines.compare.drawing import (
    COLORS,
    INK,
    MAX_BARS,
    Kind,
    Row,
    colors,
    dress,
    left_out,
    legend,
    render,
    row_names,
    stacked,
    styles,
)  # fmt: skip
from pipelines.compare.hover import row_says, say, say_points
from pipelines.compare.show import full_name
from pipelines.compare.stamp import moment

MAX_SERIES = 18
# Points of a line. More are not visible, and a long run would make a page of many megabytes.
MAX_POINTS = 250
# Points of a curve that show their numbers under the pointer.
MAX_HOVER_POINTS = 12
MAX_PANELS = 8


def loss_curves(curves: Mapping[str, Sequence[Row]], kind: Kind = "svg") -> bytes | None:
    """Training loss and, below it, loss on a sample of held-out records over examples seen; one
    line per cell."""
    curves = {name: points for name, points in itertools.islice(curves.items(), MAX_SERIES) if points}
    if not curves:
        return None
    figure, axes = stacked(2, 2.3)
    for style, (name, points) in zip(styles(), curves.items(), strict=False):
        for panel, column in zip(axes, ("train_loss", "eval_loss"), strict=True):
            known = [(p["examples"], p[column]) for p in points if p.get(column) is not None]
            known = known if column == "eval_loss" else _means(known)
            if known:
                marked = style if column == "eval_loss" else style | {"marker": ""}
                panel.plot(*zip(*known, strict=True), label=name, **marked)
                _say_line(panel, known, name, "nats per token", "examples")
    for panel, title in zip(axes, ("training loss of each step", "loss on held-out records (a sample)"), strict=True):
        dress(panel, title, "examples seen", "nats per token")
    legend(figure, axes)
    return render(figure, kind)


def swept_ranks(rows: Sequence[Row], kind: Kind = "svg", *, title: str | None = None) -> bytes:
    """Held-out loss, minutes and peak memory by rank. A rank that did not end ok is marked with
    its status."""
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
                label = row["status"].replace("_", " ")
                axes.annotate(
                    label, (place, 0.03), xycoords=("data", "axes fraction"), ha="center", color=COLORS[7], fontsize=8
                )
        axes.set_xticks(places, [f"{row['rank']}" for row in rows])
        axes.margins(y=0.3)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        if column != "eval_loss":
            axes.set_ylim(bottom=0)
        dress(axes, f"{name} by rank", "rank", unit)
    return render(figure, kind)


def rank_sweep(families: Mapping[str, Sequence[tuple[int, Row]]], kind: Kind = "svg") -> bytes | None:
    """Bits per byte, minutes and peak memory over the adapter's rank, one line per family of cells
    that differ only in rank.

    Disturbed minutes are left out.
    """
    families = {name: points for name, points in families.items() if len(points) > 1}
    if not families:
        return None
    figure, axes = stacked(3, 1.75)
    panels: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
        ("quality", "bits per byte", lambda row: row["eval_bits_per_byte"]),
        ("time to train", "minutes", _quiet_minutes),
        ("peak memory", "GB", lambda row: row["peak_memory_gb"]),
    )
    ranks = sorted({rank for points in families.values() for rank, _ in points})
    for panel, (title, unit, value) in zip(axes, panels, strict=True):
        for style, (name, points) in zip(styles(), families.items(), strict=False):
            known = [(rank, number) for rank, row in points if (number := value(row)) is not None]
            if known:
                panel.plot(*zip(*known, strict=True), label=name, **style)
                _say_line(panel, known, name, unit, "rank")
        panel.set_xscale("log", base=2)
        panel.set_xticks(ranks, [str(rank) for rank in ranks])
        panel.minorticks_off()
        dress(panel, title, "rank" if panel is axes[-1] else "", unit)
    legend(figure, axes)
    return render(figure, kind)


def by_layers(lines: Mapping[str, Sequence[Row]], kind: Kind = "svg") -> bytes | None:
    """Bits per byte, peak memory of training and answered tokens per second over the number of
    remaining layers.

    Each name is a line. None if no row has both a number of layers and bits per byte.
    """
    known = {
        name: measured
        for name, rows in itertools.islice(lines.items(), MAX_SERIES)
        if (measured := [row for row in rows if row["layers"] and row["eval_bits_per_byte"] is not None])
    }
    if not known:
        return None
    figure, axes = stacked(3, 1.75)
    panels: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
        ("quality", "bits per byte", lambda row: row["eval_bits_per_byte"]),
        ("peak memory of training", "GB", lambda row: row["peak_memory_gb"] if row["trainable_params"] else None),
        ("answers", "tokens/s", lambda row: row["answer_tokens_per_second"] if has_valid_speed(row) else None),
    )
    layers = sorted({row["layers"] for rows in known.values() for row in rows})
    for panel, (title, unit, value) in zip(axes, panels, strict=True):
        _lines_over_layers(panel, known, value, unit)
        panel.set_xticks(layers, [f"{number:g}" for number in layers])
        panel.margins(y=0.15)
        dress(panel, title, "layers" if panel is axes[-1] else "", unit)
    legend(figure, axes)
    return render(figure, kind)


def _lines_over_layers(
    panel: Any, lines: Mapping[str, Sequence[Row]], value: Callable[[Row], float | None], unit: str
) -> None:
    for style, (name, rows) in zip(styles(), lines.items(), strict=False):
        points = sorted((row["layers"], number) for row in rows if (number := value(row)) is not None)
        if points:
            panel.plot(*zip(*points, strict=True), label=name, **style)
            _say_line(panel, points, name, unit, "layers")


def _means(points: Sequence[tuple[Any, float]]) -> list[tuple[Any, float]]:
    """At most MAX_POINTS points. Each is the mean of a run of neighbours, placed at the last of
    them."""
    size = -(-len(points) // MAX_POINTS) or 1
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], fmean(y for _, y in piece)) for piece in pieces]


def _say_line(panel: Any, points: Sequence[tuple[Any, float]], name: str, unit: str, quantity: str) -> None:
    """Attach hover texts to some points of a line, including the last."""
    step = -(-len(points) // MAX_HOVER_POINTS)
    chosen = points[::-1][::step]
    places = [moment(x) if isinstance(x, datetime) else f"{x:g} {quantity}" for x, _ in chosen]
    texts = [f"{name}\n{y:.4g} {unit}\n{place}" for (_, y), place in zip(chosen, places, strict=True)]
    say_points(panel, [x for x, _ in chosen], [y for _, y in chosen], texts)


def _quiet_minutes(row: Row) -> float | None:
    return row["train_seconds"] / 60 if row["train_seconds"] and has_valid_speed(row) else None


def night_by_night(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Bits per byte (on the records shared with the night before) and minutes of every run, one
    line per cell that ran again.

    Disturbed minutes are left out.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    cells = dict(itertools.islice(ran_again(rows).items(), MAX_SERIES))
    if not cells:
        return None
    models, seeds = ({row[name] for runs in cells.values() for row in runs} for name in ("model", "seed"))
    figure, axes = stacked(2, 2.1)
    for panel, column in zip(axes, ("bits_per_byte", "minutes"), strict=True):
        for style, runs in zip(styles(), cells.values(), strict=False):
            parts = [runs[0]["model"]] * (len(models) > 1) + [runs[0]["method"]]
            parts += [f"seed {runs[0]['seed']}"] * (len(seeds) > 1)
            shown = [row for row in runs if row[column] is not None and not is_marked(row, column)]
            known = [(_time(row["finished_at"]), row[column]) for row in shown]
            if known:
                panel.plot(*zip(*known, strict=True), label=" ".join(parts), **style)
                _say_line(panel, known, " ".join(parts), column.replace("_", " "), "")
    for panel, title, unit in zip(axes, ("quality", "time to train"), ("bits per byte", "minutes"), strict=True):
        dress(panel, title, "", unit)
        dates = AutoDateLocator(minticks=2, maxticks=6)
        panel.xaxis.set_major_locator(dates)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(dates))
    legend(figure, axes)
    return render(figure, kind)


def ran_again(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every cell with more than one run."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(f"{row['model']} {row['method']} {row['seed']}", []).append(row)
    return {name: runs for name, runs in cells.items() if len(runs) > 1}


def against_retrieval(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Each row's bits per byte minus those of its model's best retrieval arm, with the 95 %
    interval.

    Left of the line the row beats retrieval.
    """
    from matplotlib.ticker import MaxNLocator

    shown = [row for row in rows if row["delta_retrieval_low"] is not None][:MAX_BARS]
    if not shown:
        return None
    figure, (axes,) = stacked(1, 1.0 + 0.3 * len(shown))
    places = range(len(shown))[::-1]
    for place, row in zip(places, shown, strict=True):
        low, high = row["delta_retrieval_low"], row["delta_retrieval_high"]
        color = COLORS[2] if high < 0 else COLORS[7] if low > 0 else INK
        axes.plot([low, high], [place] * 2, color=color, linewidth=2, marker="|", markersize=8)
        axes.plot(row["delta_retrieval"], place, marker="o", color=color, markersize=6)
        text = row_says(row, "delta_retrieval", "delta_retrieval_low", "delta_retrieval_high")
        say_points(axes, [row["delta_retrieval"]], [place], [text])
    axes.axvline(0, color=INK, linestyle=":", linewidth=1)
    axes.set_yticks(places, row_names(shown))
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(-0.6, len(shown) - 0.4)
    dress(axes, "against the best retrieval arm: left is better", "difference, bits per byte", "")
    return render(figure, kind)


def _time(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def reasons_bar(reasons: Mapping[str, int], kind: Kind = "svg") -> bytes | None:
    """The number of records dropped for each reason."""
    if not reasons:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = stacked(1, 0.7 + 0.3 * len(reasons))
    names = list(reasons)[::-1]
    bars = axes.barh(names, [reasons[name] for name in names], color=COLORS[0], height=0.6)
    for name, bar in zip(names, bars, strict=True):
        say(bar, f"{name}: {reasons[name]:,} records")
    axes.bar_label(bars, color=INK, padding=4, fontsize=9)
    axes.margins(x=0.15)
    dress(axes, "records dropped, by reason", "records", "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return render(figure, kind)


def provider_shares(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """The shares of each provider's requests with their 95 % intervals."""
    if not rows:
        return None
    names = ("answered", "valid", "refused", "truncated", "duplicate", "accepted")
    figure, (axes,) = stacked(1, 3.2)
    width = 0.8 / len(rows)
    for i, (color, row) in enumerate(zip(colors(), rows, strict=False)):
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
    dress(axes, "what became of the requests (95 % intervals)", "", "% of the requests")
    axes.tick_params(axis="x", labelsize=8)
    legend(figure, [axes])
    return render(figure, kind)


def shares_beside_base(rows: Sequence[Row], kind: Kind = "svg", *, of: str = "answers") -> bytes | None:
    """A panel for each `metric`: every method's `share` with its interval (`low` to `high`).

    An upright bar marks the untouched model's share (`base`) if it is known.
    """
    names = list(dict.fromkeys(row["metric"] for row in rows))[:MAX_PANELS]
    if not names:
        return None
    panels = [[row for row in rows if row["metric"] == name][:MAX_BARS] for name in names]
    figure, axes = stacked(len(panels), 0, [0.75 + 0.26 * len(shown) for shown in panels])
    for panel, name, shown in zip(axes, names, panels, strict=True):
        places = range(len(shown))[::-1]
        for place, row in zip(places, shown, strict=True):
            if row["low"] is not None:
                panel.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=COLORS[0], linewidth=1.6)
            panel.plot(100 * row["share"], place, marker="o", color=COLORS[0], markersize=6, linestyle="")
            say_points(panel, [100 * row["share"]], [place], [_share_says(row, "share", row["base"])])
            if row["base"] is not None:
                panel.plot([100 * row["base"]] * 2, [place - 0.4, place + 0.4], color=COLORS[1], linewidth=2.4)
        panel.set_yticks(places, row_names(shown))
        panel.set_xlim(-4, 104)
        panel.set_ylim(-0.6, len(shown) - 0.4)
        dress(panel, name, f"% of the {of}" if panel is axes[-1] else "", "")
    axes[0].plot([], [], marker="o", color=COLORS[0], linestyle="-", label="share, 95 % interval")
    if any(row["base"] is not None for row in rows):
        axes[0].plot([], [], color=COLORS[1], linewidth=2.4, label="untouched model")
    legend(figure, axes)
    return render(figure, kind)


def win_rates(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """A panel for each `by`: every method's win `rate` with its interval (`low` to `high`), and
    a line at one half."""
    names = list(dict.fromkeys(row["by"] for row in rows))[:MAX_PANELS]
    if not names:
        return None
    panels = [[row for row in rows if row["by"] == name][:MAX_BARS] for name in names]
    figure, axes = stacked(len(panels), 0, [0.85 + 0.26 * len(shown) for shown in panels])
    for color, panel, name, shown in zip(colors(), axes, names, panels, strict=False):
        places = range(len(shown))[::-1]
        panel.axvline(50, color=INK, linestyle=":", linewidth=1.2)
        for place, row in zip(places, shown, strict=True):
            if row["low"] is not None:
                panel.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=color, linewidth=1.6)
            panel.plot(100 * row["rate"], place, marker="o", color=color, markersize=6, linestyle="")
            say_points(panel, [100 * row["rate"]], [place], [_share_says(row, "rate")])
        panel.set_yticks(places, row_names(shown))
        panel.set_xlim(-4, 104)
        panel.set_ylim(-0.6, len(shown) - 0.4)
        dress(panel, name, "% won against the untouched model" if panel is axes[-1] else "", "")
    return render(figure, kind)


def _share_says(row: Row, column: str, base: float | None = None) -> str:
    """`tiny × full`, `58 % (32 to 81)`, `untouched model: 40 %`."""
    interval = "" if row["low"] is None else f" ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
    untouched = "" if base is None else f"\nuntouched model: {100 * base:.0f} %"
    return f"{full_name(row)}\n{100 * row[column]:.0f} %{interval}{untouched}"


def coverage_bars(covered: Sequence[Any], kind: Kind = "svg") -> bytes | None:
    """The share of each axis's values that a provider's valid records cover; one group of bars
    per axis."""
    covered = [one for one in covered if one.axes]
    if not covered:
        return None
    names = list(covered[0].axes)
    figure, (axes,) = stacked(1, 3.2)
    width = 0.8 / len(covered)
    for i, (color, one) in enumerate(zip(colors(), covered, strict=False)):
        places = [number + (i - (len(covered) - 1) / 2) * width for number in range(len(names))]
        axes.bar(places, [100 * one.axes.get(name, 0) for name in names], width * 0.9, color=color, label=one.provider)
    axes.set_xticks(range(len(names)), names, rotation=25)
    axes.set_ylim(0, 105)
    dress(axes, "values of each axis that valid records cover", "", "% of the values asked for")
    legend(figure, [axes])
    return render(figure, kind)


def length_histograms(lengths: Mapping[str, Sequence[tuple[int, int]]], kind: Kind = "svg") -> bytes | None:
    """The lengths of prompts and answers. `lengths`: kind → (characters at the start of a bin,
    examples)."""
    from matplotlib.ticker import MaxNLocator

    if not any(lengths.values()):
        return None
    figure, axes = stacked(len(lengths), 1.7)
    for panel, color, (name, bins) in zip(axes, colors(), lengths.items(), strict=False):
        starts = [start for start, _ in bins]
        width = min((b - a for a, b in itertools.pairwise(starts)), default=BIN_CHARS)
        bars = panel.bar(starts, [count for _, count in bins], width=0.9 * width, align="edge", color=color)
        for bar, (start, count) in zip(bars, bins, strict=True):
            say(bar, f"{start:,} to {start + width - 1:,} characters: {count:,} examples")
        dress(panel, f"length of the {name}", "characters" if panel is axes[-1] else "", "examples")
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    return render(figure, kind)


def left_out_of_panels(rows: Sequence[Row], panel: str) -> str:
    """The sentence of `left_out` for a picture with a panel for each value of the column
    `panel`."""
    panels = Counter(row[panel] for row in rows)
    most = max(panels.values(), default=0)
    return left_out(len(panels), MAX_PANELS, "panels") + left_out(most, MAX_BARS, "cells of a panel")
