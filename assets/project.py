"""Basics of every asset: the validated configuration, the names of cells, the device's pool."""

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from functools import cache

import dagster as dg
from pydantic import Field

from assets.shown import experiments_now, grid
from pipelines.hardware import machine
from pipelines.lake.paths import data_root
from pipelines.project import Project
from pipelines.runs.cells import CellKey
from pipelines.runs.launchers.chosen import launcher_for
from pipelines.settings import experiments as configuration
from pipelines.settings.profiles import Profile

GRACE_SECONDS = 10
# Training, evaluation and the local LLM server share this pool, so that only one of them runs at a
# time: two at once would distort every speed measurement.
DEVICE_POOL = f"device-{machine.device_slug()}"


def cell_pool() -> str:
    """The pool of training and evaluation.

    It is the device's pool, or a pool of the launcher's `at_once` slots if this machine's profile
    starts its cells elsewhere.
    """
    return DEVICE_POOL if launcher_for(own_profile()).holds_device else "cluster"


def own_profile() -> Profile:
    """This machine's profile at the time when the code location loaded."""
    return grid().profile(configuration.profile_name(grid(), os.environ.get("FEATHERWEIGHT_PROFILE")))


def project_now(profile: str | None = None) -> Project:
    """The project from the current configuration with `profile`, else this machine's profile."""
    _end_with_the_run()
    experiments = experiments_now()
    name = profile if profile and profile != "auto" else os.environ.get("FEATHERWEIGHT_PROFILE")
    return Project(data_root(), experiments, configuration.profile_name(experiments, name))


@cache
def _end_with_the_run() -> None:
    """Make the steps of a killed run end some seconds later.

    Dagster's steps are children of a fork server. Without this they would wait forever for the
    reader of their events.
    """
    if (parent := multiprocessing.parent_process()) is not None:

        def follow() -> None:
            parent.join()
            time.sleep(GRACE_SECONDS)
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


class ProfileConfig(dg.Config):
    """Options of a step that works on a whole profile."""

    profile: str = Field(
        "auto", description="The profile whose cells count, from experiments.yaml; auto: this machine's."
    )


def cell_of(partition: str) -> tuple[str, str]:
    """The model and the method of a partition."""
    assert isinstance(partition, dg.MultiPartitionKey)
    dimensions = partition.keys_by_dimension
    return dimensions["model"], dimensions["method"]


def keys_of(context: dg.AssetExecutionContext, project: Project, seeds: Sequence[int] = ()) -> list[CellKey]:
    """The keys of the partition's cell: one for each of `seeds`, or for each seed of the
    profile."""
    model, method = cell_of(context.partition_key)
    return [CellKey(model, method, seed) for seed in seeds or project.settings.seeds]


def partition_of(model: str, method: str) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"method": method, "model": model})
