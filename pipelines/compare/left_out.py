"""The records that a cell left out, in words, and whether they are too many for a pick."""

from collections.abc import Mapping
from typing import Any

from pipelines.train.left_out import MUCH, reasons

Row = Mapping[str, Any]
TOO_MUCH = f"more than {MUCH:.0%} of its records left out"


def leaves_out_too_much(row: Row) -> bool:
    """Whether more than `MUCH` of the training records or of the evaluation records are left
    out."""
    return max(_train_share(row), _eval_share(row)) > MUCH


def left_out_in_words(row: Row) -> str:
    """How many records were left out, of how many; empty if none were."""
    return "; ".join(filter(None, (_train_in_words(row), _eval_in_words(row))))


def _train_share(row: Row) -> float:
    if row["train_records"]:
        return (row["train_records_left_out"] or 0) / row["train_records"]
    # Older code measured only these two shares.
    return (row["truncated_share"] or 0.0) + (row["unshown_share"] or 0.0)


def _eval_share(row: Row) -> float:
    left = row["eval_records_left_out"] or 0
    return left / (left + row["eval_records"]) if left and row["eval_records"] else 0.0


def _train_in_words(row: Row) -> str:
    if not _train_share(row):
        return ""
    if not row["train_records"]:
        return f"{_train_share(row):.0%} of the training records were left out"
    records, left = round(row["train_records"]), round(row["train_records_left_out"])
    unshown = round((row["unshown_share"] or 0.0) * records)
    return f"{left} of {records} training records were left out ({reasons(left - unshown, unshown, row['max_length'])})"


def _eval_in_words(row: Row) -> str:
    left = round(row["eval_records_left_out"] or 0)
    if not left:
        return ""
    records = left + round(row["eval_records"] or 0)
    return f"{left} of {records} evaluation records were left out (not every model of the profile reads them)"
