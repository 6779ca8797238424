"""The locks of this machine's devices. A measurement holds them; work that would disturb it looks at them first.

A lock is the kernel's and ends with its holder, also by kill -9; what stands in its file is only a name. Cells of a cluster hold
none here, and those of another data root hold the same ones, since a device belongs to the machine.
"""

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipelines.errors import InUseError
from pipelines.hardware import machine
from pipelines.lake.files import announce, locked
from pipelines.lake.paths import device_locks

POLL_SECONDS = 0.2
PROCESSORS = "cpu"  # the device of what computes on no card


def locks_of(devices: int = 1) -> list[Path]:
    """The files of the devices that a cell on so many of them uses, in the order in which they are locked."""
    return [device_locks() / f"{slug}.lock" for slug in machine.device_slugs(devices)]


def watched_locks(devices: int = 1) -> list[Path]:
    """What other work on this machine would disturb: the same, and a cell on the processors."""
    return [*dict.fromkeys((*locks_of(devices), device_locks() / f"{PROCESSORS}.lock"))]


def holder(paths: Sequence[Path]) -> str | None:
    """Who holds one of the locks now; None where nobody does. Nothing is written, and no lock is made."""
    return next(filter(None, map(_holder_of, paths)), None)


def _holder_of(path: Path) -> str | None:
    try:
        handle = path.open(encoding="utf-8", errors="replace")
    except OSError:  # it was never used, or it is not ours
        return None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # beside others who look; given back at once
        except BlockingIOError:
            return handle.read().strip() or "another process"
        except OSError:  # a file system without locks
            return None
    return None


@contextmanager
def held(paths: Sequence[Path], name: str, *, seconds: float, say: Callable[[str], None] = announce) -> Iterator[None]:
    """Hold all the locks as soon as nobody else holds any: inside no cell uses these devices, and one that comes waits. While one
    of them is waited for none is held.

    Raises:
        InUseError: for so many seconds there was no such moment.
        WorkError: the locks cannot be made.
    """
    deadline, announced = time.monotonic() + seconds, False
    with ExitStack() as stack:
        while not _try_locks(stack, paths, name):
            user = holder(paths) or "another process"
            if time.monotonic() >= deadline:
                raise InUseError(f"the device is in use by {user}: wait for it to end, then try again.")
            if not announced:
                say(f"waiting until no measurement runs: {user} uses the device")
                announced = True
            time.sleep(POLL_SECONDS)
        yield


def _try_locks(stack: ExitStack, paths: Sequence[Path], name: str) -> bool:
    """Whether all locks could be taken now, into `stack`; else none is."""
    with ExitStack() as trial, suppress(InUseError):
        for path in paths:
            trial.enter_context(locked(path, name, wait=False))
        stack.push(trial.pop_all())
        return True
    return False
