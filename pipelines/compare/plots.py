"""The pictures people look at first: loss curves, and memory against quality with speed as size."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
Kind = Literal["png", "svg"]


def loss_curves(curves: Mapping[str, Sequence[Row]], kind: Kind = "svg") -> bytes | None:
    """Train loss (line) and evaluation loss (dots) over examples seen, one colour a cell; None without any point."""
    from matplotlib.figure import Figure

    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, (name, points) in zip(_colors(), curves.items(), strict=False):
        for axes, column, marker in ((left, "train_loss", None), (right, "eval_loss", "o")):
            known = [(p["examples"], p[column]) for p in points if p.get(column) is not None]
            if known:
                axes.plot(
                    *zip(*known, strict=True), color=color, marker=marker, markersize=4, linewidth=1.8, label=name
                )
    for axes, title in ((left, "training loss of each step"), (right, "loss on held-out records")):
        _dress(axes, title, "examples seen", "nats per completion token")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=INK, fontsize=8.5)
    return _render(figure, kind)


def trade_off(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Peak memory (right: more) against bits per byte (down: better), area by tokens per second; None without any row."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["status"] == "ok" and row["peak_memory_gb"] and row["eval_bits_per_byte"]]
    if not shown:
        return None
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    fastest = max(row["tokens_per_second"] or 0 for row in shown) or 1
    for color, row in zip(_colors(), shown, strict=False):
        place = (row["peak_memory_gb"], row["eval_bits_per_byte"])
        share = (row["tokens_per_second"] or 0) / fastest
        axes.scatter(*place, s=60 + 380 * share, color=color, alpha=0.8, edgecolors="none")
        speed = f"{row['tokens_per_second']:.0f} tok/s" if row["tokens_per_second"] else "speed unknown"
        label = (
            f"{row['method']} ({speed})" if len({r["model"] for r in shown}) == 1 else f"{row['model']} {row['method']}"
        )
        axes.annotate(label, place, xytext=(0, 13), textcoords="offset points", ha="center", color=INK, fontsize=8.5)
    for base in sorted({row["base_bits_per_byte"] for row in shown if row["base_bits_per_byte"]}):
        axes.axhline(base, color=INK, linestyle=":", linewidth=1)
        axes.annotate(
            "untouched model",
            (1, base),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=INK,
            fontsize=8,
        )
    axes.margins(x=0.16, y=0.2)
    _dress(axes, "memory × quality × speed (area): lower left is better", "peak memory, GB", "bits per byte")
    return _render(figure, kind)


def rank_sweep(rows: Sequence[Row], kind: Kind = "svg") -> bytes:
    """Loss on held-out records, minutes and peak memory by rank; a rank without a number is marked with its status."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    places = range(len(rows))
    shown = (
        ("eval_loss", "loss", "nats per token"),
        ("minutes", "time", "minutes"),
        ("peak_memory_gb", "memory", "GB at most"),
    )
    for axes, color, (column, title, unit) in zip(figure.subplots(1, 3), COLORS, shown, strict=False):
        known = [(place, row[column]) for place, row in zip(places, rows, strict=True) if row[column] is not None]
        for place, value in known:
            good = rows[place]["status"] == "ok"
            axes.plot(place, value, "o" if good else "x", color=color, markersize=6)
            axes.annotate(
                f"{value:.3g}",
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
        _dress(axes, f"{title} by rank", "rank", unit)
    return _render(figure, kind)


def reasons_bar(reasons: Mapping[str, int], kind: Kind = "svg") -> bytes | None:
    """How many records each reason dropped; None where nothing was."""
    from matplotlib.figure import Figure

    if not reasons:
        return None
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 0.6 + 0.4 * len(reasons)), layout="constrained")
    axes = figure.subplots()
    names = list(reasons)[::-1]
    bars = axes.barh(names, [reasons[name] for name in names], color=COLORS[0], height=0.6)
    axes.bar_label(bars, color=INK, padding=4, fontsize=9)
    _dress(axes, "records dropped, by reason", "records", "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _render(figure, kind)


def provider_shares(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Per provider the shares of its requests with their 95 % intervals; None without any row."""
    from matplotlib.figure import Figure

    if not rows:
        return None
    names = ("answered", "valid", "refused", "truncated", "duplicate", "accepted")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
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
        axes.bar(places, shares, width * 0.9, color=color, label=row["provider"], yerr=limits, ecolor=INK, capsize=3)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 105)
    _dress(axes, "what became of the requests (95 % intervals)", "", "% of the requests")
    axes.legend(frameon=False, labelcolor=INK, fontsize=8.5)
    return _render(figure, kind)


def coverage_bars(covered: Sequence[Any], kind: Kind = "svg") -> bytes | None:
    """Share of each axis's values that a provider's valid records hit, a group of bars per axis; None without any axis."""
    from matplotlib.figure import Figure

    covered = [one for one in covered if one.axes]
    if not covered:
        return None
    names = list(covered[0].axes)
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(covered)
    for i, (color, one) in enumerate(zip(_colors(), covered, strict=False)):
        places = [number + (i - (len(covered) - 1) / 2) * width for number in range(len(names))]
        axes.bar(places, [100 * one.axes.get(name, 0) for name in names], width * 0.9, color=color, label=one.provider)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 105)
    _dress(axes, "values of each axis that valid records cover", "", "% of the values asked for")
    axes.legend(frameon=False, labelcolor=INK, fontsize=8.5, loc="lower right")
    return _render(figure, kind)


def length_histograms(lengths: Mapping[str, Sequence[tuple[int, int]]], kind: Kind = "svg") -> bytes | None:
    """How long prompts and answers are: kind → (characters at the start of a bin, examples); None without any example."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not any(lengths.values()):
        return None
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, color, (name, bins) in zip(figure.subplots(1, len(lengths)), _colors(), lengths.items(), strict=False):
        starts = [start for start, _ in bins]
        width = min((b - a for a, b in itertools.pairwise(starts)), default=1)
        axes.bar(starts, [count for _, count in bins], width=0.9 * width, align="edge", color=color)
        _dress(axes, f"length of the {name}", "characters", "examples")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _render(figure, kind)


def _colors() -> list[str]:
    return [*COLORS] * 20


def _dress(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _render(figure: Any, kind: Kind) -> bytes:
    out = io.BytesIO()
    if kind == "svg":
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        text = out.getvalue().decode()
        return text[text.index("<svg") :].encode()
    figure.savefig(out, format="png", dpi=90, facecolor="white")
    return out.getvalue()
