"""The configuration, as it was when it was loaded and as it is now, and what of it is shown as partitions.

Without Dagster, which takes a hundred megabytes: `make ui` follows the configuration in a process of its own.
"""

import os
import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

from pipelines.lake.paths import DataRoot, experiments_file
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments, Profile

SLUG = r"[a-z0-9][a-z0-9.-]*"  # of models and methods; a folder of another name is none of theirs


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


def shown_profiles(experiments: Experiments) -> list[Profile]:
    """The profiles whose cells are partitions: this machine's and the nights'."""
    own = os.environ.get("FEATHERWEIGHT_PROFILE")
    nights = experiments.nightly.profile
    names = [configuration.profile_name(experiments, name) for name in (own, own if nights == "auto" else nights)]
    return [experiments.profile(name) for name in dict.fromkeys(names)]


def shown_names(experiments: Experiments, data: DataRoot, profiles: Sequence[Profile]) -> tuple[list[str], list[str]]:
    """The models and methods that Dagster shows as partitions: those of the profiles, those that were ever run and those that
    `dagster:` in experiments.yaml adds; in the order of that file, then what it no longer names."""
    trained = [(path.parent.name, path.name) for path in data.cells.glob("*/*") if path.is_dir()]
    models = {*experiments.dagster.models, *(model for profile in profiles for model in profile.models)}
    methods = {*experiments.dagster.methods, *(method for profile in profiles for method in profile.methods)}
    models |= {model for model, _ in trained}
    methods |= {method for _, method in trained}
    return _ordered(models, experiments.models), _ordered(methods, experiments.methods)


def _ordered(names: set[str], configured: Iterable[str]) -> list[str]:
    known = [name for name in configured if name in names]
    return known + sorted(name for name in names.difference(known) if re.fullmatch(SLUG, name))
