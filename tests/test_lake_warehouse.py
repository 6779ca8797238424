"""The published warehouse is readable at any moment, whatever publishers and other sessions do."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Thread

import duckdb
import pyarrow as pa
import pytest

from pipelines.errors import UsageError, WorkError
from pipelines.lake import warehouse
from pipelines.lake.paths import DataRoot
from pipelines.lake.schema import Column, Table, Type, View, count, text
from pipelines.lake.warehouse import arrow_table, publish

LAST = 6
# Reads until the last publication appears; fails on an error, half a publication, or one older
# than the last.
READ_ON = """
import sys, duckdb
last, seen = int(sys.argv[2]), 0
print("ready", flush=True)
while seen < last:
    with duckdb.connect(sys.argv[1], read_only=True) as db:
        one, = db.execute("SELECT n FROM comparison").fetchone()
        other, count = db.execute("SELECT min(n), count(*) FROM training_curve").fetchone()
    assert one == other and count == one * 1000, (one, other, count)
    assert one >= seen, (one, seen)
    seen = one
"""
# A user's shell that opened the published file for writing before a publication, and continues to
# write after it.
WRITE_ON = """
import sys, duckdb
db = duckdb.connect(sys.argv[1])
db.execute("SET checkpoint_threshold = '1 GB'")
db.execute("CREATE TABLE mine (n INTEGER)")
print("open", flush=True)
sys.stdin.readline()
db.execute("INSERT INTO mine SELECT * FROM range(1000)")
db.execute("UPDATE comparison SET n = -1")
print("written", flush=True)
sys.stdin.read()
"""
PUBLISH_ON_FULL_DISK = """
import sys
from pathlib import Path
from pipelines.errors import WorkError
from pipelines.lake.paths import DataRoot
from pipelines.lake.schema import Table, text
from pipelines.lake.warehouse import arrow_table, publish
table = Table("comparison", "Texts.", (text("text", "A text."),))
rows = [{"text": f"{n} {n ** 9}"} for n in range(100_000)]
try:
    publish(DataRoot(Path(sys.argv[1])), {"comparison": arrow_table(rows, table)})
except WorkError as error:
    print(error)
    sys.exit(42)
"""
# Checks for the published name before every system call of Python during another publication.
WATCH_THE_NAME = """
import os, sys
from pathlib import Path
from pipelines.lake.paths import DataRoot
from pipelines.lake.schema import Table, count
from pipelines.lake.warehouse import arrow_table, publish
table = Table("comparison", "Numbers.", (count("n", "A number."),))
data, calls = DataRoot(Path(sys.argv[1])), []
def publish_one(n):
    publish(data, {"comparison": arrow_table([{"n": n}], table)})
publish_one(1)
sys.addaudithook(lambda event, _: calls.append((event, os.path.exists(data.warehouse))))
publish_one(2)
calls = calls[:]
assert "os.rename" in dict(calls), calls
print([event for event, there in calls if not there])
"""


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


def tables(n: int) -> dict[str, pa.Table]:
    """Publication `n`: the value `n` in one row of one table, and in n × 1,000 rows of another."""
    table = Table("comparison", "Numbers.", (count("n", "A number."),))
    return {"comparison": arrow_table([{"n": n}], table), "training_curve": arrow_table([{"n": n}] * n * 1000, table)}


def published(data: DataRoot) -> int:
    with warehouse.connect(data) as db:
        return read(db)


def read(db: duckdb.DuckDBPyConnection) -> int:
    row = db.execute("SELECT n FROM comparison").fetchone()
    assert row
    return row[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def python(code: str, *arguments: object, says: str) -> Iterator[subprocess.Popen[str]]:
    """A real process, returned once it has printed `says`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == f"{says}\n"
            yield process
        finally:
            process.kill()


def test_a_publication_is_a_link_to_a_read_only_file(data: DataRoot) -> None:
    version = publish(data, tables(1))
    assert data.warehouse.is_symlink()
    assert not os.readlink(data.warehouse).startswith("/"), "a moved data root must keep its link"
    assert data.warehouse.resolve() == version
    assert version.stat().st_mode & 0o777 == 0o444
    assert published(data) == 1


def test_every_client_from_1_2_on_can_read_it(data: DataRoot) -> None:
    publish(data, tables(1))
    with warehouse.connect(data) as db:
        row = db.execute("SELECT tags['storage_version'] FROM duckdb_databases() WHERE NOT internal").fetchone()
    assert row == ("v1.2.0+",)


def test_its_own_connections_cannot_write(data: DataRoot) -> None:
    publish(data, tables(1))
    with warehouse.connect(data) as db, pytest.raises(duckdb.Error, match="read-only"):
        db.execute("DELETE FROM comparison")


