"""The base class of launchers. A launcher starts a run's command in its folder, and answers what
only it can know.

Each launcher is one module beside this file, with the name that profiles use for it. Callers do not
know which launcher they use. A new launcher is a new module here with its `LAUNCHER` class; its
name and its settings are in pipelines/settings/launchers.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.hardware import machine
from pipelines.lake.files import announce
from pipelines.runs.command import CellCommand, Placement, RunningCommand


class Launcher:
    """A launcher with the profile's settings for it. `say` receives messages about what it waits
    for.

    The answers in this class are those of a launcher on this machine.
    """

    # Whether its commands run on this machine's device, which one run holds at a time, and whose
    # time is counted here.
    holds_device: bool = True
    # Whether it requests memory for each cell, for which a prediction should exist.
    asks_for_memory: bool = False

    def __init__(self, settings: Any = None, *, say: Callable[[str], None] = announce) -> None:
        self.settings = settings
        self.say = say

    def start(self, command: CellCommand) -> RunningCommand:
        """Raises UnavailableError if the cluster does not answer or refuses the command."""
        raise NotImplementedError

    @property
    def runs(self) -> tuple[str, ...]:
        """The modules, beside its own, that a cell on several devices runs in."""
        return ()

    @property
    def at_once(self) -> int:
        """The number of cells to keep under way."""
        return 1

    def require(self, placement: Placement) -> None:
        """Raises UnavailableError if this machine lacks a required package."""

    def machine(self, placement: Placement) -> str:
        """The expected machine of cells, for the fingerprint.

        The row's `device` is the actual one.
        """
        return machine.machine_class() + placement.in_words()

    def describe(self) -> str:
        """Its state as text; raises UnavailableError if it cannot be used."""
        return ""

    @staticmethod
    def ran_on(folder: Path, placement: Placement) -> str | None:
        """The device that the run in `folder` was measured on; None if it never ran."""
        return machine.device_class(placement.devices, placement.sharding)

    @staticmethod
    def is_under_way(folder: Path) -> bool:
        """Whether the run in `folder`, which nobody watches now, is still running, or has ended
        with results to collect."""
        return False

    @staticmethod
    def end(folder: Path) -> None:
        """End the abandoned run in `folder`, so that nothing runs twice."""
