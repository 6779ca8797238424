"""Room on disk: asked for before a run needs it, and a full disk told apart from every other error.

An attempt keeps a small file of its own from the start, so that its last word can be written when the disk is full.
"""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

ROOM, ROOM_BYTES = ".room", 256 * 1024  # given back just before the last word is written
EXIT_CODE = 28  # of a child that could not even write its own report: ENOSPC


class DiskFullError(Exception):
    """Too little disk for what comes next; sizes in bytes, `needed` None where a write failed half way."""

    def __init__(self, what: str, folder: Path, needed: int | None) -> None:
        self.needed, self.available = needed, free_bytes(folder)
        wanted = f"{needed / 1e6:,.0f} MB are needed" if needed is not None else "no more could be written"
        super().__init__(
            f"too little disk for {what}: {wanted}, {self.available / 1e6:,.0f} MB are free in {folder}. Free some (old "
            "attempts' model/ folders, other files) or set FEATHERWEIGHT_DATA to a larger disk; then run the same again"
        )


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def require(folder: Path, needed: int, what: str) -> None:
    """Raises DiskFullError unless `needed` bytes are free where `folder` lies."""
    if needed > free_bytes(folder):
        raise DiskFullError(what, folder, needed)


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that the disk (or a quota on it) is full. safetensors raises an error of its
    own that only its words tell."""
    while error is not None:
        if isinstance(error, DiskFullError) or (
            isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        ):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__
    return False


def keep_room(folder: Path) -> None:
    """Raises OSError where not even that much can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ROOM).write_bytes(b"\x01" * ROOM_BYTES)  # not zeros, which some file systems do not store


def give_room_back(folder: Path) -> None:
    with suppress(OSError):
        (folder / ROOM).unlink(missing_ok=True)
