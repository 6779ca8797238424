"""Damaged files of our own: empty, cut off, replaced, or a folder.

Each gives one sentence, and the other cells continue.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.clean import results
from pipelines.compare.compare import compare, published_rows
from pipelines.compare.table import comparison_rows
from pipelines.errors import UsageError
from pipelines.lake.files import write_json
from pipelines.lake.paths import DataRoot, data_root
from tests.fakes import planted
from tests.in_process import clean_for
from tests.project import TinyProject


def damaged(path: Path) -> Iterator[str]:
    """Put several kinds of damage into `path` in place of a file of ours, one after the other."""
    for what in (b"", b'{"fingerprint": "a', b"\xff\xfe\0", b"[1]", b"5", b'"x"', b"{}", b"[" * 100_000, b"9" * 5000):
        path.write_bytes(what)
        yield repr(what[:20])
    path.unlink()
    path.mkdir()
    yield "a folder"
    path.rmdir()
    path.symlink_to(path.name)
    yield "a link to itself"


def test_a_damaged_name_of_the_current_examples_is_said_with_what_to_do(tmp_path: Path) -> None:
    data = DataRoot(tmp_path)
    data.clean.mkdir(parents=True)
    assert results.current(data) is None
    for what in damaged(data.clean / "current.json"):
        with pytest.raises(UsageError, match=r"current\.json .*; remove it, then run `featherweight clean`"):
            assert results.current(data), what


def test_what_a_newer_version_noted_of_the_current_examples_is_left_out(tmp_path: Path) -> None:
    data = DataRoot(tmp_path)
    noted = {"read": 1, "accepted": 1, "rejected": 0, "train": 1, "eval": 0, "reasons": {}, "of_tomorrow": 1}
    write_json(data.clean / "current.json", {"fingerprint": "abc", **noted})
    result = results.current(data)
    assert result and result.folder == data.clean / "abc" and result.train == 1


@pytest.mark.parametrize("name", ["result.json", "spec.json", "state.json", "child.json"])
def test_a_run_with_a_damaged_file_hides_no_other(tmp_path: Path, name: str) -> None:
    lake = planted.lake(tmp_path)
    lake.cell("full")
    broken = lake.trained("lora-r8").folder
    for file in ("result.json", "state.json", name) if name != "spec.json" else (name,):
        (broken / file).unlink(missing_ok=True)
    for what in damaged(broken / name):
        status = {row["method"]: row["status"] for row in comparison_rows(lake.resolved())}
        assert status["full"] == "ok" and status["lora-r8"] == ("ok" if name == "spec.json" else "lost"), what


def test_damaged_fields_of_a_result_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path)
    folder = lake.trained("full").folder
    write_json(folder / "result.json", {"status": "well", "measured": 5, "fingerprints": [], "recipe": "x"})
    (row,) = [row for row in comparison_rows(lake.resolved()) if row["method"] == "full"]
    assert row["status"] == "lost" and row["train_loss"] is None


@pytest.mark.parametrize("name", ["a?b", "a\\b"])
def test_a_data_root_that_duckdb_cannot_open_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(tmp_path / name))
    with pytest.raises(UsageError, match=r"which DuckDB cannot have in a path") as caught:
        data_root()
    str(caught.value).encode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a#b %20 'c' \"d\" [e]"])
def test_a_data_root_with_other_odd_signs_is_published(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    lake = planted.lake(tmp_path / name)
    lake.cell("full")
    compare(lake.resolved().project)
    assert [row["status"] for row in published_rows(lake.data) if row["method"] == "full"] == ["ok"]


@pytest.mark.parametrize("name", ["examples.parquet", "rejects.parquet"])
def test_a_damaged_result_of_cleaning_is_said_with_what_to_do(project: TinyProject, name: str) -> None:
    clean_for(project)
    current = results.current(project.data)
    assert current
    for what in damaged(current.folder / name):
        with pytest.raises(UsageError, match=rf"{name}: .* is damaged or gone; run `featherweight clean`"):
            assert project.resolved() and results.rejects(current), what
