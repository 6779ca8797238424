"""A good row with a disturbed speed is trained again at night, after all else, and stays unless the
new attempt is ok."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from assets import nightly
from assets.tags import NIGHT as TAG
from assets.tags import SEEN
from pipelines.compare.table import comparison_rows
from pipelines.evaluate.cell import evaluate
from pipelines.lake.files import read_json, write_json
from pipelines.nightly import night
from pipelines.nightly.due import Due, due_cells
from pipelines.nightly.night import Done
from pipelines.runs import cells
from pipelines.runs.cells import Attempt
from pipelines.runs.run import RunHooks
from pipelines.runs.status import Status
from pipelines.settings.nightly import Nightly
from pipelines.train.cell import train
from pipelines.upkeep import prune
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.in_process import InProcess, clean_for, kill_at
from tests.nights import Nights, nights
from tests.project import TinyProject

NIGHT = "2026-11-25T0200"
OLD = "2026-01-01T00:00:00.000+00:00"
BUSY = "speed disturbed: 70 % of the processors were used by others"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Planted cells are of January 2026; those of lora-r8 trained beside other programs."""
    made = planted.lake(tmp_path)
    for method in ("base", "full", "qlora-r8"):
        made.cell(method)
    made.cell("lora-r8", other_cpu_pct=70.0)
    return made


def due(lake: Lake) -> dict[str, str]:
    return {cell.method: ", ".join(cell.because.values()) for cell in due_cells(lake.resolved())}


def noted(attempt: Attempt, **more: Any) -> None:
    """Put `more` over the attempt's recorded result."""
    file = attempt.folder / "result.json"
    write_json(file, (read_json(file) or {}) | more)


def retimed(lake: Lake, status: Status, *, began: str = OLD, **measured: Any) -> Attempt:
    """A later attempt at lora-r8 that was made only for its speed."""
    good = cells.latest(lake.data, cells.CellKey("tiny", "lora-r8", 1))
    assert good
    attempt = lake.trained("lora-r8", status, phase="train", detail="the kernel's word", **measured)
    spec = read_json(attempt.folder / "spec.json") or {}
    write_json(attempt.folder / "spec.json", spec | {"retimes": good.run_id})
    noted(attempt, started_at=began)
    return Attempt(attempt.key, attempt.folder)


def test_a_row_whose_speed_others_disturbed_is_due_and_says_by_how_much(lake: Lake) -> None:
    assert due(lake) == {"lora-r8": BUSY}
    lake.cell("full", other_cpu_pct=9.0)
    assert due(lake) == {"lora-r8": BUSY}, "below the threshold of speed_disturbed"


@pytest.mark.parametrize(("days", "expected"), [(None, {}), (3650, {}), (0.5, {"lora-r8": BUSY})])
def test_the_setting_says_after_how_many_days(lake: Lake, days: float | None, expected: dict[str, str]) -> None:
    assert due(lake.configured(nightly={"retime_after_days": days})) == expected


def test_a_cell_is_measured_again_once_a_week_however_that_ended(lake: Lake) -> None:
    now = datetime.now(UTC)
    retimed(lake, "killed", began=(now - timedelta(days=6.9)).isoformat())
    assert due(lake) == {}
    retimed(lake, "killed", began=(now - timedelta(days=7.1)).isoformat())
    assert due(lake) == {"lora-r8": BUSY}, "also after more tries than a killed cell has"
    lake.evaluated(retimed(lake, "ok", began=(now - timedelta(days=7.1)).isoformat(), other_cpu_pct=3.0))
    assert due(lake) == {}, "its speed is undisturbed now"


def test_an_attempt_that_a_wrong_clock_put_into_the_future_holds_nothing_up(lake: Lake) -> None:
    retimed(lake, "killed", began=(datetime.now(UTC) + timedelta(days=400)).isoformat())
    assert due(lake) == {"lora-r8": BUSY}
    retimed(lake, "killed", began="no time at all")
    assert due(lake) == {"lora-r8": BUSY}, "its id says so"


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": {"lora-r8": {"weight_decay": 0.5}}},
        {"profiles": {"local": {"evaluation": {"answers": 1}}}},
        {"profiles": {"local": {"training": {"memory_budget_gb": 4.0}}}},
    ],
)
def test_what_would_be_made_of_something_else_is_not_measured_again(lake: Lake, changes: dict[str, Any]) -> None:
    changed = lake.configured(**changes, nightly={"rerun_for": []})
    assert due(changed) == {}, "its results would be others"


