"""The report's part on retrieval: a sentence for each row, the differences as a picture, and the
numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.drawing import MAX_BARS, left_out
from pipelines.compare.figures import Figure
from pipelines.compare.pieces import Part
from pipelines.compare.retrieval_report import in_words
from pipelines.compare.show import full_name

Row = dict[str, Any]
TITLE = "Would retrieval have done as well?"
DIFFERENCE = ("delta_retrieval", "delta_retrieval_low", "delta_retrieval_high")
SAYS = (
    "Bits per byte minus those of the best retrieval arm of the same model, on the same records, with 95 % intervals: left of the "
    "line the row beats retrieval. Where the interval crosses the line, these records cannot tell."
)


def section(rows: Sequence[Row], _tables: Mapping[str, pa.Table] | None = None) -> Markup | None:
    """The part; None if no retrieval arm was measured."""
    shown = [row for row in rows if row.get("delta_retrieval") is not None or row.get("retrieved") is not None]
    compared = [row for row in shown if row.get("retrieved") is None]
    sentences = [(row, sentence) for row in compared if (sentence := in_words(row))]
    if not sentences:
        return None
    says = SAYS + left_out(len([row for row, _ in sentences if row["delta_retrieval_low"] is not None]), MAX_BARS)
    svg = plots.against_retrieval([row for row, _ in sentences])
    numbers = COMPARISON.pick("model", "method", *DIFFERENCE)
    picture = Figure(
        "retrieval", "Against the best retrieval arm", says, Markup((svg or b"").decode()), numbers, compared
    )
    return Part(
        "retrieved",
        TITLE,
        notes=[f"{full_name(row)}: {sentence}." for row, sentence in sentences],
        figures=[picture] if svg else [],
        caption="Each row beside the best retrieval arm of its model",
        columns=COMPARISON.pick(
            "model",
            "method",
            "retrieved",
            "eval_bits_per_byte",
            *DIFFERENCE,
            "chrf",
            "delta_retrieval_chrf",
            "p50_latency_ms",
        ),
        rows=shown,
    ).html()
