"""The report's part on benchmarks: each method's share of correct answers, and its difference to
the untouched model's share."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.configured import BENCHMARKS, DIGITS, shares_of
from pipelines.compare.columns.quality import SHARE, SHARE_CHANGE
from pipelines.compare.figures import Figure
from pipelines.compare.pieces import Part
from pipelines.compare.show import full_name
from pipelines.lake.schema import real, text

Row = dict[str, Any]
NUMBERS = (
    text("benchmark", "Benchmark, as the profile names it."),
    *COMPARISON.pick("model", "method"),
    real("share", "Share of the questions that are answered correctly.", SHARE, DIGITS),
    real("low", "Lower end of the 95 % interval of the share.", SHARE, DIGITS, heading="from"),
    real("high", "Upper end of the 95 % interval of the share.", SHARE, DIGITS, heading="to"),
    real("base", "Share of the untouched model, on the same questions.", SHARE, DIGITS),
    real("change", "Share minus that of the untouched model.", SHARE_CHANGE, DIGITS, heading="Δ base"),
    real("change_low", "Lower end of the 95 % interval of the difference, paired by question.", SHARE_CHANGE, DIGITS,
         heading="Δ from"),
    real("change_high", "Upper end of the 95 % interval of the difference, paired by question.", SHARE_CHANGE, DIGITS,
         heading="Δ to"),
)  # fmt: skip
SHOWN = (
    text("benchmark", "Benchmark, as the profile names it."),
    *COMPARISON.pick("model", "method"),
    text("correct", "Percentage of the questions that are answered correctly, with its 95 % interval."),
    text("change", "Difference to the untouched model in percentage points, paired by question.", heading="Δ base"),
    text("verdict", "What the difference says.", heading="than untouched"),
)
SAYS = (
    "Each dot is the share of the questions that are answered correctly, with its 95 % interval (Wilson). The upright bar is the "
    "untouched model on the same questions. The intervals of two methods may overlap and the methods still differ: the table pairs "
    "them by question."
)


def section(rows: Sequence[Row], _tables: Mapping[str, pa.Table] | None = None) -> Markup | None:
    """The part; None if the profile names no benchmark, or none was run."""
    numbers = long_form(rows)
    if not numbers:
        return None
    says = SAYS + plots.left_out_of_panels(numbers, "benchmark")
    svg = plots.shares_beside_base([{**row, "metric": row["benchmark"]} for row in numbers], of="questions")
    return Part(
        "benchmarks",
        "Benchmarks: did it become worse at something else?",
        notes=_missing(rows),
        figures=[Figure("benchmarks", "Questions answered correctly", says, Markup(svg.decode()), NUMBERS, numbers)]
        if svg
        else [],
        caption="Questions answered correctly, and the difference to the untouched model in percentage points, with 95 % intervals",
        columns=SHOWN,
        rows=[{**row, "correct": _share(row), "verdict": _verdict(row), "change": _change(row)} for row in numbers],
    ).html()


def _missing(rows: Sequence[Row]) -> list[str]:
    """The reasons why evaluated rows lack a benchmark."""
    details = ((row, row["status_detail"] or "") for row in rows)
    return [
        f"{full_name(row)}: {detail}." for row, detail in details if row["status"] == "ok" and "benchmark" in detail
    ]


def long_form(rows: Sequence[Row]) -> list[Row]:
    """One row for each benchmark and each row of the comparison that has its share."""
    return [
        {
            "benchmark": column.name.removeprefix("benchmark_"),
            "model": row["model"],
            "method": row["method"],
            "share": row[column.name],
            **{end: row.get(f"{column.name}_{end}") for end in ("low", "high", "base")},
            **{f"change{end}": row.get(f"{column.name}_vs_base{end}") for end in ("", "_low", "_high")},
        }
        for column in (shares_of(rows[0], BENCHMARKS) if rows else ())
        for row in rows
        if row.get(column.name) is not None
    ]


def _share(row: Row) -> str:
    """`61 % (49 to 72)`."""
    ends = "" if row["low"] is None else f" ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
    return f"{100 * row['share']:.0f} %{ends}"


def _change(row: Row) -> str:
    """`-4.5 (-9.8 to +0.6)`."""
    if row["change"] is None:
        return "–"
    return f"{100 * row['change']:+.1f} ({100 * row['change_low']:+.1f} to {100 * row['change_high']:+.1f})"


def _verdict(row: Row) -> str:
    if row["change"] is None:
        return "–"
    if row["change_high"] < 0:
        return "worse"
    return "better" if row["change_low"] > 0 else "not told apart"
