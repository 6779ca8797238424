"""Would retrieval have done as well? Each row against the best retrieval arm of the same model,
paired record by record.

The best arm is the one with the fewest bits per byte. It is chosen on the same records, which
flatters it a little; so a win over it is a real one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from pipelines.compare.outside import is_outside, of_profile
from pipelines.compare.quality import MIN_RECORDS, Interval, Qualities
from pipelines.evaluate.statistics import student_t
from pipelines.project import Project

Row = dict[str, Any]
# example_id → chrF of the answer.
Scores = Mapping[str, float]


def arms_of(project: Project) -> set[str]:
    """The methods that put retrieved records or passages into the prompt."""
    return {name for name, method in project.experiments.methods.items() if method.retrieval}


def best_arm(rows: Sequence[Row], model: str, arms: Collection[str]) -> Row | None:
    """The model's measured retrieval arm with status ok and the fewest bits per byte."""
    measured = [
        row for row in rows
        if row["model"] == model and row["method"] in arms and row["status"] == "ok" and row["eval_bits_per_byte"] is not None
    ]  # fmt: skip
    return min(measured, key=lambda row: (row["eval_bits_per_byte"], row["method"]), default=None)


def add_against_retrieval(
    rows: Sequence[Row], qualities: Qualities, arms: Collection[str], scores: Callable[[Row], Scores]
) -> None:
    """Add each row's differences to the best retrieval arm of its model, with the same weights
    and the same records."""
    for row in rows:
        arm = best_arm(rows if is_outside(row) else of_profile(rows), row["model"], arms)
        if arm is None or arm is row or not _are_alike(row, arm):
            continue
        if difference := qualities.difference(row, arm):
            row |= {"retrieval_method": arm["method"], **_columns("delta_retrieval", difference)}
        if answers := mean_difference(scores(row), scores(arm)):
            row |= {"retrieval_method": arm["method"], **_columns("delta_retrieval_chrf", answers)}


def _are_alike(row: Row, arm: Row) -> bool:
    names = ("weights_fingerprint", "eval_set")
    return row["status"] == "ok" and all(row[name] == arm[name] for name in names)


def _columns(name: str, interval: Interval) -> Row:
    low, high = (None if end != end else end for end in (interval.low, interval.high))
    return {name: interval.value, f"{name}_low": low, f"{name}_high": high}


def mean_difference(one: Scores, other: Scores) -> Interval | None:
    """The mean of `one` minus `other` over the answers to the same prompts, with the 95 % interval
    of Student's t.

    The interval's ends are NaN under 5 prompts. None without a common prompt.
    """
    differences = [one[name] - other[name] for name in sorted(one.keys() & other.keys())]
    if not differences:
        return None
    mean = fmean(differences)
    if len(differences) < MIN_RECORDS:
        return Interval(mean, float("nan"), float("nan"))
    half = student_t(len(differences) - 1) * stdev(differences) / sqrt(len(differences))
    return Interval(mean, mean - half, mean + half)


def in_words(row: Row) -> str | None:
    """Whether the row beats retrieval, with the interval; None if that was not measured."""
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
