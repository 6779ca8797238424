"""Which launcher starts the cells of a profile."""

from collections.abc import Callable

from pipelines.experiments import Profile
from pipelines.files import announce
from pipelines.runs.launchers.local import Launcher, LocalLauncher
from pipelines.runs.launchers.ray.launcher import RayLauncher
from pipelines.runs.launchers.torchrun import TorchrunLauncher


def launcher_for(profile: Profile, *, say: Callable[[str], None] = announce) -> Launcher:
    """The launcher that the profile names; `say` is told what it waits for."""
    if profile.launcher == "ray":
        assert profile.ray is not None  # the profile has been checked
        return RayLauncher(profile.ray, say=say)
    return TorchrunLauncher() if profile.launcher == "torchrun" else LocalLauncher()


def launcher_on(devices: int) -> Launcher:
    """The launcher of commands within one machine, on so many of its devices."""
    return TorchrunLauncher() if devices > 1 else LocalLauncher()
