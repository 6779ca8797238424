"""The paths of all data.

Paths in files are relative to one root, so that the root can move or be remote.
"""

import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UsageError

UNUSABLE = re.compile(r"[?\\]")
LOCKS = "FEATHERWEIGHT_LOCKS"
PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DataRoot:
    """The folder behind FEATHERWEIGHT_DATA: tracked inputs, the lake, models, the published
    warehouse and report."""

    root: Path

    @property
    def lake(self) -> Path:
        return self.root / "lake"

    @property
    def raw(self) -> Path:
        return self.lake / "raw"

    @property
    def clean(self) -> Path:
        return self.lake / "clean"

    @property
    def tried(self) -> "DataRoot":
        """A separate data root for the result of a trial of cleaning; it has no current data."""
        return DataRoot(self.lake / "tried")

    @property
    def cells(self) -> Path:
        return self.lake / "cells"

    @property
    def journal(self) -> Path:
        return self.lake / "journal.sqlite"

    @property
    def preferences(self) -> Path:
        return self.lake / "preferences.jsonl"

    @property
    def locks(self) -> Path:
        return self.lake / "locks"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def warehouse(self) -> Path:
        return self.root / "warehouse.duckdb"

    @property
    def report(self) -> Path:
        return self.root / "report" / "index.html"

    def tracked(self, name: str) -> Path:
        """The input file `name`: the user's own under this root, else the shipped one."""
        own = self.root / name
        return own if own.exists() else PROJECT / "data" / name


def data_root() -> DataRoot:
    """The data root from the environment, else the default.

    Raises:
        UsageError: its name cannot be read in this process's locale, or has a character with a
            special meaning for DuckDB, so that a publication would fail after all the work.
    """
    root = _readable("FEATHERWEIGHT_DATA", PROJECT / "data")
    if bad := UNUSABLE.search(str(root)):
        raise UsageError(
            f"FEATHERWEIGHT_DATA: {str(root)!r} holds {bad[0]!r}, which DuckDB cannot have in a path; expected a folder without ? "
            "and backslash: name another one."
        )
    return DataRoot(root)


def device_locks() -> Path:
    """The folder of the locks of this machine's devices: FEATHERWEIGHT_LOCKS, else one beside the
    temporary files.

    There is one for each machine and user, so that two data roots can share a device. Containers
    that share a device mount the same folder.
    """
    return Path(os.environ.get(LOCKS) or Path(tempfile.gettempdir()) / f"featherweight-locks-{os.getuid()}")


def experiments_file() -> Path:
    """The settings file. Raises UsageError if its name cannot be read in this process's locale."""
    return _readable("FEATHERWEIGHT_EXPERIMENTS", PROJECT / "experiments.yaml")


def _readable(variable: str, default: Path) -> Path:
    """The path in the environment's `variable`.

    It must be valid UTF-8, because files under the root contain it.
    """
    path = Path(os.environ.get(variable) or default).resolve()
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            f"{variable}: {str(path)!a} cannot be read as {sys.getfilesystemencoding()}, this locale's encoding; expected "
            "a name in UTF-8 and a locale that reads it: run with PYTHONUTF8=1, or under LC_ALL=C.UTF-8."
        ) from None
    return path
