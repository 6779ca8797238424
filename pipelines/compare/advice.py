"""One true sentence per row: what the numbers say, or what to do about the outcome."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def advise(row: Row, rows: Sequence[Row]) -> str:
    match row["status"]:
        case "ok":
            return _of_ok(row)
        case "out_of_memory":
            return _of_out_of_memory(row, rows)
        case "missing":
            return f"never run: `featherweight train {row['model']} {row['method']}`, or materialize it in the UI"
        case "queued" | "running":
            return "under way"
        case "diverged":
            return "the loss blew up: lower learning_rate for this method"
        case "timed_out":
            return "raise time_limit_minutes, or train on fewer examples"
        case "killed" | "lost":
            return "ended from outside: the next run trains it again"
        case "unavailable":
            return row["status_detail"] or "this machine cannot run it"
        case _:
            return "see status_detail and the attempt's log.txt"


def _of_ok(row: Row) -> str:
    bits, base = row["eval_bits_per_byte"], row["base_bits_per_byte"]
    if bits is None:
        return "trained, not evaluated: run `featherweight evaluate`"
    if row["trainable_params"] == 0:
        return "the untouched model: what the others must beat"
    if base is None:
        return "the untouched model was not measured on the same records"
    if bits >= base:
        return f"tuning did not help: {bits:.3f} bits per byte, the untouched model has {base:.3f}"
    return f"{100 * (1 - bits / base):.1f} % fewer bits per byte than the untouched model"


def _of_out_of_memory(row: Row, rows: Sequence[Row]) -> str:
    """Names a method of the same model that did fit under the same budget and device, where one is known."""
    budget = f" of {row['memory_budget_gb']:g} GB" if row["memory_budget_gb"] else ""
    needed = (
        f"it had {row['peak_memory_gb']:.2f} GB{budget} when it failed" if row["peak_memory_gb"] else "it did not fit"
    )
    fitting = [
        other for other in rows
        if other["model"] == row["model"] and other["status"] == "ok" and other["peak_memory_gb"]
        and (other["device"], other["memory_budget_gb"]) == (row["device"], row["memory_budget_gb"])
    ]  # fmt: skip
    if fitting:
        smallest = min(fitting, key=lambda other: other["peak_memory_gb"])
        return f"{needed}: {smallest['method']} needs {smallest['peak_memory_gb']:.2f} GB, or lower micro_batch_tokens"
    return f"{needed}: lower micro_batch_tokens, or choose a lora or qlora method"
