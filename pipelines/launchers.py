"""Which launcher starts the cells of a profile."""

from pipelines.errors import UnavailableError
from pipelines.experiments import Profile
from pipelines.launcher import Launcher, LocalLauncher
from pipelines.torchrun import TorchrunLauncher


def launcher_for(profile: Profile) -> Launcher:
    """The launcher that the profile names. A command on one device is started by torchrun's as by the local one.

    Raises:
        UnavailableError: this installation cannot start cells that way.
    """
    if profile.launcher == "local":
        return LocalLauncher()
    if profile.launcher == "torchrun":
        return TorchrunLauncher()
    raise UnavailableError(f"launcher {profile.launcher} is not there yet: use launcher local")
