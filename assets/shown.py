"""The configuration, loaded and current, and the names that Dagster shows as partitions.

This module does not import Dagster, which takes a hundred megabytes, because the process of `make
ui` that watches the configuration uses it.
"""

import os
import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

from pipelines.lake.paths import DataRoot, experiments_file
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments
from pipelines.settings.profiles import Profile

# Names of models and methods. A folder with another name is not a cell.
SLUG = r"[a-z0-9][a-z0-9.-]*"


@cache
def grid() -> Experiments:
    """The configuration at the time when the code location loaded; it determines the partitions."""
    return configuration.load()


def experiments_now() -> Experiments:
    """The current configuration. Sensors call this every few seconds, so an unchanged file is not
    parsed again.

    Raises:
        UsageError: as configuration.load.
    """
    path = experiments_file()
    try:
        return _loaded(path, path.read_bytes())
    except OSError:
        # Loading again raises the proper error.
        return configuration.load(path)


@lru_cache(maxsize=2)
def _loaded(path: Path, content: bytes) -> Experiments:
    loaded = configuration.load(path)
    # The file is being written: the exception keeps the result out of the cache.
    if path.read_bytes() != content:
        raise OSError(f"{path} has changed while it was read")
    return loaded


def shown_profiles(experiments: Experiments) -> list[Profile]:
    """The profiles whose cells are partitions: this machine's and the nights'."""
    own = os.environ.get("FEATHERWEIGHT_PROFILE")
    nights = experiments.nightly.profile
    names = [configuration.profile_name(experiments, name) for name in (own, own if nights == "auto" else nights)]
    return [experiments.profile(name) for name in dict.fromkeys(names)]


def shown_names(experiments: Experiments, data: DataRoot, profiles: Sequence[Profile]) -> tuple[list[str], list[str]]:
    """The models and methods that Dagster shows as partitions.

    They come from the profiles, from all cells that ever ran, and from `dagster:` in
    experiments.yaml. The order is that of experiments.yaml, followed by the names that it no longer
    has.
    """
    trained = [(path.parent.name, path.name) for path in data.cells.glob("*/*") if path.is_dir()]
    models = {*experiments.dagster.models, *(model for profile in profiles for model in profile.models)}
    methods = {*experiments.dagster.methods, *(method for profile in profiles for method in profile.methods)}
    models |= {model for model, _ in trained}
    methods |= {method for _, method in trained}
    return _ordered(models, experiments.models), _ordered(methods, experiments.methods)


def _ordered(names: set[str], configured: Iterable[str]) -> list[str]:
    known = [name for name in configured if name in names]
    return known + sorted(name for name in names.difference(known) if re.fullmatch(SLUG, name))
