"""The parent's half of a cell: whether it is current, and running it."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from pipelines.errors import UnavailableError, UsageError
from pipelines.lake import disk
from pipelines.lake.files import locked
from pipelines.lake.paths import DataRoot
from pipelines.lake.run_ids import new_run_id
from pipelines.project import ANY, TRAINS, CellPlan, Project, Resolved
from pipelines.retrieval import sources
from pipelines.runs import cells, restart, trackers
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.launchers.chosen import launcher_class
from pipelines.runs.result import outlook
from pipelines.runs.run import Run, RunHooks, queue, run_with_retry
from pipelines.runs.spec import RunSpec, spec_in
from pipelines.settings import benchmarks
from pipelines.train.trainer.devices.ranks import require_divisible
from pipelines.weights import store

# Disk that an attempt needs for its curve, log and tokenizer.
OTHER_BYTES = 1_000_000


def train(
    resolved: Resolved,
    key: CellKey,
    *,
    force: bool = False,
    hooks: RunHooks | None = None,
    known_run_id: str | None = None,
    rerun_for: Collection[str] = ANY,
    retime: bool = False,
) -> tuple[Attempt, bool]:
    """Make the cell current; returns its newest attempt and whether that was reused.

    An attempt that fails raises nothing: its status says how it ended. The last attempt is reused
    if it is ok, the fingerprints in `rerun_for` match, and its peak is within the current memory
    budget. `force` rules out reuse. An attempt that was interrupted resumes from its last
    checkpoint, as a new attempt.

    `known_run_id` is the newest attempt at the time of the request ("" for none). An attempt that
    somebody else has made since is returned as it is. `retime` runs an unchanged good cell again
    for its speed alone. Unless the new attempt ends ok, the old one continues to represent the
    cell.

    Raises:
        UsageError: unknown model or method.
        WorkError: the lake cannot be written.
    """
    hooks, data = hooks or RunHooks(), resolved.data
    # Hash the weights first: the plan's fingerprints name them.
    resolved.weights_now(key.model, hooks.say)
    plan = resolved.plan(key)
    with locked(key.folder(data) / "cell.lock", f"train {key}", say=hooks.say):
        # What the newest attempt is worth today.
        attempts = cells.attempts(data, key)
        newest = cells.newest_that_counts(attempts)
        changed = resolved.changed(newest) if newest else []
        current = newest is not None and _is_current(resolved, newest, set(changed) & set(rerun_for), hooks)
        retimes = _retimed_run(newest, changed) if retime else None
        force = force or retimes is not None

        # Somebody else's newer attempt, or a current one, ends the work here.
        if newest and known_run_id is not None and newest.run_id != known_run_id:
            hooks.say(f"{key} has been run since this request: {newest.run_id} is {newest.status}")
            return newest, True
        if newest and current and not force:
            restart.clear(attempts)
            return newest, True

        # Rejoin a run on a cluster that lost its watcher, or start a new attempt.
        if newest and not force and _runs_elsewhere(newest, plan, data):
            run = _run(resolved, newest, hooks)
        else:
            run = _next_attempt(resolved, key, hooks, force=force, retimes=retimes)

        def run_again(after: str) -> Run:
            return _next_attempt(resolved, key, hooks, after=after, retimes=retimes)

        finished = Attempt(key, run_with_retry(run, run_again, resolved.project.site(hooks)).folder)
        _clear_behind(data, attempts, finished)
        return finished, False


def _is_current(resolved: Resolved, newest: Attempt, changed: Collection[str], hooks: RunHooks) -> bool:
    """Whether the attempt can be reused: it is ok, nothing that counts has `changed`, and its peak
    is within budget."""
    if newest.status != "ok" or changed:
        return False
    if peak := resolved.over_budget(newest):
        hooks.say(
            f"{newest.key}: {newest.run_id} used {peak:.2f} GB, more than memory_budget_gb allows now; running it again"
        )
        return False
    return True


def _retimed_run(newest: Attempt | None, changed: Sequence[str]) -> str | None:
    """The run id of the good, unchanged attempt whose speed is measured again; None without one."""
    return newest.run_id if newest and newest.status == "ok" and not changed else None


def _clear_behind(data: DataRoot, attempts: Sequence[Attempt], finished: Attempt) -> None:
    """Remove the checkpoints and models that nothing needs now."""
    if finished.status in restart.FINAL:
        restart.clear([*attempts, finished])
    if finished.status == "ok":
        _drop_superseded_models(data, finished)


def _runs_elsewhere(newest: Attempt, plan: CellPlan, data: DataRoot) -> bool:
    """Whether the cell still runs on a cluster, up to date, although its watching process is
    gone."""
    lost = newest.status == "lost" and newest.spec.fingerprints == dict(plan.fingerprints)
    return lost and newest.spec.is_of(data.root) and launcher_class(newest.spec.launcher).is_under_way(newest.folder)


def _next_attempt(
    resolved: Resolved,
    key: CellKey,
    hooks: RunHooks,
    *,
    force: bool = False,
    after: str | None = None,
    retimes: str | None = None,
) -> Run:
    """A new attempt, which resumes from the last checkpoint of the earlier ones if there is one.

    `after`: why it follows the last attempt at once. `retimes`: the good attempt whose speed it
    measures again.
    """
    # End whatever earlier attempts still have running, and look for a checkpoint.
    attempts, plan = cells.attempts(resolved.data, key), resolved.plan(key)
    for attempt in (one for one in attempts if one.spec.is_of(resolved.data.root)):
        launcher_class(attempt.spec.launcher).end(attempt.folder)
    resume = None if force else restart.resumable(attempts, plan.fingerprints, resolved.data.root)
    if not force and attempts and attempts[-1].status not in restart.FINAL and not resolved.fits(attempts[-1]):
        hooks.say(
            f"{key}: {attempts[-1].run_id} was interrupted on other weights or another tokenizer; starting from step 0"
        )

    # The spec of the new attempt, with the finished trials of an interrupted search.
    _require_disk(attempts, resolved.data)
    folder = key.folder(resolved.data) / new_run_id(key.folder(resolved.data))
    spec = _spec(resolved, key, folder.name, resume, after)
    if not force and (trials := restart.search_to_resume(attempts, plan.fingerprints, resolved.data.root)):
        spec = replace(spec, more={**spec.more, "searched": trials})
    if retimes:
        spec = replace(spec, more={**spec.more, "retimes": retimes})

    # Only the checkpoint that the new attempt resumes from is kept.
    queue(folder, spec)
    restart.clear(attempts, keep=resume["run_id"] if resume else None)
    return _run(resolved, Attempt(key, folder), hooks)


def _require_disk(attempts: Sequence[Attempt], data: DataRoot) -> None:
    """Refuse to replace a good row on too little disk.

    Raises:
        DiskFullError: there is a good row, and less free disk than its checkpoints or model took.
    """
    newest = cells.newest_that_counts(attempts)
    if newest and newest.status == "ok":
        files = [path for path in newest.model_folder.rglob("*") if path.is_file()]
        model_bytes = sum(path.stat().st_size for path in files)
        needed_bytes = disk.ROOM_BYTES + OTHER_BYTES + max(model_bytes, newest.result.bytes_needed or 0)
        disk.require(data.root, needed_bytes, f"a new attempt at {newest.key}, whose last good one stays as it is")


def _run(resolved: Resolved, attempt: Attempt, hooks: RunHooks) -> Run:
    """The run that carries out the attempt."""

    spec, key = attempt.spec, attempt.key

    def check() -> None:
        trackers.require(spec.report_to)
        # Fail now rather than at the evaluation of the trained model.
        benchmarks.require(resolved.project.settings.evaluation.harness_tasks)
        require_divisible(spec.recipe, spec.sharding)
        if not resolved.plan(key).selected.train:
            raise UnavailableError(no_examples(resolved.project, key.method))
        sources.require(resolved.data, resolved.experiments, key.method, say=hooks.say)

    return Run(
        attempt.folder,
        TRAINS,
        check=check,
        fetch=partial(_fetch, resolved, attempt, hooks),
        on_tick=partial(hooks.on_tick, attempt),
        outlook=outlook,
    )


def _fetch(resolved: Resolved, attempt: Attempt, hooks: RunHooks) -> None:
    """Fetch the weights. If they were missing when the attempt was planned, add their hash to its
    spec.

    Raises:
        UsageError: the weights have changed since the plan.
    """
    key, spec = attempt.key, spec_in(attempt.folder)
    store.fetch(resolved.data, resolved.experiments, key.model, say=hooks.say)
    planned, now = spec.fingerprints.get("weights"), resolved.weights_now(key.model, hooks.say)
    if planned == now or now is None:
        return
    if planned:
        raise UsageError(
            f"the weights or the tokenizer of {key.model} changed while {key} waited: run the same command again."
        )
    fingerprints = {**spec.fingerprints, "weights": now, "recipe": resolved.plan(key).fingerprints["recipe"]}
    replace(spec, fingerprints=fingerprints, resume=None).write(attempt.folder)


def no_examples(project: Project, method: str) -> str:
    """The message for a method without training examples: the reason and the remedy."""
    provider = project.selection_of(method).provider
    named = "sources.providers" if provider != project.experiments.local_provider else "sources.local_generator"
    return (
        f"methods.{method}.data names provider {provider}, but profile {project.profile} has no example of it to train on "
        f"(languages: {project.selection.languages}): enable the provider and list it in {named}, run "
        f"`featherweight generate --provider {provider}`, then `featherweight clean`"
    )


def _spec(
    resolved: Resolved, key: CellKey, run_id: str, resume: Mapping[str, Any] | None, after: str | None
) -> RunSpec:
    project, plan, settings = resolved.project, resolved.plan(key), resolved.plan(key).settings
    model = project.experiments.model(key.model)
    return RunSpec(
        run_id=run_id, model=key.model, method=key.method, seed=key.seed, profile=project.profile,
        root=str(project.data.root), examples=resolved.examples, weights=store.lies_in(project.data, key.model, model),
        selection=asdict(project.selection_of(key.method)), recipe=plan.recipe, fingerprints=plan.fingerprints,
        resume=resume, after=after, memory_budget_gb=settings.memory_budget_gb,
        time_limit_minutes=settings.time_limit_minutes, learning_rate_source=settings.learning_rate_source,
        report_to=settings.report_to, launcher=project.settings.launcher, devices=plan.placement.devices,
        sharding=plan.placement.sharding, deepspeed=plan.placement.tuning,
        more={
            "eval_every_steps": settings.eval_every_steps, "curve_records": settings.curve_records,
            "checkpoint_every_steps": settings.checkpoint_every_steps,
            "checkpoint_every_minutes": settings.checkpoint_every_minutes,
            "tokens": {"bos": model.bos, "end": model.end}, "licence": model.licence,
        },
    )  # fmt: skip


def _drop_superseded_models(data: DataRoot, finished: Attempt) -> None:
    """Remove the models of a cell's older attempts; their numbers stay."""
    for attempt in cells.attempts(data, finished.key):
        if attempt.run_id < finished.run_id:
            shutil.rmtree(attempt.model_folder, ignore_errors=True)
