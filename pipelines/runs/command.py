"""The terms that the parent of a run shares with every launcher: a command in a folder, its
placement and its ending."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipelines.lake.files import stable_hash

Reason = Literal["memory_budget", "time_limit", "interrupted", "node_lost", "unreachable", "refused"]


@dataclass(frozen=True)
class CellCommand:
    """`python ARGUMENTS` with its output in FOLDER/log.txt.

    `memory_budget` is in bytes, for all its processes together, and `time_limit` in seconds. At the
    time limit, or when stopped from outside, the command gets SIGTERM and `grace_seconds` to save
    its work. On several `devices` it runs as one process for each, which find each other as
    torchrun's do.
    """

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
    """How a command ended.

    `exit_code` is negative for a signal. `reason` says why we stopped it. `detail` is a further
    explanation in words. `asked_bytes` is the peak of requested memory, touched or not, or 0 if
    unknown.
    """

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
        """The peak of requested memory of its processes, touched or not; 0 if unknown."""
        return 0

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        raise NotImplementedError

    def memory_bytes(self) -> int:
        """Current resident memory of all its processes; 0 if they are on another machine."""
        return 0

    def stop(self, *, grace_seconds: float = 0) -> None:
        """End all its processes, with SIGTERM first if there is a grace period.

        Returns when they are gone.
        """
        raise NotImplementedError

    def ending(self) -> Ending | None:
        """The ending from the other machine that runs the command; None on this machine."""
        return None


class Starter(Protocol):
    def start(self, command: CellCommand) -> RunningCommand: ...


@dataclass(frozen=True)
class Placement:
    """The placement of one run: the number of devices, how they share the work (`sharding`), and
    the profile's settings for that (`tuning`)."""

    devices: int = 1
    sharding: str = "none"
    tuning: Mapping[str, Any] = field(default_factory=dict)

    def in_words(self) -> str:
        """The devices and the sharding as text for the fingerprint; empty for one device."""
        if self.devices == 1:
            return ""
        tuned = f", deepspeed {stable_hash(dict(self.tuning))}" if self.tuning else ""
        return f" × {self.devices}, {self.sharding}{tuned}"