def test_a_row_of_earlier_code_is_not_measured_again(lake: Lake) -> None:
    lake.cell("lora-r8", other_cpu_pct=70.0, prints={"code": "an older one"})
    assert due(lake) == {}


def test_a_cell_that_is_measured_again_is_nobody_elses(lake: Lake) -> None:
    running = lake.started("lora-r8")
    spec = read_json(running.folder / "spec.json") or {}
    write_json(running.folder / "spec.json", spec | {"retimes": "the good one"})
    assert due(lake) == {}
    changed = lake.configured(methods={"lora-r8": {"weight_decay": 0.5}})
    assert due(changed) == {}
    rows = {row["method"]: row["status"] for row in comparison_rows(lake.resolved())}
    assert rows["lora-r8"] == "ok", "the good row stays in sight"


def test_only_seeds_that_were_disturbed_are_trained_again_and_only_where_the_row_is(lake: Lake) -> None:
    seeds = lake.configured(profiles={"local": {"seeds": [1, 2, 3], "methods": ["full", "lora-r8"]}})
    for seed, share in ((1, 12.0), (2, 0.0), (3, 0.0)):
        seeds.cell("full", seed=seed, other_cpu_pct=share)
        seeds.cell("lora-r8", seed=seed, other_cpu_pct=20 * share)
    (cell,) = due_cells(seeds.resolved())
    assert cell.method == "lora-r8" and cell.retimes, "the mean of full's is 4 %, so its row is not marked"
    assert list(cell.because) == [1] and list(cell.seen) == [1]


def step(lake: Lake, done: Done, settings: Nightly | None = None) -> night.Step:
    return night.next_step(lake.project, settings or Nightly(), NIGHT, done)


def test_speeds_come_after_all_else_that_is_due_and_within_the_nights_limits(lake: Lake) -> None:
    lake.trained("full", "killed", phase="train")
    first = step(lake, Done(data=[True]))
    assert [cell.method for cell in first.cells] == ["full"]
    cell_names = [cell.name for cell in first.cells]
    second = step(lake, Done(data=[True], asked=cell_names))
    assert [(cell.method, cell.retimes) for cell in second.cells] == [("lora-r8", True)]
    cell_names += [cell.name for cell in second.cells]
    assert step(lake, Done(data=[True], asked=cell_names)).do == "publish"
    record = night.begin(lake.data, NIGHT)
    write_json(lake.data.lake / "nights" / f"{NIGHT}.json", record | {"started_at": OLD})
    assert step(lake, Done(data=[True]), Nightly(max_hours=1)).do == "publish"


def test_a_cell_that_was_asked_for_tonight_may_be_asked_for_its_speed(lake: Lake) -> None:
    (cell,) = due_cells(lake.resolved())
    same = Due(cell.model, cell.method, {1: "evaluation is missing"}, cell.seen)
    assert cell.name != same.name


@pytest.mark.parametrize("status", ["out_of_memory", "killed", "diverged", "lost"])
def test_a_good_row_outlives_a_re_timing_that_ends_worse_and_says_so(lake: Lake, status: Status) -> None:
    before = {row["method"]: row for row in comparison_rows(lake.resolved())}["lora-r8"]
    night.note_round(lake.data, NIGHT, due_cells(lake.resolved()))
    failed = retimed(lake, status, began=datetime.now(UTC).isoformat())
    row = {row["method"]: row for row in comparison_rows(lake.resolved())}["lora-r8"]
    assert row["status"] == "ok" and row["run_id"] == before["run_id"]
    assert row["status_detail"] == (
        f"its speed could not be measured again, {failed.run_id} ended as {status}: the kernel's word"
    )
    detail = {"status_detail": None}
    assert row | detail == before | detail, "all numbers are those of the good run"
    assert due(lake) == {}
    assert f"ok (not timed again: {status})" in night.in_words(night.end(lake.project, NIGHT, "done"))
    lake.cell("lora-r8")
    assert {row["method"]: row for row in comparison_rows(lake.resolved())}["lora-r8"]["status_detail"] is None


