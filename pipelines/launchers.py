"""Which launcher starts the cells of a profile."""

from collections.abc import Callable

from pipelines.cluster.launcher import RayLauncher
from pipelines.errors import UnavailableError
from pipelines.experiments import Profile
from pipelines.files import announce
from pipelines.launcher import Launcher, LocalLauncher
from pipelines.torchrun import TorchrunLauncher


def launcher_for(profile: Profile, *, say: Callable[[str], None] = announce) -> Launcher:
    """The launcher that the profile names. A command on one device is started by torchrun's as by the local one; `say` is
    told what a launcher waits for.

    Raises:
        UnavailableError: this installation cannot start cells that way.
    """
    if profile.launcher == "ray":
        assert profile.ray is not None
        return RayLauncher(profile.ray, say=say)
    if profile.launcher == "local":
        return LocalLauncher()
    if profile.launcher == "torchrun":
        return TorchrunLauncher()
    raise UnavailableError(f"launcher {profile.launcher} is not there yet: use launcher local")


def launcher_on(devices: int) -> Launcher:
    """The launcher of commands within one machine, on so many of its devices.

    Raises:
        UnavailableError: this installation cannot start cells that way.
    """
    if devices == 1:
        return LocalLauncher()
    raise UnavailableError(f"{devices} devices: launcher torchrun is not there yet")