def test_values_come_back_with_their_types_and_missing_ones_as_null(data: DataRoot) -> None:
    columns: dict[str, Type] = {
        "name": "VARCHAR", "loss": "DOUBLE", "steps": "INTEGER", "ok": "BOOLEAN", "finished": "TIMESTAMPTZ"
    }  # fmt: skip
    table = Table("comparison", "Values.", tuple(Column(name, kind, "A value.") for name, kind in columns.items()))
    finished = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=9)))
    row = {"name": "한글 'x'", "loss": 1, "steps": 2.0, "ok": False, "finished": finished.isoformat()}
    publish(data, {"comparison": arrow_table([row, {}], table)})
    with warehouse.connect(data) as db:
        kinds = {name: kind for name, kind, *_ in db.execute("DESCRIBE comparison").fetchall()}
        rows = db.execute("FROM comparison").fetchall()
    assert kinds == {**columns, "finished": "TIMESTAMP WITH TIME ZONE"}
    assert rows == [("한글 'x'", 1.0, 2, False, finished), (None,) * 5]


def test_what_tables_and_columns_mean_can_be_asked_of_the_file(data: DataRoot) -> None:
    table = Table(
        "comparison", "It's 100 % 'quoted'; \"so\".", (text("a", "It's a."), count("b", "한글 -- no comment.", "GB"))
    )
    view = View("short", "Only b's.", table, table.pick("b"))
    publish(data, {"comparison": arrow_table([{"a": "x", "b": 2}], table)}, [view])
    with warehouse.connect(data) as db:
        columns = "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal ORDER BY 1, 2"
        assert db.execute("SELECT comment FROM duckdb_tables()").fetchall() == [(table.meaning,)]
        assert db.execute("SELECT comment FROM duckdb_views() WHERE NOT internal").fetchall() == [(view.meaning,)]
        assert db.execute(columns).fetchall() == [
            ("comparison", "a", "It's a."),
            ("comparison", "b", "한글 -- no comment. Unit: GB (1e9 bytes)."),
            ("short", "b", "한글 -- no comment. Unit: GB (1e9 bytes)."),
        ]
        assert db.execute("FROM short").fetchall() == [(2,)]


def test_a_name_that_is_no_column_is_an_error_and_no_null() -> None:
    table = Table("comparison", "Numbers.", (count("train_loss", "A number."), count("n", "A number.")))
    with pytest.raises(ValueError, match="table comparison has no column 'train_los'; the nearest is 'train_loss'"):
        arrow_table([{"n": 1}, {"train_los": 2}], table)
    assert arrow_table([table.narrowed({"n": 1, "newer": 2})], table).to_pylist() == [{"train_loss": None, "n": 1}]


def test_a_reader_open_across_a_publish_keeps_the_old_and_new_ones_see_the_new(data: DataRoot) -> None:
    publish(data, tables(1))
    with warehouse.connect(data) as before:
        publish(data, tables(2))
        publish(data, tables(3))
        publish(data, tables(4))
        assert read(before) == 1
        assert before.execute("SELECT count(*) FROM training_curve").fetchone() == (1000,)
        assert published(data) == 4


def test_a_reader_process_open_across_publishes_keeps_the_old(data: DataRoot) -> None:
    publish(data, tables(1))
    code = (
        "import sys, duckdb; db = duckdb.connect(sys.argv[1], read_only=True); print('open', flush=True);"
        "sys.stdin.readline(); print(db.execute('SELECT count(*), max(n) FROM training_curve').fetchone())"
    )
    with python(code, data.warehouse, says="open") as reader:
        for n in (2, 3, 4):
            publish(data, tables(n))
        assert reader.communicate("go\n")[0] == "(1000, 1)\n"


def test_four_readers_never_meet_an_error_while_others_publish(data: DataRoot) -> None:
    publish(data, tables(1))
    errors: list[BaseException] = []

    def read_on() -> None:
        seen = 0
        try:
            while seen < LAST + 1:
                now = published(data)
                assert now >= seen
                seen = now
        except BaseException as error:
            errors.append(error)

    here = [Thread(target=read_on) for _ in range(2)]
    arguments = (data.warehouse, LAST + 1)
    with python(READ_ON, *arguments, says="ready") as one, python(READ_ON, *arguments, says="ready") as two:
        for thread in here:
            thread.start()
        for n in range(2, LAST + 2):
            publish(data, tables(n))
        for thread in here:
            thread.join()
        assert [one.wait(), two.wait()] == [0, 0]
    assert errors == []


