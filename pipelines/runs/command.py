"""A command in a folder, how it is put on a machine, and how it ended: what the parent of a run and every launcher speak of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipelines.lake.files import stable_hash

Reason = Literal["memory_budget", "time_limit", "interrupted", "node_lost", "unreachable", "refused"]


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
        """The devices and how the work is divided, for the fingerprint; empty for one device."""
        if self.devices == 1:
            return ""
        tuned = f", deepspeed {stable_hash(dict(self.tuning))}" if self.tuning else ""
        return f" × {self.devices}, {self.sharding}{tuned}"
