"""The nightly run in Dagster: a schedule starts it with the data, a sensor continues it. The
decisions are made in `pipelines/nightly`.

Every run of a night is tagged with its name. Each step is decided from those runs and from the
lake, so a daemon outage, a reboot, or two daemons at once do not change the work.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from assets.comparing import LAKE, last_published, published_profile
from assets.inputs import note_inputs
from assets.instance import NEEDS_HOME, UNFINISHED, size_pool, why_homeless
from assets.jobs import data, publish, training
from assets.nights import report_nights
from assets.partitions import shown_cells
from assets.project import partition_of, project_now
from assets.shown import experiments_now, grid
from assets.tags import CELL, LAKE_VERSION, NIGHT, NIGHTLY, PARENT, SEEN
from pipelines.compare.compare import lake_version
from pipelines.errors import UsageError
from pipelines.lake.paths import data_root
from pipelines.nightly import news
from pipelines.nightly.due import Due
from pipelines.nightly.night import (
    TRIES,
    Done,
    Step,
    end,
    has_ended,
    in_words,
    is_under_way,
    next_step,
    note_done,
    note_round,
    note_runs,
)
from pipelines.nightly.publishing import LONGEST, Changes
from pipelines.project import Project
from pipelines.runs import devices

UNDER_WAY = [dg.DagsterRunStatus.QUEUED, *UNFINISHED]
RUNNING = dg.DefaultSensorStatus.RUNNING
# Each tick reopens Dagster's three databases, which takes about 0.15 s of CPU time: most of the
# cost of an idle UI.
TICK_SECONDS = 60
NOTHING_NEW = dg.SkipReason("nothing new in the lake")


@dg.schedule(
    job=data,
    cron_schedule=grid().nightly.cron,
    execution_timezone=grid().nightly.timezone,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=f"Starts the night with the data; the sensor night_goes_on continues it. {NEEDS_HOME}",
)
def nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Start the night with the data; `night_goes_on` does the rest. Nights do not overlap."""
    if why := why_homeless(context.instance):
        return dg.SkipReason(why)
    night = context.scheduled_execution_time.strftime("%Y-%m-%dT%H%M")
    if (earlier := _under_way(context.instance)) and earlier != night:
        return dg.SkipReason(f"the night of {earlier} is still under way")
    return _data_request(night, 1)


@dg.sensor(
    jobs=[data, training, publish],
    minimum_interval_seconds=TICK_SECONDS,
    default_status=RUNNING,
    description="After a night's data: runs exactly the cells that are stale, missing or failed for a temporary reason, then "
    f"publishes once. {NEEDS_HOME}",
)
def night_goes_on(context: dg.SensorEvaluationContext) -> dg.SkipReason | list[dg.RunRequest]:
    """After the data: run exactly the cells that are stale, missing or failed for a temporary
    reason, then publish once."""
    if why := why_homeless(context.instance):
        return dg.SkipReason(why)
    runs = _newest_night(context.instance)
    if not runs:
        return dg.SkipReason("no night has begun yet")
    night = runs[0].dagster_run.tags[NIGHT]
    project = _project()
    if has_ended(project.data, night):
        return dg.SkipReason(f"the night of {night} has ended")
    if unfinished := [run for run in runs if not run.dagster_run.is_finished]:
        return dg.SkipReason(f"night of {night}: {len(unfinished)} runs under way")
    step = _next_loaded(context, project, night, _done(runs))
    note_runs(project.data, night, [run.dagster_run.run_id for run in runs])
    if step.do == "end":
        record = end(project, night, step.why)
        report_nights(context.instance, project.data)
        if "not ok" in (message := in_words(record)) or "could not" in message:
            _tell(context, project, message)
        return dg.SkipReason(message)
    if step.do == "cells":
        note_round(project.data, night, step.cells)
    if step.do == "publish":
        note_done(project, night, step.why)
    return list(_requests(night, step, project, runs))


