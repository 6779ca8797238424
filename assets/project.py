"""What every asset needs: the checked configuration, the names of cells, the device's pool."""

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import dagster as dg
from pydantic import Field

from pipelines.hardware import machine
from pipelines.lake.paths import DataRoot, data_root, experiments_file
from pipelines.project import Project
from pipelines.runs.cells import CellKey
from pipelines.runs.launchers.chosen import launcher_for
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments, Profile

GRACE_SECONDS = 10
SLUG = r"[a-z0-9][a-z0-9.-]*"  # of models and methods; a folder of another name is none of theirs
# Training, evaluation and the local LLM server share it, so that one of them runs at a time: two falsify every speed.
DEVICE_POOL = f"device-{machine.device_slug()}"


@cache
def grid() -> Experiments:
    """The configuration as it was when the code location loaded; partitions come from it."""
    return configuration.load()


def experiments_now() -> Experiments:
    """The configuration as it is now. Sensors ask for it every some seconds: it is read anew only where the file has changed.

    Raises:
        UsageError: what configuration.load raises.
    """
    path = experiments_file()
    try:
        return _loaded(path, path.read_bytes())
    except OSError:
        return configuration.load(path)  # which has the words for it


@lru_cache(maxsize=2)
def _loaded(path: Path, content: bytes) -> Experiments:
    loaded = configuration.load(path)
    if path.read_bytes() != content:  # somebody is writing it: nothing is remembered
        raise OSError(f"{path} has changed while it was read")
    return loaded


def cell_pool() -> str:
    """The pool of training and evaluation: the device's, or where this machine's profile starts its cells elsewhere, one as large
    as its launcher's `at_once`."""
    return DEVICE_POOL if launcher_for(own_profile()).holds_device else "cluster"


def own_profile() -> Profile:
    """The profile that this machine runs, as it was when the code location loaded."""
    return grid().profile(configuration.profile_name(grid(), os.environ.get("FEATHERWEIGHT_PROFILE")))


def shown_profiles(experiments: Experiments) -> list[Profile]:
    """The profiles whose cells are partitions: this machine's and the nights'."""
    own = os.environ.get("FEATHERWEIGHT_PROFILE")
    nights = experiments.nightly.profile
    names = [configuration.profile_name(experiments, name) for name in (own, own if nights == "auto" else nights)]
    return [experiments.profile(name) for name in dict.fromkeys(names)]


def shown_names(experiments: Experiments, data: DataRoot, profiles: Sequence[Profile]) -> tuple[list[str], list[str]]:
    """The models and methods that Dagster shows as partitions: those of the profiles, those that were ever run and those that
    `dagster:` in experiments.yaml adds; in the order of that file, then what it no longer names."""
    ever = [(path.parent.name, path.name) for path in data.cells.glob("*/*") if path.is_dir()]
    models = {*experiments.dagster.models, *(model for profile in profiles for model in profile.models)}
    methods = {*experiments.dagster.methods, *(method for profile in profiles for method in profile.methods)}
    models |= {model for model, _ in ever}
    methods |= {method for _, method in ever}
    return _ordered(models, experiments.models), _ordered(methods, experiments.methods)


def _ordered(names: set[str], configured: Iterable[str]) -> list[str]:
    known = [name for name in configured if name in names]
    return known + sorted(name for name in names.difference(known) if re.fullmatch(SLUG, name))


def project_now(profile: str | None = None) -> Project:
    """The data root, the configuration as it is now, and `profile`, else the one that this machine runs."""
    _end_with_the_run()
    experiments = experiments_now()
    wanted = profile if profile and profile != "auto" else os.environ.get("FEATHERWEIGHT_PROFILE")
    return Project(data_root(), experiments, configuration.profile_name(experiments, wanted))


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


class OfProfile(dg.Config):
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
