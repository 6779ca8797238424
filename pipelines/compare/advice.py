"""One sentence of advice per row: the meaning of its numbers, or what to do about its outcome."""

import re
from collections.abc import Sequence
from typing import Any

from pipelines.compare.disturbed import has_valid_speed, in_words
from pipelines.compare.left_out import left_out_in_words
from pipelines.compare.rates import at_edge, method_name, not_its_best, still_open, trained_at
from pipelines.compare.retrieval_report import in_words as in_words_of_retrieval
from pipelines.runs.fitting import ONE_ROW

Row = dict[str, Any]
# A predicted peak counts as fitting only if this multiple of it is below the budget.
SAFETY_FACTOR = 1.1


def advise(row: Row, rows: Sequence[Row]) -> str:
    match row["status"]:
        case "ok":
            return "; ".join(filter(None, (left_out_in_words(row), _of_ok(row, rows), _of_speed(row))))
        case "out_of_memory":
            return _of_out_of_memory(row, rows)
        case "missing":
            return f"never run: `featherweight train {row['model']} {row['method']}`, or materialize it in the UI"
        case "queued" | "running":
            return "under way"
        case "diverged":
            return "the loss blew up: lower learning_rate for this method"
        case "timed_out":
            return f"raise time_limit_minutes, or train on fewer examples; {next_run(row)}"
        case "killed" | "lost":
            return f"it did not come to its end: {next_run(row)}"
        case "unavailable":
            return row["status_detail"] or "this machine cannot run it"
        case _:
            return "see status_detail and the attempt's log.txt"


def next_run(row: Row) -> str:
    """What the next run would do: continue from a checkpoint, as the row's detail says, or start
    again if the cell has changed."""
    if row["stale_because"]:
        return f"the next run starts it again, since it has changed: {row['stale_because']}"
    match = re.search(r"the next run (goes on after step \d+|starts it again)", row["status_detail"] or "")
    return match.group() if match else "the next run goes on from its last checkpoint, if it wrote one"


def _of_ok(row: Row, rows: Sequence[Row]) -> str:
    bits, base = row["eval_bits_per_byte"], row["base_bits_per_byte"]
    if bits is None and row["model_note"] and row["model_note"].startswith("random weights"):
        return "random weights: memory and speed are measured, quality is not"
    if bits is None:
        return "trained, not evaluated: run `featherweight evaluate`"
    if row["trainable_params"] == 0:
        context = "" if base in (None, bits) else " with examples in its prompt"
        context = (
            context
            if (retrieved := row.get("retrieved")) is None
            else f" with what was retrieved in its prompt ({retrieved:.1f} on average)"
        )
        return f"the untouched model{context}: what the others must beat"
    if base is None and (other := _base_of_other_weights(row, rows)):
        old = row if row["is_stale"] else other
        return (
            "the untouched model was measured with other weights, so nothing is compared: "
            f"`featherweight train {row['model']} {old['method']}` anew"
        )
    if base is None:
        return "the untouched model was not measured on the same records"
    retrieval = in_words_of_retrieval(row)
    return _against_base(row, bits, base) + _against_full(row, rows) + (f"; {retrieval}" if retrieval else "")


