"""The choice of a launcher: the module beside this one with the name in the profile."""

from collections.abc import Callable
from importlib import import_module
from typing import get_args

from pipelines.lake.files import announce
from pipelines.runs.launchers.base import Launcher
from pipelines.settings.launchers import LauncherName
from pipelines.settings.profiles import Profile

# The launcher of several processes of one run on one machine.
MULTI_PROCESS = "torchrun"


def launcher_class(name: str) -> type[Launcher]:
    """The launcher of that name; for an unknown name a class that cannot start anything."""
    if name not in get_args(LauncherName):
        return Launcher
    return import_module(f"{__package__}.{name}").LAUNCHER


def launcher_for(profile: Profile, *, say: Callable[[str], None] = announce) -> Launcher:
    """The launcher that the profile names, with its section of that name.

    `say` receives messages about what it waits for.
    """
    return launcher_class(profile.launcher)(getattr(profile, profile.launcher, None), say=say)


def ranks_run_in() -> tuple[str, ...]:
    """The modules that the several processes of a cell run in on one machine."""
    return launcher_class(MULTI_PROCESS)().runs


def launcher_on(devices: int) -> Launcher:
    """The launcher of a command on `devices` devices of one machine."""
    return launcher_class(MULTI_PROCESS if devices > 1 else "local")()
