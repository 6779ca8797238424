"""Storage that every node reaches, at any fsspec URL (s3://bucket/prefix, gs://, file://): inputs
by content, outputs by job.

Keys come from the environment of the process that opens it (AWS_ACCESS_KEY_ID and similar
variables, or an instance's role). No URL, file, message or event contains them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.lake.files import file_sha256, read_json, replacing, write_json

OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}}
}


# Protocols without folders; creating a folder there may create a bucket.
OBJECTS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "memory")


class StoreError(UnavailableError):
    """The storage cannot be reached, or refuses the request."""


class Store:
    """A folder behind an fsspec URL. Names are relative, with slashes."""

    def __init__(self, url: str) -> None:
        """Raises StoreError if the URL's protocol needs a package that is not installed."""
        import fsspec

        self.url = url.rstrip("/")
        protocol = self.url.split("://", 1)[0] if "://" in self.url else "file"
        self._has_folders = protocol not in OBJECTS
        try:
            self._fs, self._base = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, **OPTIONS.get(protocol, {})
            )
        except (ImportError, ValueError) as error:
            raise StoreError(f"storage {self.url}: {error}; `make extras E=ray` brings what s3:// needs") from None

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    @contextmanager
    def _store_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(f"storage {self.url}: {action}: not found ({harmless(error)})") from None
        # Each backend has its own errors.
        except Exception as error:
            message = harmless(error) or type(error).__name__
            raise StoreError(f"storage {self.url} cannot be used: {action}: {message}") from None

    def check(self) -> None:
        """Write a small file and read it back.

        Raises:
            StoreError: the bucket does not exist, the key is missing, or the storage does not
                answer.
        """
        self.write("featherweight", b"cells of featherweight pass through here\n")

    def keep(self, path: Path, sha256: str) -> None:
        """Upload the file as `blobs/<sha256>`, unless the storage has it."""
        with self._store_errors(f"uploading {path.name}"):
            name = self._path(f"blobs/{sha256}")
            if not (self._fs.exists(name) and self._fs.size(name) == path.stat().st_size):
                self._put(path, name)

    def _make_folder_of(self, target: str) -> None:
        if self._has_folders:
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)

    def upload(self, path: Path, name: str) -> None:
        with self._store_errors(f"uploading {name}"):
            self._put(path, self._path(name))

    def _put(self, path: Path, target: str) -> None:
        self._make_folder_of(target)
        self._fs.put_file(str(path), target)

    def download(self, name: str, path: Path) -> None:
        """Download the file completely, or leave `path` unchanged."""
        with replacing(path) as temporary, self._store_errors(f"reading {name}"):
            self._fs.get_file(self._path(name), str(temporary))

    def write(self, name: str, content: bytes) -> None:
        with self._store_errors(f"writing {name}"):
            target = self._path(name)
            self._make_folder_of(target)
            self._fs.pipe_file(target, content)

    def read(self, name: str) -> bytes | None:
        """The content of the file, or None if it does not exist."""
        with self._store_errors(f"reading {name}"):
            try:
                return self._fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content, if it exists."""
        with self._store_errors(f"removing {name}"):
            try:
                self._fs.rm(self._path(name), recursive=True)
            except FileNotFoundError:
                return


def harmless(error: Exception) -> str:
    """The first line of the error, without the values of keys in the environment."""
    line = (str(error).strip().splitlines() or [""])[0][:300]
    for name, value in os.environ.items():
        if name.startswith("AWS_") and ("KEY" in name or "TOKEN" in name) and len(value) > 3:
            line = line.replace(value, "***")
    return line


class Hashes:
    """SHA-256 of files, cached by path, size and time of change: weights are read once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Any] = read_json(file) or {}

    def of(self, path: Path) -> str:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        entry = self._known.get(str(path))
        if entry is None or entry[:2] != stamp:
            entry = [*stamp, file_sha256(path)]
            self._known[str(path)] = entry
            # Small files are faster to read than to cache.
            if stat.st_size > 10**6:
                write_json(self._file, {**(read_json(self._file) or {}), str(path): entry})
        return entry[2]
