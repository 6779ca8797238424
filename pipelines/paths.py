"""Where everything lies. Paths stored in files are relative to one root, so that the root can move or be remote."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

LOCKS = "FEATHERWEIGHT_LOCKS"
PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class DataRoot:
    """The folder behind FEATHERWEIGHT_DATA: tracked inputs, the lake, models, the published warehouse and report."""

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
    def cells(self) -> Path:
        return self.lake / "cells"

    @property
    def journal(self) -> Path:
        return self.lake / "journal.sqlite"

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
        """The input file `name`: the user's own under this root, else the one the project ships."""
        own = self.root / name
        return own if own.exists() else PROJECT / "data" / name


def data_root() -> DataRoot:
    return DataRoot(Path(os.environ.get("FEATHERWEIGHT_DATA") or PROJECT / "data").resolve())


def device_locks() -> Path:
    """The folder of the locks of this machine's devices, one for each machine and user, so that two data roots share a device:
    FEATHERWEIGHT_LOCKS, else one beside the temporary files. Containers that share a device mount the same one."""
    return Path(os.environ.get(LOCKS) or Path(tempfile.gettempdir()) / f"featherweight-locks-{os.getuid()}")


def experiments_file() -> Path:
    return Path(os.environ.get("FEATHERWEIGHT_EXPERIMENTS") or PROJECT / "experiments.yaml").resolve()