@dg.sensor(
    job=publish,
    minimum_interval_seconds=TICK_SECONDS,
    default_status=RUNNING,
    description="Publishes the comparison after a change in the lake, once nothing has changed for two minutes (at most fifteen) "
    f"and no cell uses the device. {NEEDS_HOME}",
)
def lake_has_changed(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Publish the comparison after a change in the lake: a cell ended, with any status, or examples
    changed.

    It waits until nothing has changed for two minutes, or until the first change is fifteen minutes
    old. It also waits until the device is free, since it would disturb measurements. A night
    publishes once, at its end.
    """
    version = lake_version(data_root())
    if context.cursor == version:
        # Return before the lookup in Dagster's databases, the most expensive part of this sensor.
        return NOTHING_NEW
    if why := why_homeless(context.instance):
        return dg.SkipReason(why)
    project = project_now(published_profile(context.instance))
    if not (project.data.clean / "current.json").exists():
        return dg.SkipReason("nothing was cleaned yet")
    if night := _under_way(context.instance):
        return dg.SkipReason(f"the night of {night} publishes at its end")
    published = last_published(context.instance, LAKE)
    if version == published:
        context.update_cursor(version)
        return NOTHING_NEW
    changes = Changes.noted(context.cursor, published, version, now := _now())
    context.update_cursor(changes.text)
    if now < changes.due:
        return dg.SkipReason(
            f"the lake has changed: publication at {changes.due:%H:%M:%S} UTC, unless it changes again"
        )
    if user := devices.holder(devices.watched_locks(project.settings.devices)):
        return dg.SkipReason(f"publication waits for the device: {user} uses it")
    return _lake_request(context.instance, version, project.profile)


def _lake_request(instance: dg.DagsterInstance, version: str, profile: str) -> dg.RunRequest | dg.SkipReason:
    """Request a publication, one at a time.

    If a run published nothing because a cell took the device, the request is repeated. A version
    that failed TRIES times is given up.
    """
    if instance.get_run_records(dg.RunsFilter(job_name=publish.name, statuses=UNDER_WAY), limit=1):
        return dg.SkipReason("a publication is under way")
    runs = instance.get_run_records(dg.RunsFilter(tags={LAKE_VERSION: version}))
    if sum(not run.dagster_run.is_success for run in runs) >= TRIES:
        return dg.SkipReason(f"the publication failed {TRIES} times; the next change starts a new try")
    if runs and abs(_now() - runs[0].update_timestamp.replace(tzinfo=UTC)) < LONGEST:
        return dg.SkipReason("the last try is less than 15 minutes ago")
    return dg.RunRequest(
        run_key=f"{version}/{len(runs)}",
        tags={LAKE_VERSION: version},
        run_config=_publishing(profile, waits_for_device=True),
    )


@dg.sensor(
    minimum_interval_seconds=2 * TICK_SECONDS,
    default_status=RUNNING,
    description=f"Records the inputs of every cell, so that Dagster and the table agree on which cells are stale. {NEEDS_HOME}",
)
def inputs_have_changed(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Record the fingerprints of every cell's inputs, so that the UI and the table agree on stale
    cells.

    Undelivered webhook messages are retried here, where no night waits for them.
    """
    if why := why_homeless(context.instance):
        return dg.SkipReason(why)
    size_pool(context.instance)
    if problem := news.deliver(data_root()):
        context.log.warning(problem)
    under_way = _under_way(context.instance)
    project = _project() if under_way else project_now(published_profile(context.instance))
    try:
        noted = note_inputs(context.instance, project.resolve())
    except UsageError as error:
        # Nothing has been cleaned yet, or the profile selects none of the examples.
        return dg.SkipReason(str(error))
    return dg.SkipReason(f"{noted} new versions recorded" if noted else "no new version")


def _project() -> Project:
    """The project with the night's profile, from the current configuration."""
    return project_now(experiments_now().nightly.profile)


def _next_loaded(context: dg.SensorEvaluationContext, project: Project, night: str, done: Done) -> Step:
    """The night's next step, without new cells that the code location has not loaded yet."""
    step = next_step(project, project.experiments.nightly, night, done)
    shown = shown_cells()
    new = [cell for cell in step.cells if (cell.model, cell.method) not in shown]
    if not new:
        return step
    names = ", ".join(f"{cell.model} × {cell.method}" for cell in new)
    context.log.warning(f"{names}: not run, since it is new in experiments.yaml: reload the code location")
    excluded = [*done.asked, *(cell.name for cell in new)]
    return next_step(project, project.experiments.nightly, night, replace(done, asked=excluded))


def _newest_night(instance: dg.DagsterInstance) -> Sequence[dg.RunRecord]:
    """The runs of the newest night, oldest first.

    A manual re-execution has the tag of its old night and is ignored when the newest is chosen.
    """
    newest = instance.get_run_records(dg.RunsFilter(tags={NIGHTLY: "yes"}, job_name=data.name), limit=50)
    originals = [record for record in newest if PARENT not in record.dagster_run.tags]
    if not originals:
        return []
    tags = {NIGHT: originals[0].dagster_run.tags[NIGHT]}
    return list(reversed(instance.get_run_records(dg.RunsFilter(tags=tags))))


def _under_way(instance: dg.DagsterInstance) -> str | None:
    """The night that is still in progress, if any."""
    runs = _newest_night(instance)
    if not runs:
        return None
    night = runs[0].dagster_run.tags[NIGHT]
    running = any(not run.dagster_run.is_finished for run in runs)
    last = max(run.update_timestamp for run in runs).replace(tzinfo=UTC)
    sign = datetime.now(UTC) if running else last
    return night if is_under_way(_project().data, night, sign) else None


def _done(runs: Sequence[dg.RunRecord]) -> Done:
    dagster_runs = [record.dagster_run for record in runs]
    return Done(
        data=[run.is_success for run in dagster_runs if run.job_name == data.name],
        publish=[run.is_success for run in dagster_runs if run.job_name == publish.name],
        asked=[run.tags[CELL] for run in dagster_runs if CELL in run.tags],
    )


def _requests(night: str, step: Step, project: Project, runs: Sequence[dg.RunRecord]) -> Iterator[dg.RunRequest]:
    """The run requests of a step. `run_key` has the night and its state, so that two daemons
    request a run only once."""
    if step.do == "cells":
        yield from (_cell_request(night, cell, project) for cell in step.cells)
        return
    attempt = 1 + sum(run.dagster_run.job_name == step.do for run in runs)
    yield (_data_request(night, attempt) if step.do == "data" else _publish_request(night, attempt, project.profile))


def _publish_request(night: str, tries: int, profile: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{night}/publish/{tries}",
        job_name=publish.name,
        tags=_tags(night),
        run_config=_publishing(profile),
    )


def _publishing(profile: str, *, waits_for_device: bool = False) -> dict[str, Any]:
    """The run configuration of a publication for that profile."""
    shown = {"profile": profile}
    published = {**shown, "waits_for_device": waits_for_device}
    return {"ops": {"judged_answers": {"config": shown}, "comparison": {"config": published}}}


def _data_request(night: str, tries: int) -> dg.RunRequest:
    return dg.RunRequest(run_key=f"{night}/data/{tries}", job_name=data.name, tags=_tags(night))


def _cell_request(night: str, cell: Due, project: Project) -> dg.RunRequest:
    config = {
        "profile": project.profile,
        "seeds": list(cell.because),
        "rerun_for": list(project.experiments.nightly.rerun_for),
        "retime": cell.retimes,
    }
    seen = json.dumps({str(seed): run for seed, run in cell.seen.items()})
    return dg.RunRequest(
        run_key=f"{night}/{cell.name}",
        job_name=training.name,
        partition_key=partition_of(cell.model, cell.method),
        tags={**_tags(night), CELL: cell.name, SEEN: seen},
        run_config={"ops": {"trained_model": {"config": config}, "evaluation": {"config": config}}},
    )


def _now() -> datetime:
    return datetime.now(UTC)


def _tags(night: str) -> dict[str, str]:
    return {NIGHTLY: "yes", NIGHT: night}


def _tell(context: dg.SensorEvaluationContext, project: Project, text: str) -> None:
    if problem := news.tell(project.data, f"featherweight: {text}"):
        context.log.warning(f"{problem}; the message is kept and sent when the webhook is back")
