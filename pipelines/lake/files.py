"""Files that are either complete or absent, locks that end with their holder, and stable hashes."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from pipelines.errors import InUseError, WorkError

# Entries of the lake. A parent folder `lake` of one of them is the lake, not a data root with that
# name.
LAKE_ROOMS = (
    "bit_widths", "cells", "clean", "code.json", "estimates", "hashes.json", "journal.sqlite", "locks", "news", "nights",
    "preferences.jsonl", "raw", "tune", "work",
)  # fmt: skip


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Create `folder` and its parents. New folders in the lake are private to their owner.

    Raises:
        OSError: the folder cannot be created.
    """
    if lake := _lake_of(folder):
        lake.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700 if is_private(folder) else mode)


def is_private(path: Path) -> bool:
    """Whether `path` is in a private lake. A lake has prompts, answers and records, so by default
    only its owner may read it.

    A lake that its group may write is shared on purpose; there the umask decides. It also decides
    outside the lake, where everything is published.
    """
    lake = _lake_of(path)
    return lake is not None and not (lake.exists() and lake.stat().st_mode & stat.S_IWGRP)


def _lake_of(path: Path) -> Path | None:
    folders = [path, *path.parents]
    return next(
        (outer for inner, outer in pairwise(folders) if outer.name == "lake" and inner.name in LAKE_ROOMS), None
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`
    in one step.

    Raises:
        WorkError: the folder cannot be written (read-only, disk full); `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        make_folder(path.parent)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        if is_private(path):
            # A file system without modes raises an error.
            with suppress(PermissionError):
                temporary.chmod(0o600)
        temporary.replace(path)
    except OSError as error:
        raise WorkError(
            f"cannot write {path}: {error.strerror or error}{_free_note(path, error)}. What was there before is untouched; "
            "free disk space or make the folder writable, then run the same command again."
        ) from error
    finally:
        # A failed write must not leave a half-made file; a folder that went read-only may refuse
        # even that.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _free_note(path: Path, error: OSError) -> str:
    """A note on the free space for `path`, if `error` means that there was too little."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    existing = next(folder for folder in path.parents if folder.exists())
    return f" ({shutil.disk_usage(existing).free / 1e6:,.3f} MB are free, more is needed)"


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON. NaN and infinities raise ValueError, because JSON has none."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The value in `path`; None if the file is missing or is not JSON, such as half of a file.

    Raises:
        WorkError: it cannot be read, such as a folder, or a file without permission.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # A ValueError also means bytes that are not UTF-8, or a number with thousands of digits.
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise WorkError(
            f"cannot read {path}: {error.strerror or error}; make it a file that you may read, or remove it."
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in `path`; empty if there is none, or another value.

    Raises the same errors as `read_json`.
    """
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def read_jsonl(path: Path) -> list[Any]:
    """The rows of `path` ([] if the file is missing), without lines that a kill cut off."""
    rows = []
    try:
        # splitlines() would also split at U+2028 and U+0085, which do not end a line of JSONL.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def stable_hash(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def locked(
    path: Path, holder: str, *, wait: bool = True, say: Callable[[str], None] | None = None
) -> Iterator[IO[str]]:
    """Hold an exclusive lock on `path` and yield the open file. The lock (flock) ends with its
    holder, even by kill -9.

    A child that inherits the file's descriptor keeps the lock until it ends, too.

    Raises:
        InUseError: `wait` is False and somebody else holds the lock; the message names the holder.
        WorkError: the file cannot be created.
    """
    announced = False
    while True:
        handle = _lock_file(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(path, handle):
                break
            # Somebody removed the file after we opened it and before we locked it.
            handle.close()
        except BlockingIOError:
            with handle:
                handle.seek(0)
                current = handle.read().strip() or "another process"
            if not wait:
                raise InUseError(f"{path.stem} is in use by {current}: wait for it to end, then try again.") from None
            if not announced:
                (say or announce)(f"waiting for {path.stem}: {current} holds it")
                announced = True
            time.sleep(0.2)
    with handle:
        # On a full disk we hold the lock all the same, but others do not see our name.
        with suppress(OSError):
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), f"{holder} (process {os.getpid()})".encode())
        yield handle


def _is_same_file(path: Path, handle: IO[str]) -> bool:
    """Whether `path` still names the open file. If not, other processes would lock another file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


def _lock_file(path: Path) -> IO[str]:
    try:
        make_folder(path.parent, mode=0o700)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise WorkError(
            f"cannot lock {path}: {error.strerror or error}; make {path.parent} a writable folder, then try again."
        ) from error


def announce(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
