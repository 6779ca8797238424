"""Table `history`: each cell from night to night, compared on the evaluation records that both
nights share."""

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
# The newest run is compared with at most this many earlier runs.
MAX_PAST_RUNS = 5
# Runs with equal recipe, data and machine that are needed to estimate the noise of time and memory.
MIN_RUNS = 4
# Three standard deviations of a normal distribution, as a multiple of the median absolute
# deviation.
MADS = 3 * 1.4826
# A smaller increase of time or memory counts as noise, whatever the spread.
MIN_COST_INCREASE = 0.10


def history_rows(attempts: Sequence[Attempt]) -> list[Row]:
    """One row for each attempt that ended ok and was evaluated, by cell and time.

    `shared_records` counts the records that the previous attempt was measured on too (all records
    for a cell's first attempt). `bits_per_byte` and `delta_previous` are computed over them;
    `delta_previous` has a paired 95 % interval, and below zero is better. `changed` names the
    differences from the previous attempt. `worse` says where a cell's newest attempt is worse than
    its past by more than noise.
    """
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
    """The records that all were measured on, with the same size in each."""
    common = set.intersection(*(set(zip(one.examples, one.sizes.tolist(), strict=True)) for one in qualities))
    return sorted(name for name, _ in common)


def _changed(earlier: Attempt, attempt: Attempt) -> list[str]:
    before, now = (one.spec.fingerprints for one in (earlier, attempt))
    different = [name for name in COMPARED if before.get(name) != now.get(name)]
    if bool(before.get("weights")) != bool(now.get("weights")) and earlier.spec.recipe == attempt.spec.recipe:
        # Earlier code did not look at the weights; that alone changes the recipe's fingerprint.
        return [name for name in different if name != "recipe"]
    return different


def _worse_quality(runs: Sequence[tuple[Attempt, Quality]]) -> list[str]:
    """A note if the newest run is worse than the mean of the runs before it: the paired interval
    lies above zero."""
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
    """Notes on time and memory of the newest run that exceed the spread of equal earlier runs;
    disturbed times do not count."""
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
    """The limit that a normal run stays below: the median plus three robust standard deviations,
    and at least 10 %."""
    middle = median(past)
    return middle + max(MADS * median(abs(value - middle) for value in past), MIN_COST_INCREASE * middle)
