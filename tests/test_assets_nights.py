"""Nights through Dagster: schedule, sensors and runs; each night runs the due cells once, and
nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from assets.definitions import defs
from assets.inputs import note_inputs
from assets.project import partition_of
from pipelines.compare.compare import published_rows
from pipelines.compare.table import comparison_rows
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import PROJECT
from pipelines.lake.warehouse import connect
from pipelines.nightly.publishing import QUIET
from pipelines.runs import cells
from pipelines.runs.command import CellCommand
from pipelines.settings import experiments as configuration
from tests.fakes.behavior import Behavior
from tests.fakes.provider import fake_provider
from tests.in_process import Ended, InProcess
from tests.nights import Nights, nights
from tests.project import MODEL, TinyProject


@pytest.fixture
def week(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    project.change(profiles={"local": {"methods": ["base", "lora-r8"]}})
    with nights(project, monkeypatch) as made:
        yield made


def attempts(week: Nights) -> int:
    return len(list(cells.all_attempts(week.project.data)))


def out_of_memory() -> InProcess:
    """Every training child fails to allocate memory at its first step."""

    def at_point(_worker: object, row: dict[str, Any]) -> None:
        if row["step"]:
            raise MemoryError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes")

    return InProcess(at_point)


class Rebooted(BaseException):
    """The machine goes down in the middle of a cell."""


class Rebooting(InProcess):
    """The first child ends with everything around it: it writes no result, and its parent is
    gone."""

    def __init__(self, week: Nights) -> None:
        super().__init__()
        self._week = week
        self._cut: list[Path] = []

    def start(self, command: CellCommand) -> Ended:
        if not self._cut:
            self._cut.append(command.folder)
            self._week.after_run = self.leave_as_a_reboot_does
            raise Rebooted
        return super().start(command)

    def leave_as_a_reboot_does(self) -> None:
        (folder,) = self._cut
        (folder / "result.json").unlink()
        state = read_json(folder / "state.json") or {}
        write_json(folder / "state.json", {**state, "status": "running", "pid": 2**22 + 1})


def small_corpus(project: TinyProject) -> None:
    records = json.loads((PROJECT / "data" / "corpus.json").read_text(encoding="utf-8"))
    english = [record for record in records if record.get("language") == "en"][:40]
    (project.data.root / "corpus.json").write_text(json.dumps(english, ensure_ascii=False), encoding="utf-8")


def test_the_first_night_does_everything_and_an_unchanged_one_only_looks(week: Nights) -> None:
    assert week.night() == ["data", "base", "lora-r8", "publish"]
    assert {row["method"]: row["status"] for row in published_rows(week.project.data)} == {
        "base": "ok",
        "lora-r8": "ok",
    }
    assert not week.tick("lake_has_changed"), "the night has published what there is"
    (row,) = published_rows(week.project.data, "nights")
    assert (row["outcome"], row["cells"], row["cells_ok"], row["cells_not_ok"]) == ("ok", 2, 2, 0)
    assert row["reason"] == "all that was due is done" and row["minutes"] > 0
    ran = {run.run_id: run.job_name for run in week.instance.get_runs()}
    noted = json.loads(row["run_ids"])
    assert sorted(noted) == sorted(ran), "its own publication is among them"
    assert [ran[run] for run in noted] == ["data", "training", "training", "publish"]
    page = week.instance.get_latest_materialization_event(dg.AssetKey("nights"))
    assert page is not None and page.asset_materialization is not None
    shown = str(page.asset_materialization.metadata["nights"].value)
    assert all(f"(/runs/{run})" in shown for run in ran)
    made = attempts(week)
    assert week.night() == ["data", "publish"]
    assert attempts(week) == made
    week.project.change(methods={"lora-r8": {"learning_rate": 0.0005}})
    assert week.night() == ["data", "lora-r8", "publish"]
    assert week.statuses("lora-r8") == ["ok", "ok"] and week.statuses("base") == ["ok"]


def is_stale_in_dagster(week: Nights, method: str) -> bool:
    """Whether the UI shows the cell's model or evaluation as stale."""
    context = LoadingContextForTest(week.instance)
    resolver = CachingStaleStatusResolver(week.instance, defs.resolve_asset_graph(), context)
    keys = [dg.AssetKey(name) for name in ("trained_model", "evaluation")]
    return any(resolver.get_status(key, str(partition_of(MODEL, method))) != StaleStatus.FRESH for key in keys)


