"""Table `history`: how each cell did from night to night, compared on the evaluation records that both nights share."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np

from pipelines.compare.columns.comparison import HISTORY
from pipelines.compare.quality import Interval, Quality, paired_difference, quality_of
from pipelines.compare.table import disturbed, micro_batch_tokens
from pipelines.project import COMPARED
from pipelines.runs.cells import Attempt, CellKey

Row = dict[str, Any]
MAX_PAST_RUNS = 5  # earlier runs that the newest is held against
MIN_RUNS = 4  # of the same recipe, data and machine, before their spread says what noise is
MADS = 3 * 1.4826  # three standard deviations of a normal, by the median absolute deviation
MIN_COST_INCREASE = 0.10  # less is noise whatever the spread


def history_rows(attempts: Sequence[Attempt]) -> list[Row]:
    """Every attempt that ended ok and was evaluated, by cell and time. `bits_per_byte` is over the `shared_records`: those that the
    one before it was measured on too (of a cell's first, its own); `delta_previous` is the difference on them, with its paired 95 %
    interval, below zero: better. `changed` names what differs from the one before; `worse` says of a cell's newest in what it is
    worse than its past, beyond the noise."""
    by_cell: dict[CellKey, list[tuple[Attempt, Quality]]] = {}
    for attempt in attempts:
        if attempt.status == "ok" and (quality := _quality(attempt)):
            by_cell.setdefault(attempt.key, []).append((attempt, quality))
    return [row for runs in by_cell.values() for row in _of_cell(runs)]


def _quality(attempt: Attempt) -> Quality | None:
    good = [evaluation for evaluation in attempt.evaluations() if evaluation.ok]
    return quality_of(good[-1:])


def _of_cell(runs: Sequence[tuple[Attempt, Quality]]) -> list[Row]:
    rows = [_row(*runs[0], runs[0][1])]
    for (earlier, before), (attempt, quality) in pairwise(runs):
        shared = _shared([before, quality])
        row = _row(attempt, quality, quality.on(shared))
        row["changed"] = ", ".join(_changed(earlier, attempt)) or None
        if shared and (difference := paired_difference(quality.on(shared), before.on(shared))):
            row |= {"delta_previous": difference.value, "low": difference.low, "high": difference.high}
        rows.append(row)
    rows[-1]["is_newest"] = True
    rows[-1]["worse"] = "; ".join([*_worse_quality(runs), *_higher_costs(runs)]) or None
    return rows


def _row(attempt: Attempt, quality: Quality, shared: Quality) -> Row:
    measured = attempt.result.measured
    seconds = measured.get("train_seconds")
    return HISTORY.empty() | {
        "model": attempt.key.model,
        "method": attempt.key.method,
        "seed": attempt.key.seed,
        "finished_at": attempt.result.finished_at,
        "run_id": attempt.run_id,
        "shared_records": len(shared.examples),
        "bits_per_byte": shared.bits_per_byte if shared.examples else None,
        "minutes": seconds / 60 if seconds is not None else None,
        "peak_memory_gb": measured.get("peak_memory_gb"),
        "other_cpu_pct": measured.get("other_cpu_pct"),
        "speed_disturbed": disturbed(measured.get("other_cpu_pct"), attempt.result.device),
        "is_newest": False,
    }


def _shared(qualities: Sequence[Quality]) -> list[str]:
    """The records that all were measured on, and that are the same size in all."""
    common = set.intersection(*(set(zip(one.examples, one.sizes.tolist(), strict=True)) for one in qualities))
    return sorted(name for name, _ in common)


def _changed(earlier: Attempt, attempt: Attempt) -> list[str]:
    before, now = (one.spec.fingerprints for one in (earlier, attempt))
    different = [name for name in COMPARED if before.get(name) != now.get(name)]
    if bool(before.get("weights")) != bool(now.get("weights")) and earlier.spec.recipe == attempt.spec.recipe:
        return [name for name in different if name != "recipe"]  # the earlier code did not look at the weights
    return different


def _worse_quality(runs: Sequence[tuple[Attempt, Quality]]) -> list[str]:
    """The newest against the mean of the runs before it, where the paired interval lies above zero."""
    *past, (_, newest) = runs
    remembered = [quality for _, quality in past[-MAX_PAST_RUNS:]]
    shared = _shared([newest, *remembered]) if remembered else []
    difference = _from_mean(newest.on(shared), [one.on(shared) for one in remembered]) if shared else None
    if difference is None or not difference.above:
        return []
    return [
        f"{difference.value:.4f} bits per byte above its last {_runs(remembered)} (95 % interval {difference.low:.4f} to "
        f"{difference.high:.4f}, {len(shared)} shared records)"
    ]


def _runs(past: Sequence[Quality]) -> str:
    return f"{len(past)} run{'s' if len(past) > 1 else ''}"


def _from_mean(newest: Quality, past: Sequence[Quality]) -> Interval | None:
    mean = np.mean([one.nats.mean(axis=0) for one in past], axis=0)
    return paired_difference(newest, Quality(newest.examples, mean[None], newest.sizes))


def _higher_costs(runs: Sequence[tuple[Attempt, Quality]]) -> list[str]:
    """Time and memory of the newest beyond what equal runs before it spread over; disturbed times do not count."""
    newest = runs[-1][0]
    tokens = micro_batch_tokens(newest.result, newest.spec)
    equal_runs = [
        earlier
        for earlier, _ in runs[:-1]
        if not _changed_but_code(earlier, newest) and micro_batch_tokens(earlier.result, earlier.spec) == tokens
    ]
    notes = []
    for name, unit, scale in (("train_seconds", "minutes", 60), ("peak_memory_gb", "GB", 1)):
        past = [value for one in equal_runs if (value := _undisturbed(one, name))]
        value = _undisturbed(newest, name)
        if value and len(past) >= MIN_RUNS and value > usual_limit(past):
            notes.append(f"{value / scale:.2f} {unit}, {fmean(past) / scale:.2f} in its {len(past)} equal runs before")
    return notes


def _undisturbed(attempt: Attempt, name: str) -> float | None:
    measured = attempt.result.measured
    if name == "train_seconds" and disturbed(measured.get("other_cpu_pct"), attempt.result.device):
        return None
    return measured.get(name)


def _changed_but_code(earlier: Attempt, attempt: Attempt) -> bool:
    return any(name != "code" for name in _changed(earlier, attempt))


def usual_limit(past: Sequence[float]) -> float:
    """What a further run stays below unless something is wrong: the median and three robust standard deviations, at least 10 %."""
    middle = median(past)
    return middle + max(MADS * median(abs(value - middle) for value in past), MIN_COST_INCREASE * middle)
