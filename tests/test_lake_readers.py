"""The published table for its readers: DuckDB's command line, Python, pandas and a SQL client,
without any blocking."""

import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import pytest
import sqlalchemy

from pipelines.compare.compare import compare
from pipelines.lake import warehouse
from pipelines.lake.paths import PROJECT
from tests.fakes import planted
from tests.fakes.planted import Lake

QUERY = "SELECT method, status, eval_bits_per_byte FROM comparison ORDER BY method"
CLI = Path(sys.executable).parent / "duckdb"
METHODS = ("base", "full", "lora-r8", "qlora-r8")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr("pipelines.compare.compare.keep_predictions", lambda _stage: None)
    lake = planted.lake(tmp_path)
    for method in METHODS:
        lake.cell(method)
    compare(lake.project)
    return lake


def test_every_documented_client_reads_the_same_table(published: Lake) -> None:
    path = published.data.warehouse
    expected = [(method, "ok", 0.9) for method in METHODS]
    with duckdb.connect(str(path), read_only=True) as db:
        assert db.sql(QUERY).fetchall() == expected
        assert [tuple(row) for row in db.sql(QUERY).df().itertuples(index=False)] == expected
    command = [str(CLI), "-readonly", "-csv", "-noheader", str(path), QUERY]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == [f"{method},{status},{bits}" for method, status, bits in expected]
    engine = sqlalchemy.create_engine(f"duckdb:///{path}", connect_args={"read_only": True})
    with engine.connect() as client:
        assert [tuple(row) for row in client.execute(sqlalchemy.text(QUERY))] == expected


def test_a_client_that_would_write_is_refused(published: Lake) -> None:
    command = [str(CLI), "-readonly", str(published.data.warehouse), "DELETE FROM comparison"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "read-only" in done.stderr
    with duckdb.connect(str(published.data.warehouse), read_only=True) as db:
        assert db.sql("SELECT count(*) FROM comparison").fetchall() == [(4,)]


@pytest.mark.slow
def test_eight_cells_end_while_four_readers_loop(published: Lake) -> None:
    """Readers see each publication whole or not at all: as many runs as its newest table names, and
    never an error."""
    done, problems, seen = threading.Event(), [], set()

    def read() -> None:
        while not done.is_set():
            try:
                with warehouse.connect(published.data) as db:
                    cursor = db.execute(
                        "SELECT (SELECT count(*) FROM training_runs), (SELECT count(*) FROM comparison)"
                    )
                    runs, rows = cursor.fetchall()[0]
                    seen.add(runs)
                    assert rows == 4 and 4 <= runs <= 12
            except Exception as error:
                problems.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(2):
        for method in METHODS:
            published.cell(method)
            compare(published.project)
    done.set()
    for reader in readers:
        reader.join()
    assert not problems
    with warehouse.connect(published.data) as db:
        assert db.execute("SELECT count(*) FROM training_runs").fetchall() == [(12,)]
    assert max(seen) <= 12


def test_the_documentation_shows_these_clients() -> None:
    text = (PROJECT / "docs" / "operating.md").read_text(encoding="utf-8")
    for shown in ("duckdb -readonly", "read_only=True", ".df()", "duckdb:///", 'connect_args={"read_only": True}'):
        assert shown in text
