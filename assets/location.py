"""Runs of this process that belong to the code location on Dagster's pages.

`dg.execute_job` makes runs without a code location. The list of runs shows them, but Timeline and
the job's own page do not.
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

# Dagster's name for the repository of a module's Definitions.
REPOSITORY = "__repository__"


def execute(
    name: str, instance: dg.DagsterInstance, *, config: Mapping[str, Any], tags: Mapping[str, str]
) -> dg.JobExecutionResult:
    """Execute the job of that name. A failed step raises nothing.

    Training and evaluation steps run in separate processes. The others run in this process, which
    has already imported their modules.
    """
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
    """The origin of the job, equal to that of `dagster -w workspace.yaml`."""
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


# Named functions, since each step's process rebuilds its job by calling one.
_JOBS = {"data": data_job, "training": training_job, "publish": publish_job}
