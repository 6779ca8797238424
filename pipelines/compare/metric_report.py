"""The report's part on metrics of the user's own task: each metric's share by method, next to
the untouched model's."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.configured import DIGITS, METRICS, shares_of
from pipelines.compare.columns.quality import SHARE
from pipelines.compare.figures import Figure
from pipelines.compare.pieces import Part
from pipelines.compare.show import full_name
from pipelines.lake.schema import Column, real, text

Row = dict[str, Any]
NUMBERS = (
    text("metric", "Metric of your own task."),
    *COMPARISON.pick("model", "method"),
    real("share", "Share of the answers that pass the metric.", SHARE, DIGITS),
    real("low", "Lower end of the 95 % interval of the share.", SHARE, DIGITS, heading="from"),
    real("high", "Upper end of the 95 % interval of the share.", SHARE, DIGITS, heading="to"),
    real("base", "Share of the untouched model, on the same prompts.", SHARE, DIGITS),
)
SAYS = (
    "Each dot is the share of the answers that pass, with its 95 % interval (Wilson). The upright bar is the untouched model's "
    "share on the same prompts, which has an interval of its own."
)
# Below this number of answers the report says that they are few.
FEW_ANSWERS = 30


def section(rows: Sequence[Row], _tables: Mapping[str, pa.Table] | None = None) -> Markup | None:
    """The part; None if the profile names no metric, or there are no answers."""
    numbers = long_form(rows)
    because = [f"{full_name(row)}: {row['metrics_because']}." for row in rows if row["metrics_because"]]
    if not numbers and not because:
        return None
    says = SAYS + plots.left_out_of_panels(numbers, "metric")
    svg = plots.shares_beside_base(numbers)
    answered = [row for row in rows if any(row.get(name) is not None for name in _names(row))]
    return Part(
        "metrics",
        "Metrics of your own task",
        notes=[*_few(answered), *because],
        figures=[Figure("metrics", "Answers that pass", says, Markup(svg.decode()), NUMBERS, numbers)] if svg else [],
        caption="Percentage of the answers that pass each metric, with its 95 % interval",
        columns=(
            *COMPARISON.pick("model", "method"),
            *_columns(rows[0]),
            *COMPARISON.pick("answers", "answers_ended_pct"),
        ),
        rows=[{**row, **{name: _in_words(row, name) for name in _names(row)}} for row in answered],
    ).html()


def _names(row: Row) -> list[str]:
    """The columns of the metrics' shares."""
    return [column.name for column in shares_of(row, METRICS)]


def _columns(row: Row) -> list[Column]:
    """One column of text for each metric."""
    return [text(one.name, one.meaning, heading=one.heading) for one in shares_of(row, METRICS)]


def _in_words(row: Row, name: str) -> str:
    """`58 % (32 to 81)`."""
    share, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return "–" if share is None else f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def _few(answered: Sequence[Row]) -> list[str]:
    fewest = min((row["answers"] for row in answered if row["answers"]), default=FEW_ANSWERS)
    if fewest >= FEW_ANSWERS:
        return []
    return [
        f"Only {fewest:.0f} answers: with more of them (evaluation.answers in experiments.yaml) the intervals become narrower."
    ]


def long_form(rows: Sequence[Row]) -> list[Row]:
    """One row for each metric and each row of the comparison that has its share."""
    return [
        {
            "metric": name.removeprefix("metric_"),
            "model": row["model"],
            "method": row["method"],
            "share": row[name],
            **{end: row[f"{name}_{end}"] for end in ("low", "high", "base")},
        }
        for name in (_names(rows[0]) if rows else ())
        for row in rows
        if row.get(name) is not None
    ]