def test_the_published_name_is_there_at_every_moment_of_a_publish(data: DataRoot) -> None:
    command = [sys.executable, "-c", WATCH_THE_NAME, str(data.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_two_publishers_at_once_make_two_whole_publications(data: DataRoot) -> None:
    versions: list[Path] = []
    both = [Thread(target=lambda n=n: versions.append(publish(data, tables(n)))) for n in (1, 2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(versions) == 2
    for version in versions:
        with duckdb.connect(str(version), read_only=True) as db:
            assert db.execute("SELECT count(*) / max(n) FROM training_curve").fetchone() == (1000.0,)
    assert data.warehouse.resolve() == versions[-1]


def test_a_foreign_write_ahead_log_is_gone_after_the_next_publish(data: DataRoot) -> None:
    first = publish(data, tables(1))
    logs = [Path(f"{data.warehouse}.wal"), Path(f"{first}.wal"), first.parent / "20200101T000000000-aaaaaa.duckdb.wal"]
    for log in logs:
        log.write_bytes(b"somebody else's")
    publish(data, tables(2))
    assert [log for log in logs if log.exists()] == []
    assert published(data) == 2


def test_a_session_that_writes_after_a_publish_harms_no_new_reader(data: DataRoot) -> None:
    first = publish(data, tables(1))
    # For everybody but root the file's mode already refuses such a session.
    first.chmod(0o644)
    with python(WRITE_ON, data.warehouse, says="open") as session:
        publish(data, tables(2))
        assert session.stdin and session.stdout
        session.stdin.write("go\n")
        session.stdin.flush()
        assert session.stdout.readline() == "written\n"
        assert published(data) == 2
        # A kill leaves the write-ahead log as it is.
        session.kill()
        session.wait()
        with python(READ_ON, data.warehouse, 2, says="ready") as reader:
            assert reader.wait() == 0
    publish(data, tables(3))
    assert published(data) == 3
    assert not [name for name in names(data.root) + names(first.parent) if name.endswith(".wal")]


def test_only_two_versions_are_kept(data: DataRoot) -> None:
    versions = [publish(data, tables(n)) for n in (1, 2, 3, 4)]
    assert names(versions[0].parent) == [version.name for version in versions[-2:]]
    assert sorted(path.name for path in data.root.iterdir()) == ["lake", "warehouse", "warehouse.duckdb"]


def test_the_current_version_is_kept_when_the_clock_goes_back(data: DataRoot) -> None:
    folder = data.root / "warehouse"
    folder.mkdir()
    for name in ("29991231T000000000-aaaaaa", "29991231T000000001-bbbbbb"):
        (folder / f"{name}.duckdb").write_bytes(b"published before the clock was set right")
    publish(data, tables(1))
    publish(data, tables(2))
    assert published(data) == 2


@pytest.mark.parametrize("name", ["it's", 'a "b"', "semi; colon", "한글 폴더", "per%cent"])
def test_the_root_may_have_any_name(tmp_path: Path, name: str) -> None:
    data = DataRoot(tmp_path / name)
    publish(data, tables(1))
    assert published(data) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_moved_root_still_reads(tmp_path: Path) -> None:
    publish(DataRoot(tmp_path / "here"), tables(1))
    (tmp_path / "here").rename(tmp_path / "there")
    assert published(DataRoot(tmp_path / "there")) == 1


def test_a_full_disk_is_a_work_error_and_the_last_publication_still_reads(data: DataRoot) -> None:
    first = publish(data, tables(1))

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-c", PUBLISH_ON_FULL_DISK, str(data.root)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files_only, check=False)
    assert done.returncode == 42, done.stderr
    assert f"cannot publish {data.warehouse}" in done.stdout
    assert names(first.parent) == [first.name]
    assert published(data) == 1


@pytest.mark.parametrize("blocked", ["warehouse", "lake", "lake/locks"])
def test_a_file_where_a_folder_should_be_is_a_work_error(data: DataRoot, blocked: str) -> None:
    path = data.root / blocked
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(WorkError, match=str(data.root)):
        publish(data, tables(1))
    assert not data.warehouse.exists()


def test_a_link_that_cannot_be_replaced_is_a_work_error_and_the_last_publication_still_reads(data: DataRoot) -> None:
    first = publish(data, tables(1))
    (data.root / f".{data.warehouse.name}.{os.getpid()}.partial").mkdir()
    with pytest.raises(WorkError, match="The last publication is untouched"):
        publish(data, tables(2))
    assert names(first.parent) == [first.name]
    assert published(data) == 1


def test_a_table_that_does_not_read_back_is_never_published(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(data, tables(1))
    monkeypatch.setattr(warehouse, "_write", lambda version, *_: version.write_bytes(b"no database at all" * 1000))
    with pytest.raises(WorkError):
        publish(data, tables(2))
    assert published(data) == 1


def test_reading_before_the_first_publication_says_what_to_do(data: DataRoot) -> None:
    with pytest.raises(UsageError, match="make run"):
        warehouse.connect(data)


@pytest.mark.parametrize("cut", [slice(0), slice(100), slice(40_000), slice(5, None)])
def test_a_damaged_publication_is_said_with_what_to_do(data: DataRoot, cut: slice) -> None:
    warehouse.publish(data, tables(2))
    file = data.warehouse.resolve()
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[cut])
    with pytest.raises(UsageError, match=r"damaged, .* run `featherweight compare`"), warehouse.reading(data) as db:
        assert read(db)
    warehouse.publish(data, tables(3))
    assert published(data) == 3