def stale(week: Nights) -> set[str]:
    """The stale methods of our table. Dagster must call the same ones stale once it has looked."""
    note_inputs(week.instance, week.project.resolved())
    rows = comparison_rows(week.project.resolved())
    ours = {row["method"] for row in rows if row["is_stale"]}
    assert {row["method"] for row in rows if is_stale_in_dagster(week, row["method"])} == ours
    return ours


@pytest.mark.slow
def test_dagster_and_the_table_call_the_same_cells_stale(week: Nights) -> None:
    project = week.project
    week.night()
    assert stale(week) == set()
    project.change(methods={"lora-r8": {"weight_decay": 0.5}})
    assert stale(week) == {"lora-r8"}
    project.change(methods={"lora-r8": {"weight_decay": 0.25}})
    # The cell runs at once, before any sensor has looked.
    week.cell("lora-r8")
    assert stale(week) == set()
    project.change(profiles={"local": {"evaluation": {"answers": 1}}})
    assert stale(week) == {"base", "lora-r8"}
    project.change(profiles={"local": {"evaluation": {"answers": 2}, "max_train_examples": 7}})
    assert stale(week) == {"lora-r8"}, "base trains on nothing"
    project.change(profiles={"local": {"max_train_examples": 8}})
    assert stale(week) == set(), "the cell is unchanged"


@pytest.mark.slow
def test_two_daemons_that_ask_for_the_same_night_run_no_cell_twice(week: Nights) -> None:
    week.project.change(profiles={"local": {"methods": ["lora-r8"]}})
    week.launcher = out_of_memory()
    first, second = week.begin(), week.begin()
    assert [request.run_key for request in first] == [request.run_key for request in second]
    week.execute([*first, *second])
    one, other = week.tick("night_goes_on"), week.tick("night_goes_on")
    assert [request.run_key for request in one] == [request.run_key for request in other]
    week.execute([*one, *other])
    assert week.statuses("lora-r8") == ["out_of_memory"], "the second saw that it had been run since"
    week.number += 1
    assert week.begin() == [], "while one night is under way no other begins"
    week.carry_on()
    assert week.night() == ["data", "publish"], "out of memory is not tried again"


@pytest.mark.slow
def test_a_night_goes_on_where_a_dead_daemon_left_it(week: Nights) -> None:
    week.project.change(profiles={"local": {"methods": ["lora-r8"]}})
    week.execute(week.begin())
    # The daemon dies before any run is made.
    requests = week.tick("night_goes_on")
    again = week.tick("night_goes_on")
    assert [request.run_key for request in again] == [request.run_key for request in requests]
    week.execute(again)
    week.carry_on()
    assert week.statuses("lora-r8") == ["ok"] and week.ran == ["data", "lora-r8", "publish"]


@pytest.mark.slow
def test_what_somebody_else_ran_meanwhile_is_taken_as_it_is(week: Nights) -> None:
    week.project.change(profiles={"local": {"methods": ["lora-r8"]}})
    week.execute(week.begin())
    requests = week.tick("night_goes_on")
    week.launcher = out_of_memory()
    # The cell runs as `make run` runs it.
    assert week.cell("lora-r8").success
    week.execute(requests)
    week.carry_on()
    assert week.statuses("lora-r8") == ["out_of_memory"]


@pytest.mark.slow
def test_a_clock_that_went_back_loses_nothing(week: Nights) -> None:
    week.project.change(profiles={"local": {"methods": ["base"]}})
    assert week.night() == ["data", "base", "publish"]
    # The next tick lies days before.
    week.number = -5
    assert week.night() == ["data", "publish"]
    assert week.statuses("base") == ["ok"]


