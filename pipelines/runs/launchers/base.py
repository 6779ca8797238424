"""What a launcher is: it starts a run's command in its folder, and answers what only it can know. The launchers beside this file
are siblings: each is one module, named as the profile names it, and nothing outside it knows which one is at work.

A new launcher is a new module here with its `LAUNCHER` class, and its settings in experiments.yaml under its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pipelines import machine
from pipelines.files import announce, stable_hash

Reason = Literal["memory_budget", "time_limit", "interrupted", "node_lost", "unreachable", "refused", "given_up"]


@dataclass(frozen=True)
class CellCommand:
    """`python ARGUMENTS`, its output in FOLDER/log.txt, under a memory budget (bytes, of all its processes) and a time limit
    (seconds). One that is stopped by the limit or from outside gets SIGTERM and `grace_seconds` to keep what it has done. On
    several `devices` it runs as so many processes, which find one another as torchrun's do."""

    arguments: Sequence[str]
    folder: Path
    env: Mapping[str, str]
    keep_open: Sequence[int] = ()
    memory_budget: int | None = None
    time_limit: float | None = None
    grace_seconds: float = 0
    devices: int = 1


@dataclass(frozen=True)
class Ending:
    """How a command ended: exit code (negative: the signal), what we stopped it for, what the kernel says, peak bytes; in
    words what else is to be said. `asked_bytes` is the most that was asked for, touched or not, where that is known."""

    exit_code: int
    reason: Reason | None
    kernel_oom_kill: bool
    peak_bytes: int
    seconds: float
    detail: str | None = None
    asked_bytes: int = 0


class RunningCommand:
    """A command under way."""

    @property
    def asked_bytes(self) -> int:
        """The most that its processes have asked for, touched or not; 0 where that is not known."""
        return 0

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        raise NotImplementedError

    def memory_bytes(self) -> int:
        """Resident memory of all its processes now; 0 where they are on another machine."""
        return 0

    def stop(self, *, grace_seconds: float = 0) -> None:
        """End all its processes, by SIGTERM first where there is a grace; returns when they are gone."""
        raise NotImplementedError

    def ending(self) -> Ending | None:
        """What was seen of its end where it ran, if that is another machine, which keeps its limits, too."""
        return None


class Starter(Protocol):
    def start(self, command: CellCommand) -> RunningCommand: ...


@dataclass(frozen=True)
class Placement:
    """On what one run is put: so many devices, how the work is divided over them (`sharding`), and what the profile tells whoever
    divides it (`tuning`)."""

    devices: int = 1
    sharding: str = "none"
    tuning: Mapping[str, Any] = field(default_factory=dict)

    def in_words(self) -> str:
        """What of it a result hangs on, beside the machine; empty for one device."""
        if self.devices == 1:
            return ""
        tuned = f", deepspeed {stable_hash(dict(self.tuning))}" if self.tuning else ""
        return f" × {self.devices}, {self.sharding}{tuned}"


class Launcher:
    """A launcher by the profile's settings for it; `say` is told what it waits for. What it answers here is true of one that starts
    its commands on this machine."""

    holds_device: bool = (
        True  # what it starts is on this machine's device, which one run holds at a time; its time is counted here
    )
    asks_for_memory: bool = False  # so that a prediction of each cell's memory should be at hand
    runs: ClassVar[tuple[str, ...]] = ()  # modules that a cell of several devices runs in beside its own

    def __init__(self, settings: Any = None, *, say: Callable[[str], None] = announce) -> None:
        self.settings = settings
        self.say = say

    def start(self, command: CellCommand) -> RunningCommand:
        """Raises UnavailableError where it cannot be started: nobody answers, or nobody takes it."""
        raise NotImplementedError

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
