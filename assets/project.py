"""What every asset needs: the checked configuration, the cells as partitions, the device's pool."""

import multiprocessing
import os
import threading
import time
from functools import cache

import dagster as dg

from pipelines import experiments as configuration
from pipelines import machine
from pipelines.cells import CellKey
from pipelines.experiments import Experiments
from pipelines.paths import data_root
from pipelines.train.cell import Stage

GRACE_SECONDS = 10
# Training, evaluation and the local LLM server share it, so that one of them runs at a time: two falsify every speed.
DEVICE_POOL = f"device-{machine.device_slug()}"


@cache
def grid() -> Experiments:
    """The configuration as it was when the code location loaded; partitions come from it."""
    return configuration.load()


CELLS = dg.MultiPartitionsDefinition(
    {
        "method": dg.StaticPartitionsDefinition(list(grid().methods)),
        "model": dg.StaticPartitionsDefinition(list(grid().models)),
    }
)


def stage_now() -> Stage:
    """The data root, the configuration as it is now, and the profile that this machine runs."""
    _end_with_the_run()
    experiments = configuration.load()
    name = configuration.profile_name(experiments, os.environ.get("FEATHERWEIGHT_PROFILE"))
    return Stage(data_root(), experiments, name)


@cache
def _end_with_the_run() -> None:
    """A step whose run was killed ends too, some seconds later: Dagster's steps are children of a fork server, which would
    keep them waiting for a reader of their events that is gone."""
    if (parent := multiprocessing.parent_process()) is not None:

        def follow() -> None:
            parent.join()
            time.sleep(GRACE_SECONDS)
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def keys_of(context: dg.AssetExecutionContext, stage: Stage) -> list[CellKey]:
    """The partition's cell, once for each seed of the profile."""
    partition = context.partition_key
    assert isinstance(partition, dg.MultiPartitionKey)
    dimensions = partition.keys_by_dimension
    seeds = stage.experiments.profile(stage.profile).seeds
    return [CellKey(dimensions["model"], dimensions["method"], seed) for seed in seeds]


def partition_of(model: str, method: str) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({"method": method, "model": model})