@pytest.mark.slow
def test_what_a_person_asks_for_in_the_launchpad_is_done_and_recorded(week: Nights) -> None:
    week.project.change(profiles={"local": {"methods": ["lora-r8"], "price_per_hour": 3600.0}})
    week.execute(week.begin())
    result = week.cell("lora-r8", max_examples=5, seeds=[7], budget_usd=120.0)
    assert result.success
    (attempt,) = cells.attempts(week.project.data, cells.CellKey(MODEL, "lora-r8", 7))
    assert attempt.status == "ok" and attempt.result.measured["train_examples"] == 5
    assert attempt.spec.time_limit_minutes == pytest.approx(2.0), "a dollar a second"
    assert not week.statuses("lora-r8"), "seed 1 was not asked for"
    assert week.cell("lora-r8", max_examples=5, seeds=[7]).success
    assert len(cells.attempts(week.project.data, cells.CellKey(MODEL, "lora-r8", 7))) == 1
    assert week.cell("lora-r8", max_examples=5, seeds=[7], force=True).success
    assert len(cells.attempts(week.project.data, cells.CellKey(MODEL, "lora-r8", 7))) == 2


@pytest.mark.slow
def test_seeds_share_what_their_run_may_spend(week: Nights) -> None:
    prices = {"methods": ["lora-r8"], "seeds": [1, 2, 3], "price_per_hour": 3600.0}
    week.project.change(profiles={"local": prices}, nightly={"budget_usd": 1200.0})
    week.execute(week.begin())
    assert week.cell("lora-r8", budget_usd=600.0).success
    keys = [cells.CellKey(MODEL, "lora-r8", seed) for seed in (1, 2, 3)]
    first, *later = [cells.attempts(week.project.data, key)[0].spec.time_limit_minutes or 0.0 for key in keys]
    assert first == pytest.approx(10.0) and 10.0 > later[0] > later[1] > 0, "a dollar a second"
    week.project.change(methods={"lora-r8": {"weight_decay": 0.1}})
    week.carry_on()
    limits = [cells.attempts(week.project.data, key)[-1].spec.time_limit_minutes or 0.0 for key in keys]
    assert 20.0 > limits[0] > limits[1] > limits[2] > 0, "the rest of the night's budget"
    assert week.record()["spent_usd"] <= 1200.0


@pytest.mark.slow
def test_a_night_on_another_profile_publishes_that_one_and_later_publications_stay_with_it(week: Nights) -> None:
    local = configuration.load(week.project.experiments).model_dump()["profiles"]["local"]
    week.project.change(profiles={"big": {**local, "methods": ["base"]}}, nightly={"profile": "big"})
    assert week.night() == ["data", "base", "publish"]

    def published() -> list[tuple[str, bool]]:
        return [(row["method"], row["is_stale"]) for row in published_rows(week.project.data)]

    assert published() == [("base", False)]
    assert week.cell("base", profile="big", force=True).success
    assert not week.tick("lake_has_changed"), "more may come"
    week.later = QUIET
    (request,) = week.tick("lake_has_changed")
    week.execute([request._replace(job_name="publish")])
    assert published() == [("base", False)]
    week.tick("inputs_have_changed")
    assert not is_stale_in_dagster(week, "base")
    # A publication as by hand.
    assert defs.resolve_job_def("publish").execute_in_process(instance=week.instance).success
    assert [method for method, _ in published()] == ["base", "lora-r8"]
    assert not week.tick("lake_has_changed")


@pytest.mark.slow
def test_a_method_that_is_not_loaded_yet_holds_up_no_other(week: Nights) -> None:
    week.project.change(
        methods={"lora-r16": {"kind": "lora", "rank": 16, "alpha": 64, "dropout": 0.1}},
        profiles={"local": {"methods": ["base", "lora-r16"]}},
    )
    assert week.night() == ["data", "base", "publish"]
    assert {row["method"]: row["status"] for row in published_rows(week.project.data)} == {
        "base": "ok",
        "lora-r16": "missing",
    }
    week.tick("inputs_have_changed")


