"""The report's figures: each has a picture, a caption, and its numbers as a table for readers
who cannot see it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipelines.clean import summary
from pipelines.clean.clean import CleaningResult
from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON, HISTORY
from pipelines.compare.columns.examples import CLEANING_SUMMARY
from pipelines.compare.columns.providers import PROVIDER_COMPARISON
from pipelines.compare.columns.training import TRAINING_CURVE
from pipelines.compare.disturbed import MARK, has_valid_speed
from pipelines.compare.drawing import MAX_BARS, left_out
from pipelines.compare.memory_bars import memory_bars, with_memory
from pipelines.compare.outside import is_outside
from pipelines.compare.rates import Name, at_edge, method_name, still_open, trained_at
from pipelines.compare.show import Columns, full_name
from pipelines.compare.trade_off import trade_off
from pipelines.lake.schema import count, text
from pipelines.project import Project
from pipelines.runs import cells
from pipelines.runs.cells import CellKey
from pipelines.settings.experiments import Experiments
from pipelines.settings.method_settings import Method

Row = dict[str, Any]
# Points of a curve in its table of numbers.
CURVE_POINTS = 12
QUIET_ALONE = " Times measured beside other programs are left out."
# Runs in the numbers of the history.
MAX_NIGHTS = 500

TRADE_OFF = COMPARISON.pick(
    "model", "method", "peak_memory_gb", "eval_bits_per_byte", "delta_base", "delta_base_low", "delta_base_high", "rates",
    "train_seconds", "is_pareto",
)  # fmt: skip
MEMORY = COMPARISON.pick(
    "model", "method", "status", "peak_memory_gb", "estimated_memory_gb", "memory_budget_gb"
)  # fmt: skip
RANKS = (
    text("family", "Cells that differ in the adapter's rank alone.", heading="cells"),
    *COMPARISON.pick("rank", "eval_bits_per_byte", "rates", "train_seconds", "peak_memory_gb"),
)
CURVE = (
    text("cell", "The cell whose newest attempt is shown."),
    *TRAINING_CURVE.pick("examples", "train_loss", "eval_loss"),
)
NIGHTS = HISTORY.pick(
    "model", "method", "seed", "finished_at", "shared_records", "bits_per_byte", "delta_previous", "low", "high", "minutes",
    "changed",
)  # fmt: skip
PROVIDERS = PROVIDER_COMPARISON.pick(
    "provider", "model", "requested", "valid_share", "refused_share", "duplicate_share", "accepted_share", "accepted_share_low",
    "accepted_share_high", "usd_per_accepted", "p50_latency_ms", "win_rate",
)  # fmt: skip
REASONS = CLEANING_SUMMARY.pick("reason", "records")
LENGTHS = (
    text("of", "Which text of the examples is counted: prompt or output.", heading="length of"),
    count("start", "Length at which the bin begins.", "characters", heading="characters from"),
    count("examples", "Number of examples whose text is that long."),
)


@dataclass(frozen=True)
class Figure:
    """A figure of the report. `svg` is trusted HTML: our own drawing, with every text escaped."""

    key: str
    title: str
    says: str
    svg: Markup
    columns: Columns = ()
    rows: Sequence[Row] = ()


def _figure(
    key: str, title: str, says: str, svg: bytes | None, numbers: tuple[Columns, Sequence[Row]]
) -> Iterator[Figure]:
    if svg is not None:
        yield Figure(key, title, says, Markup(svg.decode()), *numbers)


@dataclass(frozen=True)
class Group:
    """The figures of one model, or of all models if `model` is None."""

    model: str | None
    figures: Sequence[Figure]


def of_cells(project: Project, rows: Sequence[Row]) -> list[Group]:
    """The figures of the comparison's rows. With several models, a group for all of them comes
    first, then one for each."""
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    all_groups = [Group(model, list(_of_model(project, model, of_model))) for model, of_model in by_model.items()]
    # A teacher's row has no figures.
    groups = [group for group in all_groups if group.figures]
    overview = list(_trade_off(rows, "trade-off")) if len(groups) > 1 else []
    return [Group(None, overview), *groups] if overview else groups


def _of_model(project: Project, model: str, rows: Sequence[Row]) -> Iterator[Figure]:
    yield from _trade_off(rows, f"trade-off-{model}")
    drawn = with_memory(rows)
    says = (
        "Bars are measured, diamonds predicted beforehand; the red line is the budget. A hatched bar ran out of memory: it needs "
        "at least the memory it had, the prediction or the budget, whichever is largest."
    )
    says += left_out(len(drawn), MAX_BARS)
    title = "Memory: measured, predicted, allowed"
    yield from _figure(f"memory-{model}", title, says, memory_bars(rows), (MEMORY, drawn))
    families = rank_families(project.experiments, rows)
    says = "Cells that differ only in the adapter's rank (and alpha with it): the gain and the cost of a higher rank."
    numbers = [{**row, "family": family, "rank": rank} for family, points in families.items() for rank, row in points]
    says += of_rates(numbers, method_name)
    says += "" if all(map(has_valid_speed, numbers)) else QUIET_ALONE
    yield from _figure(f"ranks-{model}", "Rank", says, plots.rank_sweep(families), (RANKS, numbers))
    yield from _curves(project, model, rows)


def _trade_off(rows: Sequence[Row], key: str) -> Iterator[Figure]:
    shown = [row for row in rows if row["status"] == "ok" and row["trainable_params"] != 0]
    several = len({row["model"] for row in rows}) > 1
    says = "Each trained cell by peak memory and bits per byte; the bar is the 95 % interval of its difference to the untouched"
    says += " model, on the same records." if several else " model (the dotted line), on the same records."
    says += " A larger dot took longer to train. A hollow one is beaten: another is as good in all three and clearly better in one."
    if several:
        says += " Colour and shape stand for the model; only cells that nothing beats are named."
    says += " Names without room are left out; the pointer on a mark, and the numbers, show them all."
    says += of_rates(shown, full_name if several else method_name)
    if not several and any(map(is_outside, shown)):
        says += " A triangle is a cell outside the profile."
    if not all(map(has_valid_speed, shown)):
        says += f" {MARK} marks a disturbed speed: the size of its dot has no meaning."
    yield from _figure(key, "Memory, quality, time", says, trade_off(rows), (TRADE_OFF, shown))


def _curves(project: Project, model: str, rows: Sequence[Row]) -> Iterator[Figure]:
    curves = {name: points for name, points in curves_of(project, rows).items() if points}
    says = (
        "The newest attempt of each cell. Above, each optimizer step's own loss; below, the loss on held-out records, of "
        "more than curve_records on a fixed sample."
    )
    longest = max(map(len, curves.values()), default=0)
    if longest > plots.MAX_POINTS:
        says += f" Of more than {plots.MAX_POINTS} steps, each point above is the mean of several."
    says += left_out(len(curves), plots.MAX_SERIES)
    if longest > CURVE_POINTS:
        says += f" The numbers are those of about {CURVE_POINTS} of up to {longest:,} points; all are in the table training_curve."
    says += of_rates([row for row in rows if row["status"] == "ok"], method_name)
    numbers = [{**point, "cell": cell} for cell, points in curves.items() for point in _thinned(points)]
    yield from _figure(
        f"curves-{model}", f"Loss while training {model}", says, plots.loss_curves(curves), (CURVE, numbers)
    )


def of_rates(rows: Sequence[Row], name: Name) -> str:
    """A caption's sentence on the learning rates of the compared rows; empty if each rate is
    tuned."""
    edge = at_edge(rows) if len(rows) > 1 else []
    notes = filter(None, (trained_at(rows, name), still_open(edge, name) if edge else ""))
    return "".join(f" Learning rates: {one}." for one in ["; ".join(notes)] if one)


def curves_of(project: Project, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The newest attempt's curve of every row, by `method` (or `model method` if there are
    several models)."""
    several = len({row["model"] for row in rows}) > 1
    seed = project.settings.seeds[0]
    curves = {}
    for row in rows:
        attempt = cells.latest(project.data, CellKey(row["model"], row["method"], seed))
        curves[f"{row['model']} {row['method']}" if several else row["method"]] = attempt.curve() if attempt else []
    return curves


