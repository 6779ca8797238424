"""Reads the files that cleaning wrote. A damaged or missing file gives an error with the remedy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as parquet

from pipelines.errors import UsageError
from pipelines.lake.disk import explained


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """A context for code that reads `file`, a Parquet file of a cleaning result.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        yield
    except (pa.ArrowException, duckdb.Error, OSError) as error:
        # A problem of the machine, such as a full disk, not of the file.
        if explained(error, file.parent):
            raise
        raise UsageError(
            f"{file}: cannot be read: it is damaged or gone; run `featherweight clean` to write it again."
        ) from None


def table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file of a cleaning result, or some of its columns.

    Raises:
        UsageError: the file cannot be read.
    """
    with reading(file):
        # Arrow reads a folder as a table without columns.
        if not file.is_file():
            raise FileNotFoundError(file)
        return parquet.read_table(file, columns=list(columns) if columns else None)