@pytest.mark.slow
def test_an_old_night_that_somebody_executes_again_is_not_the_newest(week: Nights) -> None:
    week.project.change(profiles={"local": {"methods": ["base"]}})
    old = week.begin()
    week.execute(old)
    week.carry_on()
    week.number += 1
    week.execute(week.begin())
    (request,) = old
    again = {**request.tags, "dagster/parent_run_id": "0", "dagster/root_run_id": "0"}
    defs.resolve_job_def("data").execute_in_process(instance=week.instance, run_config=request.run_config, tags=again)
    assert [later.job_name for later in week.tick("night_goes_on")] == ["publish"]


def test_a_backfill_of_everything_does_the_profiles_cells_and_says_so_of_the_rest(week: Nights) -> None:
    week.project.change(profiles={"local": {"methods": ["base"]}})
    week.execute(week.begin())
    job = defs.resolve_job_def("training")
    for method in ("base", "full"):
        done = job.execute_in_process(
            instance=week.instance, partition_key=partition_of(MODEL, method), tags={"dagster/backfill": "all"}
        )
        assert done.success
    (check,) = [c for c in done.get_asset_check_evaluations() if c.check_name == "cell_is_ok"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "profile local does not name" in str(check.metadata["not run"].value)
    assert week.statuses("base") == ["ok"] and week.statuses("full") == []


def test_an_unreachable_model_is_unavailable_at_once_as_a_warning(
    week: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    week.execute(week.begin())
    monkeypatch.setattr("pipelines.weights.hub_download.download", lambda *_, **__: pytest.fail("a download was tried"))
    # No child may be started.
    week.launcher = None
    week.project.out_of_reach()
    done = week.cell("full")
    assert done.success
    (check,) = [c for c in done.get_asset_check_evaluations() if c.check_name == "cell_is_ok"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "HF_HUB_OFFLINE" in str(check.metadata["seed 1"].value)


@pytest.mark.slow
def test_a_week_of_nights_runs_spends_and_records_exactly_what_it_should(
    week: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, spent = week.project, {}
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789abcdef")
    with fake_provider(Behavior()) as server:
        price = {"input": 3, "output": 15}
        project.change(
            sources={"providers": ["gpt"]},
            providers={"gpt": {"enabled": True, "base_url": server.openai_url, "price": price}},
            generation={"requests": 4},
            nightly={"budget_usd": 0.5},
            profiles={"local": {"max_train_examples": None}},
        )
        small_corpus(project)

        def night(name: str) -> list[str]:
            ran = week.night()
            spent[name] = week.record()["spent_usd"]
            return ran

        assert night("first") == ["data", "base", "lora-r8", "publish"]
        assert night("unchanged") == ["data", "publish"]
        project.change(generation={"requests": 6})
        assert night("new data") == ["data", "lora-r8", "publish"]
        project.change(methods={"lora-r8": {"weight_decay": 0.1}})
        assert night("changed recipe") == ["data", "lora-r8", "publish"]
        project.change(generation={"requests": 9})
        server.behavior = Behavior(script=lambda _wire, _prompt, _nth: "unauthorized")
        assert night("provider down") == ["data", "publish"]
        project.change(generation={"requests": 6}, methods={"lora-r8": {"rank": 16}})
        week.launcher = out_of_memory()
        assert night("out of memory") == ["data", "lora-r8", "publish"]
        project.change(methods={"lora-r8": {"rank": 4}})
        week.launcher = Rebooting(week)
        assert night("reboot") == ["data", "lora-r8", "lora-r8", "publish"]
        assert night("last") == ["data", "publish"]
        answered = server.ledger.openai.requests

    assert week.statuses("base") == ["ok"]
    assert week.statuses("lora-r8") == ["ok", "ok", "ok", "out_of_memory", "lost", "ok"]
    assert {name for name, dollars in spent.items() if dollars > 0} == {"first", "new data"}
    with connect(project.data) as db:
        assert db.execute("SELECT count(*), sum(cost_usd) FROM llm_calls WHERE status = 'answered'").fetchone() == (
            6,
            pytest.approx(sum(spent.values())),
        )
        assert db.execute("SELECT count(*) FROM training_runs").fetchone() == (7,)
        rows = db.execute("SELECT method, status, is_stale FROM comparison ORDER BY 1").fetchall()
    assert rows == [("base", "ok", False), ("lora-r8", "ok", False)]
    assert answered >= 6