def _thinned(points: Sequence[Row]) -> list[Row]:
    """Few enough points for a table, including the last; missing values are None."""
    step = -(-len(points) // CURVE_POINTS) or 1
    chosen = [point for number, point in enumerate(points, start=1) if number % step == 0 or number == len(points)]
    return [{name: point.get(name) for name in ("examples", "train_loss", "eval_loss")} for point in chosen]


def rank_families(experiments: Experiments, rows: Sequence[Row]) -> dict[str, list[tuple[int, Row]]]:
    """The ok rows of adapters that differ only in rank and alpha: family → (rank, row), sorted
    by rank."""
    several = len({row["model"] for row in rows}) > 1
    by_settings: dict[tuple[str, str], list[tuple[int, Row]]] = {}
    for row in rows:
        method = experiments.methods.get(row["method"])
        if method and (rank := method.traits.rank) and row["status"] == "ok":
            by_settings.setdefault((row["model"], _all_but_rank(method)), []).append((rank, row))
    families = {}
    for (model, _), points in by_settings.items():
        if len(points) > 1:
            points.sort(key=lambda point: point[0])
            first, last = points[0][1]["method"], points[-1][1]["method"]
            families[f"{model + ' ' if several else ''}{first} … {last}"] = points
    return families


def _all_but_rank(method: Method) -> str:
    return method.model_dump_json(exclude={"rank": True, "alpha": True, "peft": {"r", "lora_alpha"}})


def of_history(rows: Sequence[Row]) -> Iterator[Figure]:
    says = (
        "Every run that ended ok, in bits per byte on the records it shares with the run before it, and in minutes. A change whose "
        "interval lies above zero is worse."
    )
    says += "" if all(map(has_valid_speed, rows)) else QUIET_ALONE
    again = plots.ran_again(rows)
    says += left_out(len(again), plots.MAX_SERIES)
    repeated = [row for row in rows for runs in [again.get(f"{row['model']} {row['method']} {row['seed']}")] if runs]
    if len(repeated) > MAX_NIGHTS:
        says += f" The numbers are those of the newest {MAX_NIGHTS} of {len(repeated):,} runs; all are in the table history."
        repeated = sorted(repeated, key=lambda row: str(row["finished_at"]))[-MAX_NIGHTS:]
    yield from _figure("history", "Night by night", says, plots.night_by_night(rows), (NIGHTS, repeated))


def of_providers(rows: Sequence[Row]) -> Iterator[Figure]:
    says = "Shares of the same requests put to each provider, with 95 % intervals (Wilson)."
    yield from _figure("providers", "Who wrote the records", says, plots.provider_shares(rows), (PROVIDERS, rows))


def of_cleaning(cleaned: CleaningResult) -> Iterator[Figure]:
    counts = [{"reason": reason, "records": count} for reason, count in cleaned.reasons.items()]
    says = "Each record is dropped for the first reason that holds."
    yield from _figure("reasons", "What was dropped", says, plots.reasons_bar(cleaned.reasons), (REASONS, counts))
    lengths: Mapping[str, Sequence[tuple[int, int]]] = summary.length_counts(cleaned)
    bins = [
        {"of": kind, "start": start, "examples": count}
        for kind, histogram in lengths.items()
        for start, count in histogram
    ]
    says = "How many characters the accepted examples have, in steps of 50."
    yield from _figure("lengths", "How long the examples are", says, plots.length_histograms(lengths), (LENGTHS, bins))
