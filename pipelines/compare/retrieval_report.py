"""Would retrieval have done as well? Each row against the best retrieval arm of the same model, paired record by record.

The best arm is the one with the fewest bits per byte; being chosen on the same records flatters it a little, so that a row which
beats it beats it in earnest.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from markupsafe import Markup, escape

from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.quality import LEAST_RECORDS, Interval, Qualities
from pipelines.compare.show import row_text
from pipelines.project import Project
from pipelines.statistics import student_t

Row = dict[str, Any]
Scores = Mapping[str, float]  # example_id → chrF of the answer
TITLE = "Would retrieval have done as well?"
COLUMNS = COMPARISON.pick(
    "method", "retrieved", "eval_bits_per_byte", "delta_retrieval", "delta_retrieval_low", "delta_retrieval_high", "chrf",
    "delta_retrieval_chrf", "p50_latency_ms",
)  # fmt: skip
SAYS = (
    "Bits per byte minus those of the best retrieval arm of the same model, on the same records, with 95 % intervals: left of the "
    "line the row beats retrieval. Where the interval crosses the line, these records cannot tell."
)


def arms_of(project: Project) -> set[str]:
    """The methods that look up what stands in the prompt."""
    return {name for name, method in project.experiments.methods.items() if method.retrieval}


def best_arm(rows: Sequence[Row], model: str, arms: Collection[str]) -> Row | None:
    """The model's retrieval arm with the fewest bits per byte, of those that are ok and measured."""
    measured = [
        row for row in rows
        if row["model"] == model and row["method"] in arms and row["status"] == "ok" and row["eval_bits_per_byte"] is not None
    ]  # fmt: skip
    return min(measured, key=lambda row: (row["eval_bits_per_byte"], row["method"]), default=None)


def add_against_retrieval(
    rows: Sequence[Row], qualities: Qualities, arms: Collection[str], scores: Callable[[Row], Scores]
) -> None:
    """Each row's differences to the best retrieval arm of its model, of the same weights and on the same records; in place."""
    for row in rows:
        arm = best_arm(rows, row["model"], arms)
        if arm is None or arm is row or not _are_alike(row, arm):
            continue
        if difference := qualities.difference(row, arm):
            row |= {"retrieval_method": arm["method"], **_columns("delta_retrieval", difference)}
        if answers := mean_difference(scores(row), scores(arm)):
            row |= {"retrieval_method": arm["method"], **_columns("delta_retrieval_chrf", answers)}


def _are_alike(row: Row, arm: Row) -> bool:
    names = ("weights_fingerprint", "eval_set")
    return row["status"] == "ok" and all(row[name] == arm[name] for name in names)


def _columns(name: str, found: Interval) -> Row:
    low, high = (None if end != end else end for end in (found.low, found.high))
    return {name: found.value, f"{name}_low": low, f"{name}_high": high}


def mean_difference(one: Scores, other: Scores) -> Interval | None:
    """Mean of `one` minus `other` over the answers to the same prompts, with the 95 % interval of Student's t; its ends are NaN
    under 5 prompts. None without a common prompt."""
    differences = [one[name] - other[name] for name in sorted(one.keys() & other.keys())]
    if not differences:
        return None
    mean = fmean(differences)
    if len(differences) < LEAST_RECORDS:
        return Interval(mean, float("nan"), float("nan"))
    half = student_t(len(differences) - 1) * stdev(differences) / sqrt(len(differences))
    return Interval(mean, mean - half, mean + half)


def in_words(row: Row) -> str | None:
    """Whether the row beats retrieval, with the interval; None where that was not measured."""
    low, high, delta = (row.get(f"delta_retrieval{end}") for end in ("_low", "_high", ""))
    if low is None or high is None or delta is None:
        return None
    arm, between = row["retrieval_method"], f"{abs(delta):.3f} bits per byte (95 %: {low:+.3f} to {high:+.3f})"
    if low <= 0 <= high:
        return f"not told apart from retrieval ({arm}): {between}"
    return (
        f"beats retrieval ({arm}) by {between}"
        if delta < 0
        else f"retrieval without tuning ({arm}) is better by {between}"
    )


def section(rows: Sequence[Row]) -> Markup | None:
    """The part of the report: a sentence a row, one picture, its numbers; None where no retrieval arm was measured."""
    shown = [row for row in rows if row.get("delta_retrieval") is not None or row.get("retrieved") is not None]
    told = [(row, said) for row in shown if (said := in_words(row)) and row.get("retrieved") is None]
    if not told:
        return None
    several = len({row["model"] for row in shown}) > 1
    lines = "".join(f"<li><b>{escape(_name(row, several))}</b> {escape(said)}</li>\n" for row, said in told)
    svg = plots.against_retrieval([row for row, _ in told]) or b""
    head = "".join(f'<th scope="col" title="{escape(one.meaning)}">{escape(one.heading)}</th>' for one in COLUMNS)
    body = "".join(f"<tr>{_cells(row, several)}</tr>\n" for row in shown)
    return Markup(
        f'<h3 id="retrieval-title">{TITLE}</h3>\n<ul>\n{lines}</ul>\n<figure aria-labelledby="retrieval-title">\n'
        f'<div role="img" aria-labelledby="retrieval-title" aria-describedby="retrieval-says">{svg.decode()}</div>\n'
        f'<figcaption id="retrieval-says">{SAYS}</figcaption>\n</figure>\n'
        f'<div class="scroll" role="region" aria-labelledby="retrieval-title" tabindex="0"><table>\n<caption>{TITLE}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _cells(row: Row, several: bool) -> str:
    numbers = "".join(f'<td class="number">{escape(row_text(row, one))}</td>' for one in COLUMNS[1:])
    return f'<th scope="row">{escape(_name(row, several))}</th>{numbers}'


def _name(row: Row, several: bool) -> str:
    return f"{row['model']} × {row['method']}" if several else row["method"]
