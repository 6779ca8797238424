"""The workspace of a cleaning run: a DuckDB file that spills to disk, in a folder of its own."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from pipelines.errors import WorkError
from pipelines.lake import disk
from pipelines.lake.files import locked, make_folder
from pipelines.lake.paths import DataRoot
from pipelines.settings.cleaning import Cleaning


@dataclass(frozen=True)
class Work:
    """The folder, database and number of threads of a cleaning run."""

    folder: Path
    db: duckdb.DuckDBPyConnection
    threads: int

    def one(self, query: str, parameters: dict[str, Any] | None = None) -> tuple[Any, ...]:
        """The only row of `query`."""
        (row,) = self.db.execute(query, parameters or {}).fetchall()
        return row


@contextmanager
def workspace(data: DataRoot, settings: Cleaning) -> Iterator[Work]:
    """A run's own folder and database. One run at a time; leftovers of a killed run are removed
    first.

    Raises:
        WorkError: disk or memory is exhausted, or the folder cannot be written.
    """
    folder = data.lake / "work" / "clean"
    with locked(data.locks / "clean.lock", "clean"):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
            threads = settings.threads or os.cpu_count() or 1
            with duckdb.connect(str(folder / "work.duckdb"), config=_config(folder, settings, threads)) as db:
                yield Work(folder, db, threads)
        except duckdb.OutOfMemoryException as error:
            raise WorkError(
                f"cleaning needs more than its {settings.memory_limit_gb:g} GB: {_first_line(error)}. The last result is "
                "untouched; raise cleaning.memory_limit_gb, or free disk space to spill to."
            ) from None
        except (OSError, duckdb.Error) as error:
            if not isinstance(error, OSError | duckdb.IOException) and not disk.is_full(error):
                raise
            raise WorkError(
                f"cleaning cannot work in {folder}: {_first_line(error)} ({disk.megabytes(disk.free_bytes(folder))} are "
                "free). The last result is untouched; free disk space or make the folder writable, then run the same "
                "command again."
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _config(folder: Path, settings: Cleaning, threads: int) -> dict[str, Any]:
    return {
        "memory_limit": f"{settings.memory_limit_gb}GB",
        "threads": threads,
        "temp_directory": str(folder / "spilled"),
        "preserve_insertion_order": False,
    }


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