def test_the_nights_request_says_that_it_is_for_the_speed(lake: Lake) -> None:
    (cell,) = due_cells(lake.resolved())
    request = nightly._cell_request(NIGHT, cell, lake.project)
    for asset in ("trained_model", "evaluation"):
        config = request.run_config["ops"][asset]["config"]
        assert config["retime"] is True and config["seeds"] == [1] and "night" not in config
    assert json.loads(request.tags[SEEN]) == {"1": cell.seen[1]} and request.tags[TAG] == NIGHT


def at(project: TinyProject, method: str, launcher: InProcess | None = None, **options: Any) -> Attempt:
    hooks = RunHooks(say=lambda _message: None, launcher=launcher or InProcess())
    return train(project.resolved(), project.key(method), hooks=hooks, **options)[0]


def weights(attempt: Attempt) -> dict[str, bytes]:
    assert attempt.status == "ok", attempt.result.detail
    return {path.name: path.read_bytes() for path in attempt.model_folder.glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora-r8"])
def test_measuring_again_trains_again_to_the_same_bits(project: TinyProject, method: str) -> None:
    clean_for(project)
    first = at(project, method)
    saved, curve = weights(first), [point["train_loss"] for point in first.curve()]
    again = at(project, method, retime=True, known_run_id=first.run_id)
    assert again.run_id != first.run_id and again.retimes == first.run_id
    assert weights(again) == saved and [point["train_loss"] for point in again.curve()] == curve
    assert again.spec.recipe == first.spec.recipe and again.spec.fingerprints == first.spec.fingerprints
    assert cells.latest(project.data, project.key(method)) == again
    assert at(project, method, retime=True, known_run_id=first.run_id) == again, "somebody has measured it since"


@pytest.mark.slow
def test_a_re_timing_that_is_killed_costs_the_good_model_nothing(project: TinyProject) -> None:
    project.change(profiles={"local": {"training": {"epochs": 3, "checkpoint_every_steps": 2}}})
    clean_for(project)
    good = at(project, "lora-r8")
    saved = weights(good)
    killed = at(project, "lora-r8", kill_at(3), retime=True)
    assert killed.status == "killed" and killed.retimes == good.run_id
    assert cells.latest(project.data, project.key("lora-r8")) == good and weights(good) == saved
    assert good.model_folder not in [leftover.path for leftover in prune.leftovers(project.now())]
    assert at(project, "lora-r8") == good, "it is current, so nothing is trained"
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    assert evaluate(project.resolved(), project.key("lora-r8"), hooks=hooks)[0].attempt == good
    project.change(methods={"lora-r8": {"weight_decay": 0.5}})
    other = at(project, "lora-r8", retime=True)
    assert other.status == "ok" and other.retimes is None, "another recipe is another row, not another time"


@pytest.fixture
def week(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    project.change(profiles={"local": {"methods": ["lora-r8"]}})
    with nights(project, monkeypatch) as made:
        yield made


@pytest.mark.slow
def test_a_night_measures_a_disturbed_speed_again_and_the_next_one_does_not(week: Nights) -> None:
    week.project.change(profiles={"local": {"seeds": [1]}})
    assert week.night() == ["data", "lora-r8", "publish"]
    (good,) = cells.attempts(week.project.data, week.project.key("lora-r8"))
    measured = {**good.result.measured, "other_cpu_pct": 70.4}
    noted(good, measured=measured, started_at=OLD)
    assert week.night() == ["data", "lora-r8", "publish"]
    assert week.record()["rounds"][0]["cells"][0]["because"] == {"1": BUSY}
    assert week.statuses("lora-r8") == ["ok", "ok"]
    newest = cells.latest(week.project.data, week.project.key("lora-r8"))
    assert newest and newest.retimes == good.run_id and newest.evaluations()[-1].ok
    noted(newest, measured=measured)
    assert week.night() == ["data", "publish"], "not twice in a week"
    noted(newest, measured=measured, started_at=OLD)
    week.launcher = kill_at(1)
    assert week.night() == ["data", "lora-r8", "publish"]
    assert week.statuses("lora-r8") == ["ok", "ok", "killed"]
    assert week.record()["outcome"] == {"smollm2-135m × lora-r8": ["ok (not timed again: killed)"]}
