"""The code location that Dagster's pages show, and runs of this process that belong to it.

`dg.execute_job` makes runs that belong to no code location: the list of runs has them, but neither Timeline nor a job's own page.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from assets.serving import LOCATION, MODULE
from pipelines.lake.paths import PROJECT

REPOSITORY = "__repository__"  # Dagster's name for what a module's Definitions hold


def execute(
    name: str, instance: dg.DagsterInstance, *, config: Mapping[str, Any], tags: Mapping[str, str]
) -> dg.JobExecutionResult:
    """Execute the job of that name: the steps that train and evaluate in processes of their own, the others in this one, which has
    imported what they need. A step that fails raises nothing."""
    job = dg.reconstructable(_JOBS[name])
    run = instance.create_run_for_job(
        _JOBS[name](),
        run_config=config,
        tags=tags,
        job_code_origin=job.get_python_origin(),
        remote_job_origin=_origin(name),
    )
    return execute_run(job, run, instance, raise_on_error=False)


def _origin(job: str) -> RemoteJobOrigin:
    """Where the job is found, as `dagster -w workspace.yaml` finds it."""
    target = LoadableTargetOrigin(module_name=MODULE, working_directory=str(PROJECT))
    return RemoteJobOrigin(
        RemoteRepositoryOrigin(ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION), REPOSITORY), job
    )


def data_job() -> dg.JobDefinition:
    return _job("data").with_executor_def(dg.in_process_executor)


def training_job() -> dg.JobDefinition:
    return _job("training")


def publish_job() -> dg.JobDefinition:
    return _job("publish").with_executor_def(dg.in_process_executor)


def _job(name: str) -> dg.JobDefinition:
    from assets.definitions import defs

    return defs.resolve_job_def(name)


# functions with names, since each step's process makes its job again by calling one
_JOBS = {"data": data_job, "training": training_job, "publish": publish_job}
