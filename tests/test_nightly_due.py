"""The cells that are due in a night and its steps, from cells planted on disk.

No Dagster, no training.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.compare.table import comparison_rows
from pipelines.errors import UsageError
from pipelines.generate.answers import Answer, Usage
from pipelines.generate.journal import Request, opened
from pipelines.lake.files import read_json, write_json
from pipelines.nightly import night
from pipelines.nightly.due import Due, due_cells
from pipelines.nightly.night import Done
from pipelines.runs.status import Status
from pipelines.settings.nightly import Nightly
from pipelines.train.cell import train
from pipelines.weights import hub
from tests.fakes import planted
from tests.fakes.planted import Lake

NIGHT = "2026-11-25T0200"
METHODS = ("base", "full", "lora-r8", "qlora-r8")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


@pytest.fixture
def full_grid(lake: Lake) -> Lake:
    for method in METHODS:
        lake.cell(method)
    return lake


def due(lake: Lake) -> dict[str, str]:
    """The reason why each method is due."""
    return {cell.method: ", ".join(cell.because.values()) for cell in due_cells(lake.resolved())}


def test_an_unchanged_night_finds_nothing_due(full_grid: Lake) -> None:
    assert due(full_grid) == {}


def test_what_was_never_run_is_due_the_untouched_model_first(lake: Lake) -> None:
    lake.cell("full")
    cells = due_cells(lake.configured(profiles={"local": {"methods": ["lora-r8", "full", "base"]}}).resolved())
    assert [cell.method for cell in cells] == ["base", "lora-r8"]
    assert cells[0].because == {1: "missing"} and cells[0].seen == {1: ""}


def test_a_changed_recipe_of_one_method_makes_that_method_due(full_grid: Lake) -> None:
    changed = full_grid.configured(methods={"lora-r8": {"learning_rate": 0.003}})
    assert due(changed) == {"lora-r8": "stale: recipe"}


def test_changed_data_makes_all_that_train_due(full_grid: Lake) -> None:
    full_grid.examples(train=("a", "b", "c", "d"))
    assert due(full_grid) == dict.fromkeys(METHODS[1:], "stale: data")


def test_a_changed_evaluation_is_evaluated_without_training(full_grid: Lake) -> None:
    changed = full_grid.configured(profiles={"local": {"evaluation": {"answers": 1}}})
    assert due(changed) == dict.fromkeys(METHODS, "stale: evaluation")


def test_what_is_due_is_what_the_table_calls_stale_or_missing(full_grid: Lake) -> None:
    changed = full_grid.configured(methods={"full": {"weight_decay": 0.5}, "dora": {"kind": "lora", "rank": 4}})
    changed = changed.configured(profiles={"local": {"methods": [*METHODS, "dora"]}})
    table = {
        row["method"] for row in comparison_rows(changed.resolved()) if row["is_stale"] or row["status"] == "missing"
    }
    assert set(due(changed)) == table == {"full", "dora"}


def test_out_of_memory_waits_for_another_recipe_or_budget(full_grid: Lake) -> None:
    full_grid.trained("full", "out_of_memory", phase="train", budget=2.0)
    budgeted = full_grid.configured(profiles={"local": {"training": {"memory_budget_gb": 2.0}}})
    assert "full" not in due(budgeted)
    full_grid.examples(train=("a", "b", "c", "d"))
    assert "full" not in due(budgeted), "other data is no reason"
    more = full_grid.configured(profiles={"local": {"training": {"memory_budget_gb": 3.0}}})
    assert due(more)["full"] == "out_of_memory, but another memory budget now"
    smaller = {
        "profiles": {"local": {"training": {"memory_budget_gb": 2.0}}},
        "methods": {"full": {"weight_decay": 0.5}},
    }
    assert due(full_grid.configured(**smaller))["full"] == "out_of_memory, but another recipe now"


SMALL: dict[str, Any] = {"memory_budget_gb": 1.5}
BUDGETS: dict[str, dict[str, Any]] = {
    "training": {"training": SMALL},
    "profile": {"profiles": {"local": {"training": SMALL}}},
    "profile's pair": {"profiles": {"local": {"overrides": {"tiny": {"full": SMALL}}}}},
    "method": {"methods": {"full": SMALL}},
    "model": {"models": {"tiny": SMALL}},
    "model's pair": {"models": {"tiny": {"overrides": {"full": SMALL}}}},
}


@pytest.mark.parametrize("level", BUDGETS)
def test_a_budget_below_a_rows_peak_makes_it_due_and_stale(lake: Lake, level: str) -> None:
    """As planted, `full` used 2.0 GB, and the others less than the budget."""
    for method in METHODS[2:]:
        lake.cell(method, peak_memory_gb=1.2)
    lake.cell("base")
    row = lake.cell("full", peak_memory_gb=2.0)
    smaller = lake.configured(**BUDGETS[level])
    assert due(smaller) == {"full": "memory budget is 1.5 GB now, it used 2.00"}
    assert due(smaller.configured(nightly={"rerun_for": []})) == due(smaller)
    stale = {row["method"]: row["stale_because"] for row in comparison_rows(smaller.resolved()) if row["is_stale"]}
    assert stale == {"full": "memory budget"}
    tried, reused = train(smaller.resolved(), row.key, rerun_for=())
    assert not reused and tried.run_id != row.run_id and tried.spec.memory_budget_gb == 1.5


@pytest.mark.parametrize(
    ("had", "now", "peaks", "is_due"),
    [
        (None, 2.5, {}, False),
        (2.5, 1.5, {}, True),
        # Within the overshoot of a watchdog: the cell ended ok under that very budget.
        (1.5, 1.5, {}, False),
        (1.0, 1.5, {}, False),
        (None, 1.5, {"peak_memory_gb": 1.0, "load_peak_memory_gb": 1.8}, True),
        (None, 1.5, {"peak_memory_gb": 1.0, "gpu_device_peak_gb": 1.8}, True),
        # The host's memory does not count beside a card.
        (None, 1.5, {"peak_memory_gb": 1.0, "host_peak_memory_gb": 9.0}, False),
    ],
)
def test_what_ended_well_under_a_budget_is_not_due_for_it(
    lake: Lake, had: float | None, now: float, peaks: dict[str, Any], is_due: bool
) -> None:
    lake.cell("full", budget=had, **peaks)
    smaller = {"methods": ["full"], "training": {"memory_budget_gb": now}}
    assert bool(due(lake.configured(profiles={"local": smaller}))) is is_due


def test_out_of_memory_on_another_machine_is_tried_on_this_one(full_grid: Lake) -> None:
    full_grid.trained("full", "out_of_memory", prints={"machine": "a smaller one"})
    assert due(full_grid) == {"full": "out_of_memory, but another machine now"}


@pytest.mark.parametrize("status", ["killed", "lost", "timed_out", "failed"])
def test_an_ending_that_may_pass_is_tried_again_but_not_for_ever(full_grid: Lake, status: Status) -> None:
    full_grid.trained("full", status, phase="train")
    assert f"{status} before" in due(full_grid)["full"]
    full_grid.trained("full", status, phase="train")
    full_grid.trained("full", status, phase="train")
    assert "full" not in due(full_grid)
    full_grid.trained("full", status, phase="train", last_step=9)
    assert "full" in due(full_grid), "it had got further"


def test_what_diverged_waits_for_a_change(full_grid: Lake) -> None:
    full_grid.trained("full", "diverged", phase="train")
    assert "full" not in due(full_grid)
    assert due(full_grid.configured(methods={"full": {"learning_rate": 1e-6}})) == {"full": "stale: recipe"}


def test_a_cell_that_runs_is_nobody_elses(full_grid: Lake) -> None:
    full_grid.configured(methods={"full": {"learning_rate": 1e-6}}).started("full")
    assert "full" not in due(full_grid)


def test_unavailable_is_tried_again_once_it_is_within_reach(full_grid: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    full_grid.trained("full", "unavailable", phase="load", detail="cannot reach the hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "full" not in due(full_grid)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "_answers", lambda *_: True)
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    assert due(full_grid) == {"full": "unavailable before, within reach now"}
    full_grid.trained("full", "unavailable", phase="load", detail="accept its terms")
    full_grid.trained("full", "unavailable", phase="load", detail="accept its terms")
    assert "full" not in due(full_grid), "the hub said the same twice"


def test_only_the_seeds_that_need_it_are_due(lake: Lake) -> None:
    lake.cell("lora-r8")
    lake.cell("lora-r8", seed=2)
    changed = lake.configured(profiles={"local": {"methods": ["lora-r8"], "seeds": [1, 2, 3]}})
    (cell,) = due_cells(changed.resolved())
    assert cell.because == {3: "missing"}


@pytest.mark.parametrize(("status", "is_due"), [("killed", True), ("out_of_memory", False)])
def test_an_evaluation_that_ended_badly(lake: Lake, status: Status, is_due: bool) -> None:
    for method in METHODS[1:]:
        lake.cell(method)
    lake.evaluated(lake.trained("base"), status)
    assert ("base" in due(lake)) is is_due


def step(lake: Lake, done: Done, nightly: Nightly | None = None) -> night.Step:
    return night.next_step(lake.project, nightly or Nightly(), NIGHT, done)


def test_a_night_makes_data_then_what_is_due_then_publishes_once(lake: Lake) -> None:
    assert step(lake, Done()).do == "data"
    night_step = step(lake, Done(data=[True]))
    assert night_step.do == "cells" and [cell.method for cell in night_step.cells] == list(METHODS)
    for method in METHODS:
        lake.cell(method)
    names = [cell.name for cell in night_step.cells]
    assert step(lake, Done(data=[True], asked=names)).do == "publish"
    assert step(lake, Done(data=[True], asked=names, publish=[True])).do == "end"


def test_what_was_asked_for_is_not_asked_for_again_in_the_same_state(lake: Lake) -> None:
    names = [cell.name for cell in step(lake, Done(data=[True])).cells]
    assert step(lake, Done(data=[True], asked=names)).do == "publish", "their steps failed without an attempt"
    # A rebooted machine leaves a cell like this.
    lake.trained("full", "lost", phase="train")
    again = step(lake, Done(data=[True], asked=names))
    assert again.do == "cells" and [cell.method for cell in again.cells] == ["full"]


def test_without_data_nothing_is_trained(lake: Lake) -> None:
    assert step(lake, Done(data=[False])).do == "data", "a process may have been killed"
    ended = step(lake, Done(data=[False, False]))
    assert ended.do == "end" and "no cell" in ended.why


def test_after_its_hours_no_cell_begins_and_the_rest_is_left(lake: Lake) -> None:
    begun = night.begin(lake.data, NIGHT)
    earlier = datetime.fromisoformat(begun["started_at"]) - timedelta(hours=7)
    write_json(lake.data.lake / "nights" / f"{NIGHT}.json", begun | {"started_at": earlier.isoformat()})
    assert step(lake, Done(data=[True]), Nightly(max_hours=8)).do == "cells"
    assert step(lake, Done(data=[True]), Nightly(max_hours=6)).do == "publish"
    ended = step(lake, Done(data=[True], publish=[True]), Nightly(max_hours=6))
    assert "6 hours are over" in ended.why and "4 cells are left" in ended.why


def test_the_nights_money_is_what_calls_and_hours_of_cells_cost_since_it_began(lake: Lake) -> None:
    since = night.begin(lake.data, NIGHT)["started_at"]
    paid = lake.configured(profiles={"local": {"price_per_hour": 2.0}})
    with opened(paid.data.journal) as journal:
        request = Request("claude", "m", [{"role": "user", "content": "a"}], {"max_tokens": 5}, {})
        journal.sending(request, reserve=0.5)
        journal.answered(request.key, Answer("{}", "end", usage=Usage(input=1, output=1)), cost=0.25)
    attempt = paid.trained("full")
    result = attempt.folder / "result.json"
    times = {"started_at": datetime.now(UTC).isoformat(timespec="milliseconds"), "seconds": 1800.0}
    write_json(result, (read_json(result) or {}) | times)
    assert night.spent_usd(paid.project, since) == pytest.approx(0.25 + 1.0)
    assert night.money_left(paid.project, Nightly(budget_usd=2.0), since) == pytest.approx(0.75)
    assert night.limit_reached(paid.project, Nightly(budget_usd=1.0), since) == "nightly.budget_usd: $1 are spent"
    assert night.limit_reached(lake.project, Nightly(budget_usd=0.1), since) is None, "training costs nothing here"


def test_the_record_of_a_night_says_what_ran_why_and_how_it_ended(lake: Lake) -> None:
    night.note_round(lake.data, NIGHT, due_cells(lake.resolved())[1:2])
    lake.trained("full", "out_of_memory", phase="train")
    record = night.end(lake.project, NIGHT, "all that was due is done")
    assert record["rounds"][0]["cells"][0]["because"] == {"1": "missing"}
    assert record["outcome"] == {"tiny × full": ["out_of_memory"]}
    assert "not ok: tiny × full out_of_memory" in night.in_words(record)
    assert night.has_ended(lake.data, NIGHT)


def test_an_evaluation_that_did_not_end_well_is_told(lake: Lake) -> None:
    night.note_round(lake.data, NIGHT, [Due("tiny", "full", {1: "missing"}, {1: ""})])
    lake.evaluated(lake.trained("full"), "out_of_memory")
    assert "not ok: tiny × full out_of_memory (evaluation)" in night.in_words(night.end(lake.project, NIGHT, "done"))


def test_a_nights_name_is_no_path(lake: Lake) -> None:
    with pytest.raises(UsageError, match=r"night is '\.\./\.\./x'"):
        night.begin(lake.data, "../../x")


def test_a_night_that_nobody_carries_on_holds_up_no_later_one(lake: Lake) -> None:
    now = datetime.now(UTC)
    night.begin(lake.data, NIGHT)
    assert night.is_under_way(lake.data, NIGHT, now)
    assert not night.is_under_way(lake.data, NIGHT, now - timedelta(hours=3))
    night.end(lake.project, NIGHT, "")
    assert not night.is_under_way(lake.data, NIGHT, now)


def test_a_name_says_the_state_that_a_cell_was_found_in() -> None:
    assert Due("m", "full", {1: "missing"}, {1: ""}).name != Due("m", "full", {1: "lost"}, {1: "run-1"}).name