def _base_of_other_weights(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the untouched model, if that was measured with other weights; else None."""
    alone = [one for one in rows if one.get("retrieved") is None]
    untouched = [one for one in alone if one["model"] == row["model"] and one["trainable_params"] == 0]
    others = [one for one in untouched if one["weights_fingerprint"] != row["weights_fingerprint"]]
    return others[0] if untouched and len(others) == len(untouched) else None


def _against_base(row: Row, bits: float, base: float) -> str:
    low, high = row["delta_base_low"], row["delta_base_high"]
    if low is not None and low <= 0 <= high:
        both = f"{bits:.3f} and {base:.3f} bits per byte on {row['eval_records']:.0f} records"
        return f"not told apart from the untouched model ({both})"
    if bits >= base:
        return f"tuning did not help{not_its_best(row)}: {bits:.3f} bits per byte, the untouched model has {base:.3f}"
    return f"{100 * (1 - bits / base):.1f} % fewer bits per byte than the untouched model"


def _against_full(row: Row, rows: Sequence[Row]) -> str:
    """The gains and losses against full fine-tuning; empty if they are not known."""
    if row["delta_full_low"] is None:
        return ""
    costs = [f"{100 * row['memory_vs_full']:.0f} % of its memory"] if row["memory_vs_full"] else []
    costs += [f"{row['speedup_vs_full']:.2f} times its speed"] if row["speedup_vs_full"] else []
    both = [*(one for one in rows if one["model"] == row["model"] and one["method"] == "full"), row]
    rates = trained_at(both, method_name)
    difference = f"{_apart_from_full(row, both)}{f' ({rates})' if rates else ''}"
    edge = at_edge(both)
    unsettled = f"; which of the two is better is not settled: {still_open(edge, method_name)}" if edge else ""
    return f"; {difference}{', with ' if costs else ''}{' and '.join(costs)}{unsettled}"


def _apart_from_full(row: Row, both: Sequence[Row]) -> str:
    low, high, delta = row["delta_full_low"], row["delta_full_high"], row["delta_full"]
    if low <= 0 <= high:
        return "not told apart from full"
    return f"{abs(delta):.3f} {'above' if delta > 0 else 'below'} full{' so far' if at_edge(both) else ''}"


def _of_speed(row: Row) -> str:
    if has_valid_speed(row):
        return ""
    return f"speed disturbed: {in_words([row], lambda _: 'it')}, so train it on a quiet machine"


def _of_out_of_memory(row: Row, rows: Sequence[Row]) -> str:
    """The memory that the cell needs, and the ways to make it fit: another method or smaller
    micro-batches."""
    room, predicted = row["memory_budget_gb"], row["estimated_memory_gb"]
    budget = f" of {room:g} GB" if room else ""
    if predicted and room and predicted > room:
        needed = f"{row['method']} needs about {predicted:.1f} GB of {room:g}"
    elif row["peak_memory_gb"]:
        needed = f"it had {row['peak_memory_gb']:.2f} GB{budget} when it failed"
    else:
        needed = "it did not fit"
    ways = [way for way in (_a_method_that_fits(row, rows), _smaller_batches(row)) if way]
    return f"{needed}: {', or '.join(ways) or _when_nothing_fits(row, rows)}"


def _when_nothing_fits(row: Row, rows: Sequence[Row]) -> str:
    """Advice if no method of the model is known to fit; it names the smallest one if all have
    predictions."""
    others = [other for other in rows if other["model"] == row["model"] and other["trainable_params"] != 0]
    known = [(other["estimated_memory_gb"], other["method"]) for other in others if other["estimated_memory_gb"]]
    if not known or len(known) < len(others) or min(known)[0] < (row["memory_budget_gb"] or 0):
        return "choose a lora or qlora method, or a smaller model"
    least, method = min(known)
    return f"no method here fits, the least is {method} with about {least:.1f} GB: raise memory_budget_gb, or take a smaller model"


def _a_method_that_fits(row: Row, rows: Sequence[Row]) -> str | None:
    """The method of the same model with the smallest peak, measured under the same budget and
    device, else predicted."""
    room = row["memory_budget_gb"]
    others = [other for other in rows if other["model"] == row["model"] and other is not row]
    batches = {other["method"]: _with_batches(other, row) for other in others}
    if measured := [(other["peak_memory_gb"], other["method"]) for other in others if _is_measured_beside(other, row)]:
        peak, method = min(measured)
        return f"{method} needs {peak:.2f} GB{batches[method]}"
    predicted = [
        (other["estimated_memory_gb"], other["method"]) for other in others if _is_predicted_within(other, room)
    ]
    return f"{min(predicted)[1]} would need about {min(predicted)[0]:.1f} GB" if predicted else None


def _is_measured_beside(other: Row, row: Row) -> bool:
    """Whether the other row has a peak of training measured under the row's budget and on its
    device."""
    if other["status"] != "ok" or not other["peak_memory_gb"] or other["trainable_params"] == 0:
        return False
    return (other["device"], other["memory_budget_gb"]) == (row["device"], row["memory_budget_gb"])


def _is_predicted_within(row: Row, room: float | None) -> bool:
    """Whether a row without an outcome is predicted to stay well below `room` GB."""
    if not row["estimated_memory_gb"] or not room or row["status"] in ("out_of_memory", "ok"):
        return False
    return row["estimated_memory_gb"] * SAFETY_FACTOR < room


def _with_batches(other: Row, row: Row) -> str:
    """The micro-batch size of the other cell, if it differs from this one's."""
    tokens = other["micro_batch_tokens"]
    return f" with micro_batch_tokens {tokens}" if tokens and tokens != row["micro_batch_tokens"] else ""


def _smaller_batches(row: Row) -> str | None:
    """Advice to use smaller micro-batches, if the prediction says that they help or there is no
    prediction.

    If a single row does not fit, no smaller micro-batch exists; the advice is shorter examples.
    """
    if ONE_ROW in (row["status_detail"] or ""):
        return "lower max_length, which leaves out the longest examples"
    half, room = row["estimated_half_batch_gb"], row["memory_budget_gb"]
    if half is None or room is None:
        return "lower micro_batch_tokens"
    return f"halve micro_batch_tokens (about {half:.1f} GB)" if half * SAFETY_FACTOR < room else None
