"""What every asset needs: the checked configuration, the names of cells, the device's pool."""

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
from pipelines.settings.experiments import Profile

GRACE_SECONDS = 10
# Training, evaluation and the local LLM server share it, so that one of them runs at a time: two falsify every speed.
DEVICE_POOL = f"device-{machine.device_slug()}"


def cell_pool() -> str:
    """The pool of training and evaluation: the device's, or where this machine's profile starts its cells elsewhere, one as large
    as its launcher's `at_once`."""
    return DEVICE_POOL if launcher_for(own_profile()).holds_device else "cluster"


def own_profile() -> Profile:
    """The profile that this machine runs, as it was when the code location loaded."""
    return grid().profile(configuration.profile_name(grid(), os.environ.get("FEATHERWEIGHT_PROFILE")))


def project_now(profile: str | None = None) -> Project:
    """The data root, the configuration as it is now, and `profile`, else the one that this machine runs."""
    _end_with_the_run()
    experiments = experiments_now()
    name = profile if profile and profile != "auto" else os.environ.get("FEATHERWEIGHT_PROFILE")
    return Project(data_root(), experiments, configuration.profile_name(experiments, name))


@cache
def _end_with_the_run() -> None:
    """When a run is killed, its steps end some seconds later. Dagster's steps are children of a fork server; without this they
    would wait forever for a reader of their events that is gone."""
    if (parent := multiprocessing.parent_process()) is not None:

        def follow() -> None:
            parent.join()
            time.sleep(GRACE_SECONDS)
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


class ProfileConfig(dg.Config):
    """What a step takes that works for a whole profile."""

    profile: str = Field("auto", description="Whose cells: a profile of experiments.yaml; auto: this machine's.")


def cell_of(partition: str) -> tuple[str, str]:
    """The model and the method of a partition."""
    assert isinstance(partition, dg.MultiPartitionKey)
    dimensions = partition.keys_by_dimension
    return dimensions["model"], dimensions["method"]


def keys_of(context: dg.AssetExecutionContext, project: Project, seeds: Sequence[int] = ()) -> list[CellKey]:
    """The partition's cell, once for each of `seeds`, or of the profile's."""
    model, method = cell_of(context.partition_key)
    return [CellKey(model, method, seed) for seed in seeds or project.settings.seeds]


def partition_of(model: str, method: str) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"method": method, "model": model})
