"""data/warehouse.duckdb: a published artifact that any DuckDB client from 1.2 on can read at any
moment.

It is a link to a complete, checked file under data/warehouse/. Publishing writes a new file and
renames a new link over the old one. So readers neither block nor are blocked, and always see one
complete publication. A session that writes into an old file leaves its `.wal` beside that old name,
where no new reader looks.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.errors import UsageError, WorkError
from pipelines.lake import disk
from pipelines.lake.files import locked
from pipelines.lake.paths import DataRoot
from pipelines.lake.run_ids import new_run_id
from pipelines.lake.schema import Table, View

STORAGE_VERSION = "v1.2.0"
# The key of a table's or column's comment in Arrow's metadata.
COMMENT = b"comment"
# The number of kept files: the current one, and the one before it, which a reader may be about to
# open.
KEPT = 2
ARROW = {
    "VARCHAR": pa.string(), "DOUBLE": pa.float64(), "BIGINT": pa.int64(), "INTEGER": pa.int32(), "BOOLEAN": pa.bool_(),
    "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
}  # fmt: skip


def arrow_table(rows: Sequence[Mapping[str, Any]], table: Table) -> pa.Table:
    """`rows` as an Arrow table with exactly the columns of `table` and with its comments as
    metadata.

    A missing value is NULL.

    Raises:
        ValueError: a row has a name that is not a column; narrow rows of files first.
    """
    table.require_known(rows)
    fields = [pa.field(one.name, ARROW[one.type], metadata={COMMENT: one.description}) for one in table.columns]
    arrays = [
        pa.array([_value(row.get(one.name), one.type) for row in rows], type=ARROW[one.type]) for one in table.columns
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={COMMENT: table.meaning}))


def with_comment(table: pa.Table, text: str) -> pa.Table:
    """The table with `text` after its own comment."""
    metadata = table.schema.metadata or {}
    return table.replace_schema_metadata(
        {**metadata, COMMENT: (metadata.get(COMMENT, b"").decode() + " " + text).strip()}
    )


def _value(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "TIMESTAMPTZ":
        return datetime.fromisoformat(value)
    if kind in ("BIGINT", "INTEGER"):
        return round(value)
    return float(value) if kind == "DOUBLE" else value


def publish(data: DataRoot, tables: Mapping[str, pa.Table], views: Sequence[View] = ()) -> Path:
    """Publish `tables` and their `views` as the warehouse; returns the versioned file. A lock
    admits one publisher at a time.

    Raises:
        WorkError: the file cannot be written or read back; the last publication stays current.
    """
    folder = data.root / "warehouse"
    with locked(data.locks / "publish.lock", "publish"):
        version = folder / f"{new_run_id(folder)}.duckdb"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(version, tables, views)
            _check(version, tables, views)
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


def _write(version: Path, tables: Mapping[str, pa.Table], views: Sequence[View]) -> None:
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute(f"ATTACH {_text(str(version))} AS warehouse (STORAGE_VERSION '{STORAGE_VERSION}')")
        for name, table in tables.items():
            db.register("incoming", table)
            db.execute(f"CREATE TABLE warehouse.{_name(name)} AS SELECT * FROM incoming")
            db.unregister("incoming")
            fields = {field.name: (field.metadata or {}).get(COMMENT) for field in table.schema}
            _comment(db, "TABLE", name, (table.schema.metadata or {}).get(COMMENT), fields)
        # A view must name its table without the name of the attached file.
        db.execute("USE warehouse")
        for view in views:
            columns = ", ".join(_name(one.name) for one in view.columns)
            db.execute(f"CREATE VIEW {_name(view.name)} AS SELECT {columns} FROM {_name(view.table.name)}")
            comments = {one.name: one.description.encode() for one in view.columns}
            _comment(db, "VIEW", view.name, view.meaning.encode(), comments)
        db.execute("USE memory")
        db.execute("CHECKPOINT warehouse")
        db.execute("DETACH warehouse")


def _comment(
    db: duckdb.DuckDBPyConnection, kind: str, name: str, meaning: bytes | None, columns: Mapping[str, bytes | None]
) -> None:
    """Add comments to a table or view, and to its columns."""
    target = f"warehouse.{_name(name)}"
    comments = {
        f"{kind} {target}": meaning,
        **{f"COLUMN {target}.{_name(one)}": comment for one, comment in columns.items()},
    }
    for item, comment in comments.items():
        if comment:
            db.execute(f"COMMENT ON {item} IS {_text(comment.decode())}")


def _check(version: Path, tables: Mapping[str, pa.Table], views: Sequence[View]) -> None:
    with duckdb.connect(str(version), read_only=True) as db:
        for name, table in tables.items():
            count = db.execute(f"SELECT count(*) FROM {_name(name)}").fetchone()
            if count != (table.num_rows,):
                raise OSError(f"{name} reads back {count} rows of {table.num_rows}")
        for view in views:
            db.execute(f"FROM {_name(view.name)} LIMIT 0")


def _make_current(stable: Path, version: Path) -> None:
    link = stable.with_name(f".{stable.name}.{os.getpid()}.partial")
    link.unlink(missing_ok=True)
    link.symlink_to(version.relative_to(stable.parent))
    link.replace(stable)


def _tidy(folder: Path, stable: Path) -> None:
    """Remove old publications and the write-ahead logs of foreign sessions, which no later read may
    replay."""
    # Kept even if its name is not the newest: a clock may have gone back.
    current = stable.resolve()
    versions = [*sorted(path for path in folder.glob("*.duckdb") if path.name != current.name), current]
    foreign = [*folder.glob("*.wal"), Path(f"{stable}.wal")]
    for path in (*versions[:-KEPT], *foreign):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _text(value: str) -> str:
    """`value` as an SQL string."""
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    """`value` as an SQL identifier."""
    return '"' + value.replace('"', '""') + '"'


def connect(data: DataRoot) -> duckdb.DuckDBPyConnection:
    """A read-only connection to the current publication.

    Raises:
        UsageError: nothing has been published yet.
    """
    if not data.warehouse.exists():
        raise UsageError(f"{data.warehouse}: nothing published yet: run `make run`, or `featherweight compare`.")
    return duckdb.connect(str(data.warehouse), read_only=True)


@contextmanager
def reading(data: DataRoot) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection to the current publication, with an explanation for a damaged file.

    Raises:
        UsageError: nothing has been published yet, or the publication is damaged.
    """
    try:
        with connect(data) as db:
            yield db
    except duckdb.Error as error:
        # The machine is at fault, not the file.
        if disk.explained(error, data.root):
            raise
        raise UsageError(
            f"{data.warehouse.resolve()}: cannot be read: it is damaged, or a newer version wrote it; run `featherweight compare` "
            "to publish it anew."
        ) from None
