"""Reading what cleaning wrote: a file that is damaged or gone is said with what to do."""

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
    """Around whatever reads `file`, a Parquet file of a result of cleaning.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        yield
    except (pa.ArrowException, duckdb.Error, OSError) as error:
        if explained(error, file.parent):  # the machine's fault, and not the file's
            raise
        raise UsageError(
            f"{file}: cannot be read: it is damaged or gone; run `featherweight clean` to write it anew."
        ) from None


def table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file of a result of cleaning, or some of its columns.

    Raises:
        UsageError: it cannot be read.
    """
    with reading(file):
        if not file.is_file():  # Arrow takes a folder for a table without columns
            raise FileNotFoundError(file)
        return parquet.read_table(file, columns=list(columns) if columns else None)
