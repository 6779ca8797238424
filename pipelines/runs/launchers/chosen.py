"""Which launcher starts the cells of a profile: the module beside this one that bears the name the profile gives."""

from collections.abc import Callable
from importlib import import_module
from typing import get_args

from pipelines.lake.files import announce
from pipelines.runs.launchers.base import Launcher
from pipelines.settings.launchers import LauncherName
from pipelines.settings.profiles import Profile

MULTI_PROCESS = "torchrun"  # who starts one run's several processes within one machine


def launcher_class(name: str) -> type[Launcher]:
    """The launcher of that name; one that starts nothing for a name that an earlier version knew."""
    if name not in get_args(LauncherName):
        return Launcher
    return import_module(f"{__package__}.{name}").LAUNCHER


def launcher_for(profile: Profile, *, say: Callable[[str], None] = announce) -> Launcher:
    """The launcher that the profile names, by the profile's section of that name; `say` is told what it waits for."""
    return launcher_class(profile.launcher)(getattr(profile, profile.launcher, None), say=say)


def ranks_run_in() -> tuple[str, ...]:
    """The modules in which a cell's several processes run on one machine."""
    return launcher_class(MULTI_PROCESS)().runs


def launcher_on(devices: int) -> Launcher:
    """The launcher of commands within one machine, on so many of its devices."""
    return launcher_class(MULTI_PROCESS if devices > 1 else "local")()
