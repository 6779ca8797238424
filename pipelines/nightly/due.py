"""The due cells: missing, stale, or ended badly for a reason that may be gone. Current cells cost
nothing.

Good rows whose speed was disturbed by other processes come last: they train again only for their
speed.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any

from pipelines.compare.table import disturbed
from pipelines.evaluate.cell import EvaluatedBy, base_method, current_evaluation, evaluated_by, reusable
from pipelines.project import MEMORY_BUDGET, CellPlan, Resolved
from pipelines.retrieval import sources
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey
from pipelines.settings.methods import traits_of
from pipelines.weights import store

# How often in a row a cell may end with this status, without further progress, before it waits for
# a change.
TRIES = {"killed": 3, "lost": 3, "timed_out": 2, "failed": 2}
# Fingerprints that decide a cell's memory. Whether other data or other code needs less is not known
# beforehand.
DECIDES_MEMORY = ("recipe", "machine")


@dataclass(frozen=True)
class Due:
    """A due cell. `because` has the reason for each due seed, and `seen` the newest attempt of each
    ("" if there is none).

    From `seen` a run can tell whether another one was faster. `retimes` marks a good row that
    trains again only for its speed.
    """

    model: str
    method: str
    because: dict[int, str]
    seen: dict[int, str]
    retimes: bool = False

    @property
    def name(self) -> str:
        """The name of the cell in its current state.

        A night requests it only once in that state.
        """
        seeds = ",".join(f"{seed}:{run or 'none'}" for seed, run in self.seen.items())
        return f"{self.model}/{self.method}/{seeds}{'/speed' if self.retimes else ''}"


def due_cells(resolved: Resolved) -> list[Due]:
    """The profile's due cells. Untouched models come first, since all others are compared with
    them.

    Cells that are due only for their speed come last.
    """
    by, profile, base = evaluated_by(resolved), resolved.project.settings, base_method(resolved.project)
    due, retimed = [], []
    for model in profile.models:
        for method in sorted(profile.methods, key=lambda method: method != base):
            keys = resolved.cell(model, method).keys
            if because := {key: why for key in keys if (why := why_due(resolved, key, by))}:
                due.append(_due(resolved, because))
            elif because := retimings(resolved, keys, by):
                retimed.append(_due(resolved, because, retimes=True))
    return due + retimed


def _due(resolved: Resolved, because: dict[CellKey, str], *, retimes: bool = False) -> Due:
    """The due cell of these keys, which differ only in their seeds."""
    newest = {key.seed: cells.latest(resolved.data, key) for key in because}
    seen = {seed: attempt.run_id if attempt else "" for seed, attempt in newest.items()}
    cell = next(iter(because))
    return Due(cell.model, cell.method, {key.seed: why for key, why in because.items()}, seen, retimes)


def retimings(resolved: Resolved, keys: Sequence[CellKey], by: EvaluatedBy) -> dict[CellKey, str]:
    """The seeds of a cell to train again because other processes used the CPUs during training,
    with the reasons.

    Only if the row's speed counts as disturbed, nothing has changed since (so that the results will
    be the same), and no attempt started within `nightly.retime_after_days`, whatever its status.
    """
    days, plan = resolved.experiments.nightly.retime_after_days, resolved.plan(keys[0])
    good = {key: newest for key in keys if (newest := cells.latest(resolved.data, key)) and newest.status == "ok"}
    measured = {key: attempt.result.measured.get("other_cpu_pct") for key, attempt in good.items()}
    shares = {key: share for key, share in measured.items() if isinstance(share, int | float)}
    device = next((attempt.result.device for attempt in good.values()), None)
    if days is None or not shares or not disturbed(fmean(shares.values()), device):
        return {}
    return {
        key: f"speed disturbed: {share:.0f} % of the processors were used by others"
        for key, share in shares.items()
        if disturbed(share, device)
        and _is_as_planned(resolved, plan, good[key], by)
        and _has_rested(resolved, key, days)
    }


def _is_as_planned(resolved: Resolved, plan: CellPlan, attempt: Attempt, by: EvaluatedBy) -> bool:
    """Whether another run would have the same inputs, budget and evaluation."""
    same_budget = attempt.spec.memory_budget_gb == plan.settings.memory_budget_gb
    return same_budget and not resolved.changed(attempt) and current_evaluation(attempt, by.fingerprint) is not None


def _has_rested(resolved: Resolved, key: CellKey, days: float) -> bool:
    """Whether no attempt of the cell is running, and its last one started at least `days` days ago.

    A start in the future comes from a wrong clock and counts by its distance, too.
    """
    last = cells.attempts(resolved.data, key)[-1]
    under_way = last.status in ("queued", "running")
    return not under_way and abs(datetime.now(UTC) - cells.start_time(last)) >= timedelta(days=days)


def why_due(resolved: Resolved, key: CellKey, by: EvaluatedBy) -> str | None:
    """The reason why the cell is due; None if there is nothing to do, or a run would change
    nothing.

    A good row is due only for the changes in `nightly.rerun_for`. Without a good row, any change
    justifies a run.
    """
    attempts, plan = cells.attempts(resolved.data, key), resolved.plan(key)
    if attempts and attempts[-1].status in ("queued", "running"):
        return None
    tries = [attempt for attempt in attempts if attempt.counts]
    if not tries:
        return "missing"
    newest = tries[-1]
    changes = resolved.changed(newest)
    match newest.status:
        case "ok":
            return _good_is_due(resolved, plan, newest, changes, by)
        case "out_of_memory":
            return _memory_changed(plan, newest.spec.memory_budget_gb, changes)
        case "unavailable":
            return _is_available_now(resolved, tries)
        case status:
            return _stale(changes) or _worth_another_try(status, [_state(attempt) for attempt in tries])


def _good_is_due(
    resolved: Resolved, plan: CellPlan, newest: Attempt, changed: Sequence[str], by: EvaluatedBy
) -> str | None:
    rerun_for = resolved.experiments.nightly.rerun_for
    changes = changed if set(changed) & set(rerun_for) else []
    if not changes and not resolved.fits(newest):
        # Only its own weights can measure it.
        return None
    return _stale(changes) or _too_large(resolved, newest) or _evaluation_due(plan, newest, by, rerun_for)


def _stale(changes: Sequence[str]) -> str | None:
    return f"stale: {', '.join(changes)}" if changes else None


def _too_large(resolved: Resolved, attempt: Attempt) -> str | None:
    """The reason for a good row that needed more memory than the budget is now; it does not hold
    for a GPU of that size."""
    if (peak := resolved.over_budget(attempt)) is None:
        return None
    return f"{MEMORY_BUDGET} is {resolved.plan(attempt.key).settings.memory_budget_gb:g} GB now, it used {peak:.2f}"


def _memory_changed(plan: CellPlan, budget: float | None, changes: Sequence[str]) -> str | None:
    """The reason for a row that did not fit.

    Only another recipe, budget or machine justifies another try.
    """
    reasons = [name for name in changes if name in DECIDES_MEMORY]
    if budget != plan.settings.memory_budget_gb:
        reasons.append(MEMORY_BUDGET)
    return f"out_of_memory, but another {', '.join(reasons)} now" if reasons else None


def _is_available_now(resolved: Resolved, tries: Sequence[Attempt]) -> str | None:
    """The reason for an unavailable cell whose obstacle is gone, as far as one can tell without a
    download.

    A source that was reachable but refused twice with the same message is not tried every night.
    """
    key, details = tries[-1].key, [attempt.result.status_detail for attempt in tries[-2:]]
    repeated = len(details) == 2 and details[0] == details[1] and tries[-2].status == "unavailable"
    if store.out_of_reach(resolved.data, resolved.experiments, key.model):
        return None
    if sources.out_of_reach(resolved.data, resolved.experiments, key.method):
        return None
    plan = resolved.plan(key)
    if traits_of(plan.recipe).trains and not plan.selected.train:
        return None
    present = store.is_present(resolved.data, key.model, resolved.experiments.model(key.model))
    return None if repeated and not present else "unavailable before, within reach now"


# Status, fingerprints, and last step.
State = tuple[str, Any, int]


def _state(attempt: Attempt) -> State:
    step = attempt.result.measured.get("last_step") or 0
    return attempt.status, attempt.spec.fingerprints, step


def _worth_another_try(status: str, states: Sequence[State]) -> str | None:
    """The reason for a cell that was killed, lost, timed out or failed; None if it ended like this
    too often without progress."""
    tries = 1
    for earlier, later in zip(reversed(states[:-1]), reversed(states[1:]), strict=True):
        if earlier[:2] != later[:2] or later[2] > earlier[2]:
            break
        tries += 1
    return f"{status} before, tried {tries} of {TRIES[status]} times" if tries < TRIES.get(status, 0) else None


def _evaluation_due(plan: CellPlan, attempt: Attempt, by: EvaluatedBy, rerun_for: Collection[str]) -> str | None:
    if reusable(attempt, by, rerun_for):
        return None
    evaluations = [evaluation for evaluation in attempt.evaluations() if evaluation.fingerprint == by.fingerprint]
    if not evaluations:
        return "evaluation is missing" if not attempt.evaluations() else "stale: evaluation"
    last = evaluations[-1].result
    if last.status in ("queued", "running"):
        return None
    if last.status == "out_of_memory":
        return _memory_changed(plan, last.memory_budget_gb, [])
    return _worth_another_try(last.status, [(evaluation.result.status, None, 0) for evaluation in evaluations])
