"""The pictures people look at, drawn by matplotlib: SVG with real text for the report, whose colours are the page's own (light,
dark, print), and PNG for Dagster. Each is narrow enough to be read on a phone; each returns None where there is nothing to draw."""

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pipelines.compare.disturbed import MARK, is_marked, speed_stands

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
MOST_LABELS = 14
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
            if known:
                marked = style if column == "eval_loss" else style | {"marker": ""}
                panel.plot(*zip(*known, strict=True), label=name, **marked)
    for panel, title in zip(axes, ("training loss of each step", "loss on held-out records (a sample)"), strict=True):
        _dress(panel, title, "examples seen", "nats per token")
    _legend(figure, axes)
    return _render(figure, kind)


def trade_off(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Peak memory (right: more) against bits per byte (down: better) with the interval of its difference to the untouched model;
    the area grows with the time to train, or is small and its name marked `*` where that time is disturbed; rows that another one
    beats are hollow."""
    shown = [row for row in rows if row["status"] == "ok" and row["peak_memory_gb"] and row["eval_bits_per_byte"]]
    if not shown:
        return None
    figure, (axes,) = _stacked(1, 3.9)
    longest = max((row["train_seconds"] or 0 for row in shown if speed_stands(row)), default=0) or 1
    several = len({row["model"] for row in shown}) > 1
    for number, (color, row) in enumerate(zip(_colors(), shown, strict=False)):
        memory, bits, base = row["peak_memory_gb"], row["eval_bits_per_byte"], row["base_bits_per_byte"]
        if base and row["delta_base_low"] is not None:
            ends = [base + row["delta_base_low"], base + row["delta_base_high"]]
            axes.plot([memory] * 2, ends, color=color, linewidth=1.4, marker="_", markersize=7)
        area = 40 + (320 * (row["train_seconds"] or 0) / longest if speed_stands(row) else 0)
        face = "none" if row["is_pareto"] is False else color
        axes.scatter(memory, bits, s=area, facecolors=face, edgecolors=color, linewidths=1.6, zorder=3)
        if len(shown) <= MOST_LABELS or (row["is_pareto"] and number < MOST_SERIES):
            label = f"{row['model']} {row['method']}" if several else row["method"]
            label += f" {MARK}" if is_marked(row, "train_seconds") else ""
            place = {"xytext": (9, 7 if number % 2 else -14), "textcoords": "offset points", "ha": "left"}
            axes.annotate(label, (memory, bits), color=INK, fontsize=9, **place)
    for base in sorted({row["base_bits_per_byte"] for row in shown if row["base_bits_per_byte"]}):
        axes.axhline(base, color=INK, linestyle=":", linewidth=1)
        place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate("untouched model", (1, base), color=INK, fontsize=8.5, **place)
    axes.margins(x=0.25, y=0.15)
    _dress(axes, "lower, further left and smaller is better", "peak memory, GB", "bits per byte")
    return _render(figure, kind)


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
    """Per row the measured peak (bar; hatched where it ran out of memory), the predicted one (diamond) and the budget (line)."""
    shown = [
        row for row in rows if row["trainable_params"] != 0 and (row["peak_memory_gb"] or row["estimated_memory_gb"])
    ]
    shown = shown[:MOST_BARS]
    if not shown:
        return None
    figure, (axes,) = _stacked(1, 1.0 + 0.3 * len(shown))
    several = len({row["model"] for row in shown}) > 1
    names = [f"{row['model']} {row['method']}" if several else row["method"] for row in shown]
    places = range(len(shown))[::-1]
    for place, row in zip(places, shown, strict=True):
        look: dict[str, Any] = {"color": COLORS[0]}
        if row["status"] == "out_of_memory":
            look = {"facecolor": "none", "edgecolor": COLORS[7], "hatch": "////"}
        axes.barh(place, row["peak_memory_gb"] or 0, height=0.6, **look)
        if row["estimated_memory_gb"]:
            axes.plot(row["estimated_memory_gb"], place, marker="D", color=COLORS[1], markersize=6, linestyle="")
        if row["memory_budget_gb"]:
            axes.plot([row["memory_budget_gb"]] * 2, [place - 0.42, place + 0.42], color=COLORS[7], linewidth=2)
    axes.set_yticks(places, names)
    axes.plot([], [], color=COLORS[0], linewidth=7, label="measured")
    if any(row["estimated_memory_gb"] for row in shown):
        axes.plot([], [], marker="D", color=COLORS[1], linestyle="", label="predicted")
    if any(row["memory_budget_gb"] for row in shown):
        axes.plot([], [], color=COLORS[7], linewidth=2, label="budget")
    _dress(axes, "peak memory of training", "GB", "")
    _legend(figure, [axes])
    return _render(figure, kind)


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
        panel.set_xticks(layers, [f"{number:g}" for number in layers])
        panel.margins(y=0.15)
        _dress(panel, title, "layers" if panel is axes[-1] else "", unit)
    _legend(figure, axes)
    return _render(figure, kind)


def _quiet_minutes(row: Row) -> float | None:
    return row["train_seconds"] / 60 if row["train_seconds"] and speed_stands(row) else None


def night_by_night(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Bits per byte (on the records shared with the night before) and minutes of every run, a line a cell that ran again. Minutes
    that are disturbed are left out."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(f"{row['model']} {row['method']} {row['seed']}", []).append(row)
    cells = dict(itertools.islice(((name, runs) for name, runs in cells.items() if len(runs) > 1), MOST_SERIES))
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
    for panel, title, unit in zip(axes, ("quality", "time to train"), ("bits per byte", "minutes"), strict=True):
        _dress(panel, title, "", unit)
        panel.tick_params(axis="x", rotation=30)
    _legend(figure, axes)
    return _render(figure, kind)


def against_retrieval(rows: Sequence[Row], kind: Kind = "svg") -> bytes | None:
    """Each row's bits per byte minus those of the best retrieval arm of its model, with the 95 % interval; left of the line
    it beats retrieval."""
    from matplotlib.ticker import MaxNLocator

    shown = [row for row in rows if row["delta_retrieval_low"] is not None][:MOST_BARS]
    if not shown:
        return None
    figure, (axes,) = _stacked(1, 1.0 + 0.3 * len(shown))
    several = len({row["model"] for row in shown}) > 1
    places = range(len(shown))[::-1]
    for place, row in zip(places, shown, strict=True):
        low, high = row["delta_retrieval_low"], row["delta_retrieval_high"]
        color = COLORS[2] if high < 0 else COLORS[7] if low > 0 else INK
        axes.plot([low, high], [place] * 2, color=color, linewidth=2, marker="|", markersize=8)
        axes.plot(row["delta_retrieval"], place, marker="o", color=color, markersize=6)
    axes.axvline(0, color=INK, linestyle=":", linewidth=1)
    axes.set_yticks(places, [f"{row['model']} {row['method']}" if several else row["method"] for row in shown])
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
        axes.bar(places, shares, width * 0.9, color=color, label=row["provider"], yerr=limits, ecolor=INK, capsize=2)
    axes.set_xticks(range(len(names)), names, rotation=25)
    axes.set_ylim(0, 105)
    _dress(axes, "what became of the requests (95 % intervals)", "", "% of the requests")
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
    several = len({row["model"] for row in rows}) > 1
    for panel, name, shown in zip(axes, names, panels, strict=True):
        places = range(len(shown))[::-1]
        for place, row in zip(places, shown, strict=True):
            if row["low"] is not None:
                panel.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=COLORS[0], linewidth=1.6)
            panel.plot(100 * row["share"], place, marker="o", color=COLORS[0], markersize=6, linestyle="")
            if row["base"] is not None:
                panel.plot([100 * row["base"]] * 2, [place - 0.4, place + 0.4], color=COLORS[1], linewidth=2.4)
        panel.set_yticks(places, [f"{row['model']} {row['method']}" if several else row["method"] for row in shown])
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
    names = list(dict.fromkeys(row["by"] for row in rows))
    if not names:
        return None
    panels = [[row for row in rows if row["by"] == name][:MOST_BARS] for name in names]
    figure, axes = _stacked(len(panels), 0, [0.85 + 0.26 * len(shown) for shown in panels])
    several = len({row["model"] for row in rows}) > 1
    for color, panel, name, shown in zip(_colors(), axes, names, panels, strict=False):
        places = range(len(shown))[::-1]
        panel.axvline(50, color=INK, linestyle=":", linewidth=1.2)
        for place, row in zip(places, shown, strict=True):
            if row["low"] is not None:
                panel.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=color, linewidth=1.6)
            panel.plot(100 * row["rate"], place, marker="o", color=color, markersize=6, linestyle="")
        panel.set_yticks(places, [f"{row['model']} {row['method']}" if several else row["method"] for row in shown])
        panel.set_xlim(-4, 104)
        panel.set_ylim(-0.6, len(shown) - 0.4)
        _dress(panel, name, "% won against the untouched model" if panel is axes[-1] else "", "")
    return _render(figure, kind)


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
        width = min((b - a for a, b in itertools.pairwise(starts)), default=1)
        panel.bar(starts, [count for _, count in bins], width=0.9 * width, align="edge", color=color)
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
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*" height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r' id="[A-Za-z0-9.]*_\d+"| ?font-family: [^;"]*;', "", svg)
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}-", svg)
    for color, name in THEME.items():
        svg = svg.replace(color, f"var({name})")
    return svg
