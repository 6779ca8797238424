"""What a launcher is: it starts a run's command in its folder, and answers what only it can know. The launchers beside this file
are siblings: each is one module, named as the profile names it, and whoever uses it does not know which one is at work.

A new launcher is a new module here with its `LAUNCHER` class; its name and its settings stand in pipelines/settings/launchers.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.hardware import machine
from pipelines.lake.files import announce
from pipelines.runs.command import CellCommand, Placement, RunningCommand


class Launcher:
    """A launcher by the profile's settings for it; `say` is told what it waits for. What it answers here is true of one that starts
    its commands on this machine."""

    holds_device: bool = (
        True  # what it starts is on this machine's device, which one run holds at a time; its time is counted here
    )
    asks_for_memory: bool = False  # so that a prediction of each cell's memory should be at hand

    def __init__(self, settings: Any = None, *, say: Callable[[str], None] = announce) -> None:
        self.settings = settings
        self.say = say

    def start(self, command: CellCommand) -> RunningCommand:
        """Raises UnavailableError where it cannot be started: nobody answers, or nobody takes it."""
        raise NotImplementedError

    @property
    def runs(self) -> tuple[str, ...]:
        """The modules that a cell on several devices runs in, beside its own."""
        return ()

    @property
    def at_once(self) -> int:
        """How many cells are kept under way."""
        return 1

    def require(self, placement: Placement) -> None:
        """Raises UnavailableError where something is not installed that must be, on this machine."""

    def machine(self, placement: Placement) -> str:
        """What cells run on, as far as it is known beforehand, for the fingerprint. The row's `device` is what they were given."""
        return machine.machine_class() + placement.in_words()

    def stands(self) -> str:
        """How it stands, for whoever looks; raises UnavailableError where it cannot be used."""
        return ""

    @staticmethod
    def ran_on(folder: Path, placement: Placement) -> str | None:
        """The device that the run in `folder` was measured on; None for what never ran."""
        return machine.device_class(placement.devices, placement.sharding)

    @staticmethod
    def is_under_way(folder: Path) -> bool:
        """Whether the run in `folder`, which nobody watches any more, still goes on, or has ended with results to be had."""
        return False

    @staticmethod
    def end(folder: Path) -> None:
        """End the run in `folder`, which somebody gave up, so that nothing runs twice."""
