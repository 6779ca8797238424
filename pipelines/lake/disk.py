"""Disk space: checks before a run needs it, and the distinction of a full disk from other errors.

An attempt reserves space with a small file from the start, so that its result can be written even
on a full disk.
"""

import errno
import resource
import shutil
from contextlib import suppress
from pathlib import Path

from pipelines.errors import WorkError

# Messages of libraries with their own errors: safetensors and DuckDB, SQLite, and all of them for a
# quota.
FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded")
# The file that reserves space until just before the result is written.
ROOM, ROOM_BYTES = ".room", 256 * 1024
# Exit code of a child that could not write its own report: ENOSPC.
EXIT_CODE = 28
ADVICE = "Free some (old attempts' model/ folders, other files) or set FEATHERWEIGHT_DATA to a larger disk; then run the same again"


class DiskFullError(WorkError):
    """Too little disk space for the next step.

    Sizes are in bytes; `needed` is None if a write failed halfway.
    """

    def __init__(self, what: str, folder: Path, needed: int | None) -> None:
        self.needed, self.available = needed, free_bytes(folder)
        need = f"{megabytes(needed)} are needed" if needed is not None else "no more could be written"
        free = f"{megabytes(self.available)} are free in {folder}"
        super().__init__(f"too little disk for {what}: {need}, {free}. {ADVICE}")


def megabytes(size: int) -> str:
    """`size` in MB, below 1 MB with three decimals."""
    return f"{size / 1e6:,.{3 if size < 1e6 else 0}f} MB"


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def require(folder: Path, needed: int, what: str) -> None:
    """Raises DiskFullError unless `needed` bytes are free on the disk of `folder`."""
    if needed > free_bytes(folder):
        raise DiskFullError(what, folder, needed)


def is_full(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes means that the disk (or a quota) is full.

    For safetensors, DuckDB and SQLite only the message of the error shows it.
    """
    while error is not None:
        if isinstance(error, DiskFullError) or (
            isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        ):
            return True
        if any(words in str(error) for words in FULL):
            return True
        error = error.__cause__
    return False


def explained(error: BaseException, root: Path) -> str | None:
    """A sentence on an error of the machine: a full disk or quota, an unwritable folder, too many
    open files.

    None for any other error. `root` is the data root.
    """
    number = error.errno if isinstance(error, OSError) else None
    if is_full(error):
        message = str(error).splitlines()[0]
        return f"the disk is full: {megabytes(free_bytes(root))} are free in {root}, and more is needed ({message}). {ADVICE}."
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        more = max(4096, 2 * limit)
        return f"too many open files: {limit} are allowed; allow more (`ulimit -n {more}`), then run the same again."
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        assert isinstance(error, OSError)
        return f"cannot write {error.filename or root}: {error.strerror}; make it writable, then run the same again."
    return None


def reserve_space(folder: Path) -> None:
    """Write the file that reserves space in `folder`. Raises OSError if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    # Some file systems do not store zeros.
    (folder / ROOM).write_bytes(b"\x01" * ROOM_BYTES)


def release_space(folder: Path) -> None:
    """Remove the file that reserves space in `folder`."""
    with suppress(OSError):
        (folder / ROOM).unlink(missing_ok=True)
