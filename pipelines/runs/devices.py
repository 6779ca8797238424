"""The locks of this machine's devices. A measurement holds them; work that would disturb it checks
them first.

The kernel owns a lock and releases it when its holder ends, even by kill -9. The lock's file
contains only a name. Cells of a cluster hold no lock here. Cells of another data root hold the same
locks, because a device belongs to the machine.
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
# The device of work that uses no GPU.
PROCESSORS = "cpu"


def locks_of(devices: int = 1) -> list[Path]:
    """The lock files of the devices that a cell on `devices` of them uses, in locking order."""
    return [device_locks() / f"{slug}.lock" for slug in machine.device_slugs(devices)]


def watched_locks(devices: int = 1) -> list[Path]:
    """The locks of all cells that other work on this machine would disturb: the same ones, and that
    of the CPU."""
    return [*dict.fromkeys((*locks_of(devices), device_locks() / f"{PROCESSORS}.lock"))]


def holder(paths: Sequence[Path]) -> str | None:
    """The current holder of one of the locks, or None. Neither writes nor creates a lock."""
    return next(filter(None, map(_holder_of, paths)), None)


def _holder_of(path: Path) -> str | None:
    try:
        handle = path.open(encoding="utf-8", errors="replace")
    # The lock was never used, or belongs to another user.
    except OSError:
        return None
    with handle:
        try:
            # A shared lock, so that several processes may check at once; closing the file releases
            # it.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return handle.read().strip() or "another process"
        # A file system without locks.
        except OSError:
            return None
    return None


@contextmanager
def held(paths: Sequence[Path], name: str, *, seconds: float, say: Callable[[str], None] = announce) -> Iterator[None]:
    """Hold all the locks, from the first moment at which nobody else holds any.

    Inside, no cell uses these devices, and a new one waits. While this function waits, it holds
    none of them.

    Raises:
        InUseError: the locks were not all free within `seconds`.
        WorkError: the locks cannot be created.
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
    """Acquire all locks into `stack`, or none; returns whether it succeeded."""
    with ExitStack() as trial, suppress(InUseError):
        for path in paths:
            trial.enter_context(locked(path, name, wait=False))
        stack.push(trial.pop_all())
        return True
    return False
