"""Room on disk: asked for before a run needs it, and a full disk told apart from every other error.

An attempt keeps a small file of its own from the start, so that its last word can be written when the disk is full.
"""

import errno
import resource
import shutil
from contextlib import suppress
from pathlib import Path

from pipelines.errors import WorkError

# as libraries say it that raise errors of their own: safetensors and DuckDB, SQLite (two ways), all of a quota
FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded")
ROOM, ROOM_BYTES = ".room", 256 * 1024  # given back just before the last word is written
EXIT_CODE = 28  # of a child that could not even write its own report: ENOSPC
ADVICE = "Free some (old attempts' model/ folders, other files) or set FEATHERWEIGHT_DATA to a larger disk; then run the same again"


class DiskFullError(WorkError):
    """Too little disk for what comes next; sizes in bytes, `needed` None where a write failed half way."""

    def __init__(self, what: str, folder: Path, needed: int | None) -> None:
        self.needed, self.available = needed, free_bytes(folder)
        need = f"{megabytes(needed)} are needed" if needed is not None else "no more could be written"
        free = f"{megabytes(self.available)} are free in {folder}"
        super().__init__(f"too little disk for {what}: {need}, {free}. {ADVICE}")


def megabytes(size: int) -> str:
    """`size` in MB, of little in steps of a kilobyte."""
    return f"{size / 1e6:,.{3 if size < 1e6 else 0}f} MB"


def free_bytes(folder: Path) -> int:
    """Where `folder` lies, or will."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def require(folder: Path, needed: int, what: str) -> None:
    """Raises DiskFullError unless `needed` bytes are free where `folder` lies."""
    if needed > free_bytes(folder):
        raise DiskFullError(what, folder, needed)


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that the disk (or a quota on it) is full. safetensors raises an error of its
    own that only its words tell, as DuckDB and SQLite do."""
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
    """A sentence on an error of the machine's rather than of ours: a full disk or quota, a folder that cannot be written, too many
    open files. None for any other error. `root`: the data root."""
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
    """Raises OSError where not even that much can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ROOM).write_bytes(b"\x01" * ROOM_BYTES)  # not zeros, which some file systems do not store


def release_space(folder: Path) -> None:
    with suppress(OSError):
        (folder / ROOM).unlink(missing_ok=True)
