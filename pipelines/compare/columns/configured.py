"""Columns that exist because of a setting: one share for each metric and benchmark that a profile
names.

They come after all fixed columns. A table is extended for the published profile; a reader of
published rows recognizes the columns by their names.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.evaluation import EVALUATION_ANSWERS
from pipelines.compare.columns.quality import SHARE
from pipelines.lake.schema import Column, Table, flag, group, real
from pipelines.settings.column_names import column_name

# Groups of columns.
METRICS, BENCHMARKS = "metrics of one's own task", "benchmarks"
DIGITS = 3


class Names(Protocol):
    """The settings of an evaluation that add columns."""

    @property
    def metric_names(self) -> Sequence[str]: ...

    @property
    def benchmark_names(self) -> Sequence[str]: ...


def comparison_for(names: Names) -> Table:
    """Table comparison with the columns that these settings add."""
    return COMPARISON.with_columns(*_shares(names.metric_names, names.benchmark_names))


def answers_for(names: Names) -> Table:
    """Table evaluation_answers with the columns that these settings add."""
    return EVALUATION_ANSWERS.with_columns(*map(passes, names.metric_names))


def comparison_of(published: Iterable[str]) -> Table:
    """Table comparison with the columns of a publication, which older or newer code may have made.

    A column that is neither fixed nor added by a setting is left out.
    """
    return COMPARISON.with_columns(*(column for columns in _made_by_settings(published) for column in columns))


def shares_of(published: Iterable[str], group_name: str) -> tuple[Column, ...]:
    """The shares among these columns (of METRICS, or of BENCHMARKS), without their intervals and
    differences."""
    return tuple(columns[0] for columns in _made_by_settings(published) if columns[0].group == group_name)


def _made_by_settings(published: Iterable[str]) -> list[tuple[Column, ...]]:
    """The published columns of each metric and benchmark, its share first."""
    added = [name for name in published if name not in COMPARISON.by_name]
    known: set[str] = set()
    groups = []
    for name in added:
        for kind, make in (("metric", metric_columns), ("benchmark", benchmark_columns)):
            if name.startswith(f"{kind}_") and name not in known:
                columns = make(name.removeprefix(f"{kind}_"))
                groups.append(tuple(one for one in columns if one.name in added and one.name not in known))
                known |= {one.name for one in groups[-1]}
    return groups


def metric_columns(name: str) -> tuple[Column, ...]:
    """A metric's columns in comparison."""
    own = column_name("metric", name)
    return group(
        METRICS, "evaluation",
        _share(own, f"Share of the answers that pass the metric {name}.", heading=name),
        *_interval(own),
        _share(f"{own}_base", f"{own} of the untouched model, with the same weights and on the same prompts.", heading="base"),
    )  # fmt: skip


def benchmark_columns(task: str) -> tuple[Column, ...]:
    """A benchmark's columns in comparison."""
    own = column_name("benchmark", task)
    difference = f"{own}_vs_base"
    return group(
        BENCHMARKS, "evaluation",
        _share(own, f"Share of the questions of the benchmark {task} that are answered correctly.", heading=task),
        *_interval(own),
        _share(f"{own}_base", f"{own} of the untouched model, with the same weights and on the same questions.", heading="base"),
        _share(difference, f"{own} minus the untouched model's; above zero, tuning helped.", heading="Δ base"),
        _end(difference, "low", "Lower", ", paired by question"), _end(difference, "high", "Upper", ", paired by question"),
    )  # fmt: skip


def passes(name: str) -> Column:
    """A metric's column in evaluation_answers."""
    meaning = f"Whether the answer passes the metric {name}; NULL where that could not be determined."
    (column,) = group(METRICS, "evaluation", flag(column_name("metric", name), meaning, heading=name[:32]))
    return column


def _shares(metrics: Sequence[str], benchmarks: Sequence[str]) -> list[Column]:
    return [
        *(column for name in metrics for column in metric_columns(name)),
        *(column for task in benchmarks for column in benchmark_columns(task)),
    ]


def _interval(name: str) -> tuple[Column, Column]:
    return _end(name, "low", "Lower"), _end(name, "high", "Upper")


def _end(name: str, end: str, side: str, suffix: str = "") -> Column:
    meaning = f"{side} end of the 95 % interval of {name}{suffix}."
    return real(f"{name}_{end}", meaning, SHARE, DIGITS, heading="from" if end == "low" else "to")


def _share(name: str, meaning: str, *, heading: str) -> Column:
    return real(name, meaning, SHARE, DIGITS, better="higher", heading=heading[:32])
