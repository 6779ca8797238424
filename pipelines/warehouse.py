"""data/warehouse.duckdb: a published artifact that any DuckDB client from 1.2 on reads at any moment.

It is a link to a whole, checked file of its own name under data/warehouse/. Publishing writes a new file and renames a new
link over the old one, so readers are never blocked and never block, and see one publication or the next, nothing between.
A session that writes into an old file leaves its `.wal` beside that old name, where no new reader looks.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines import disk
from pipelines.errors import UsageError, WorkError
from pipelines.files import locked
from pipelines.paths import DataRoot
from pipelines.runs.cells import new_run_id

STORAGE_VERSION = "v1.2.0"
KEPT = 2  # the current file and the one before it, which a reader may be about to open
ARROW = {
    "VARCHAR": pa.string(), "DOUBLE": pa.float64(), "BIGINT": pa.int64(), "INTEGER": pa.int32(), "BOOLEAN": pa.bool_(),
    "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
}  # fmt: skip


def arrow_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pa.Table:
    """`rows` as an Arrow table with exactly `columns` (name → DuckDB type); what a row lacks is NULL."""
    schema = pa.schema([(name, ARROW[kind]) for name, kind in columns.items()])
    arrays = [
        pa.array([_value(row.get(name), kind) for row in rows], type=ARROW[kind]) for name, kind in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _value(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "TIMESTAMPTZ":
        return datetime.fromisoformat(value)
    if kind in ("BIGINT", "INTEGER"):
        return round(value)
    return float(value) if kind == "DOUBLE" else value


def publish(data: DataRoot, tables: Mapping[str, pa.Table]) -> Path:
    """Make `tables` the warehouse's content; returns the versioned file. One publisher at a time, by a lock.

    Raises:
        WorkError: the file cannot be written or does not read back; the last publication stays current.
    """
    folder = data.root / "warehouse"
    with locked(data.locks / "publish.lock", "publish"):
        version = folder / f"{new_run_id(folder)}.duckdb"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(version, tables)
            _check(version, tables)
            version.chmod(0o444)
            _make_current(data.warehouse, version)
        except (OSError, duckdb.Error) as error:
            for leftover in (version, Path(f"{version}.wal")):
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)
            because = disk.explained(error, data.root) or f"{error}. Make {data.root} writable, or free disk space."
            raise WorkError(
                f"cannot publish {data.warehouse}: {because} The last publication is untouched; `featherweight compare` makes the "
                "next one."
            ) from error
        _tidy(folder, data.warehouse)
        return version


def _write(version: Path, tables: Mapping[str, pa.Table]) -> None:
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute(f"ATTACH '{_quoted(version)}' AS warehouse (STORAGE_VERSION '{STORAGE_VERSION}')")
        for name, table in tables.items():
            db.register("incoming", table)
            db.execute(f'CREATE TABLE warehouse."{name}" AS SELECT * FROM incoming')
            db.unregister("incoming")
        db.execute("CHECKPOINT warehouse")
        db.execute("DETACH warehouse")


def _check(version: Path, tables: Mapping[str, pa.Table]) -> None:
    with duckdb.connect(str(version), read_only=True) as db:
        for name, table in tables.items():
            found = db.execute(f'SELECT count(*) FROM "{name}"').fetchone()
            if found != (table.num_rows,):
                raise OSError(f"{name} reads back {found} rows of {table.num_rows}")


def _make_current(stable: Path, version: Path) -> None:
    link = stable.with_name(f".{stable.name}.{os.getpid()}.partial")
    link.unlink(missing_ok=True)
    link.symlink_to(version.relative_to(stable.parent))
    link.replace(stable)


def _tidy(folder: Path, stable: Path) -> None:
    """Remove old publications and every write-ahead log that a foreign session left; nobody's next read may replay one."""
    current = stable.resolve()  # kept whatever its name says: a clock may have gone back
    versions = [*sorted(path for path in folder.glob("*.duckdb") if path.name != current.name), current]
    foreign = [*folder.glob("*.wal"), Path(f"{stable}.wal")]
    for path in (*versions[:-KEPT], *foreign):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def connect(data: DataRoot) -> duckdb.DuckDBPyConnection:
    """A read-only connection to the current publication.

    Raises:
        UsageError: nothing has been published yet.
    """
    if not data.warehouse.exists():
        raise UsageError(f"{data.warehouse}: nothing published yet: run `make run`, or `featherweight compare`.")
    return duckdb.connect(str(data.warehouse), read_only=True)
