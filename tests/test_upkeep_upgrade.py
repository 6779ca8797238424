"""An upgrade costs nobody a grid: rows of earlier code are shown, used and left alone unless a user
asks for new ones."""

import pytest

from pipelines.compare.compare import compare, decision
from pipelines.compare.decide import Limits
from pipelines.compare.table import comparison_rows
from pipelines.lake.files import read_json, write_json
from pipelines.nightly.due import due_cells
from pipelines.project import Project
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.upkeep.upgrade import noticed
from tests.fakes import planted
from tests.fakes.planted import Lake

EARLIER = {"code": "of-yesterday"}
QUIET = RunHooks(say=lambda _: None)


@pytest.fixture
def upgraded(tmp_path) -> Lake:
    """A grid that earlier code trained and evaluated."""
    lake = planted.lake(tmp_path)
    for method, bits in (("base", 1.2), ("full", 0.9), ("lora-r8", 0.91), ("qlora-r8", 0.95)):
        made_by_earlier_code(lake.cell(method, bits=bits, prints=EARLIER))
    return lake


def made_by_earlier_code(attempt: Attempt) -> None:
    """Mark the attempt's evaluation as earlier code's, too, and let both take half an hour."""
    (evaluation,) = attempt.evaluations()
    for folder in (attempt.folder, evaluation.folder):
        result = read_json(folder / "result.json") or {}
        prints = result["fingerprints"]
        if "evaluation" in prints:
            prints |= {"evaluation": "another", "evaluation_code": "of-yesterday"}
        write_json(folder / "result.json", {**result, "seconds": 1800.0})


def test_rows_of_earlier_code_are_shown_as_stale_by_code_alone(upgraded: Lake):
    rows = comparison_rows(upgraded.resolved())
    assert {(row["method"], row["stale_because"]) for row in rows} == {
        (method, "code") for method in ("base", "full", "lora-r8", "qlora-r8")
    }
    assert all(row["eval_bits_per_byte"] for row in rows)


def test_no_night_and_no_run_of_the_whole_makes_them_again(upgraded: Lake):
    assert due_cells(upgraded.resolved()) == []
    rerun_for = upgraded.project.experiments.nightly.rerun_for
    _, reused = train(upgraded.resolved(), CellKey("tiny", "full", 1), hooks=QUIET, rerun_for=rerun_for)
    assert reused


def test_a_night_that_is_told_to_makes_them_again(upgraded: Lake):
    configured = upgraded.configured(nightly={"rerun_for": ["code"]})
    due = due_cells(configured.resolved())
    assert {cell.method: cell.because for cell in due} == {
        method: {1: "stale: code"} for method in ("base", "full", "lora-r8", "qlora-r8")
    }


@pytest.mark.parametrize(("changes", "why"), [
    ({"methods": {"full": {"weight_decay": 0.2}}}, "stale: recipe, code"),
    ({"profiles": {"local": {"evaluation": {"max_new_tokens": 9}}}}, "stale: evaluation"),
])  # fmt: skip
def test_another_change_makes_them_due_as_ever(upgraded: Lake, changes: dict[str, object], why: str):
    due = {cell.method: cell.because for cell in due_cells(upgraded.configured(**changes).resolved())}
    assert due["full"] == {1: why}


def test_a_cell_that_failed_is_tried_again_by_new_code(tmp_path):
    lake = planted.lake(tmp_path)
    for _ in range(3):
        lake.trained("full", "failed", detail="a fault of yesterday", prints=EARLIER)
    assert {cell.method: cell.because for cell in due_cells(lake.resolved())}["full"] == {1: "stale: code"}


def test_decisions_and_picks_are_taken_among_them(upgraded: Lake):
    answer = decision(upgraded.project, Limits(max_loss=0.2))
    assert answer.verdict == "use"
    assert any("before an upgrade changed the code" in reason for reason in answer.reasons)


def test_a_row_of_the_new_code_is_compared_with_those_of_the_old(upgraded: Lake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.compare.compare.keep_predictions", lambda _resolved: None)
    wider = {"local": {"methods": ["base", "full", "lora-r8", "qlora-r8", "new"]}}
    changed = upgraded.configured(methods={"new": {"kind": "lora", "rank": 4}}, profiles=wider)
    changed.cell("new", bits=0.7)
    result = compare(changed.project)
    assert {pick["compared"] for pick in result.picks} == {4}
    assert [row["method"] for row in result.rows if not row["is_stale"]] == ["new"]


def test_the_first_command_says_how_many_rows_and_how_long_and_the_next_one_nothing(upgraded: Lake):
    notice = noticed(upgraded.project)
    assert notice is not None and (notice.stale, notice.rows, notice.hours) == (4, 4, pytest.approx(4.0))
    assert "4 of 4 rows are stale by `code`" in notice.in_words() and "about 4.0 hours" in notice.in_words()
    assert noticed(upgraded.project) is None


def test_nothing_is_said_of_a_new_data_root_or_of_current_rows(tmp_path):
    empty = Project(planted.DataRoot(tmp_path / "empty"), planted.lake(tmp_path).project.experiments, "local")
    assert noticed(empty) is None
    lake = planted.lake(tmp_path)
    lake.cell("full")
    assert noticed(lake.project) is None
