"""The search for the best of several learning rates on a slice of train, which is equal whatever
happens to the cell.

`auto` stands for a list, and for a cap on the whole search.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipelines.compare.rates import rates_of
from pipelines.compare.table import comparison_rows
from pipelines.compare.tables import all_tables
from pipelines.errors import UnavailableError, UsageError
from pipelines.lake.files import write_json
from pipelines.plan.seconds import training_flops
from pipelines.runs import cells
from pipelines.runs.progress import CellProgress
from pipelines.runs.run import RunHooks
from pipelines.runs.worker import DivergedError
from pipelines.train.cell import train
from pipelines.train.trainer import search
from pipelines.train.trainer.devices.ranks import require_divisible
from pipelines.train.trainer.halving import Trial
from pipelines.train.trainer.loop import Trainer
from tests.in_process import InProcess, KilledError, clean_for, kill_at, trained
from tests.project import MODEL, TinyProject
from tests.test_project_restart import outcome

RATES = [1e-4, 1e-2, 3e-2]
# 40 steps, of which 10 are search.
AUTO = {"learning_rate": "auto", "examples_per_step": 1, "epochs": 5, "eval_every_steps": 40}


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    """A project whose lora-r8 tries three rates for half of its six steps."""
    project.change(
        methods={"lora-r8": {"learning_rate": RATES, "search_share": 0.5}},
        profiles={"local": {"training": {"epochs": 3, "eval_every_steps": 4, "checkpoint_every_steps": 2}}},
    )
    return clean_for(project)


def test_the_chosen_rate_trains_as_if_it_had_been_given(cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[set[str]] = []
    original = Trainer.loss_of_steps

    def noted(trainer: Any, plan: Any, rate: float, slice_: Any) -> float:
        judged.append({example.example_id for example in slice_})
        assert not judged[-1] & {example.example_id for step in plan for example in step}
        assert len(plan) == 3
        return original(trainer, plan, rate, slice_)

    monkeypatch.setattr(Trainer, "loss_of_steps", noted)
    searched = trained(cleaned, "lora-r8")
    curve, measured = outcome(searched), searched.result.measured
    tried = json.loads(measured["learning_rates_tried"])
    assert [rate for rate, _ in tried] == RATES and len(judged) == 3 and judged[0] == judged[1]
    assert measured["learning_rate"] == min(tried, key=lambda one: one[1])[0]
    assert measured["learning_rate_at_edge"] is (measured["learning_rate"] != RATES[1])
    assert measured["search_seconds"] > 0 and measured["validation_examples"] == 0
    assert not list(searched.folder.glob(".start*"))
    row = next(row for row in comparison_rows(cleaned.resolved()) if row["method"] == "lora-r8")
    assert (row["learning_rate"], row["learning_rate_source"]) == (measured["learning_rate"], "search")
    (run,) = all_tables(cleaned.data, cleaned.now().experiments, [])["training_runs"].to_pylist()
    assert run["learning_rates_tried"] == measured["learning_rates_tried"] and run["search_seconds"] > 0

    cleaned.change(methods={"lora-r8": {"learning_rate": measured["learning_rate"]}})
    given = trained(cleaned, "lora-r8")
    assert outcome(given) == curve
    assert given.result.measured.get("search_seconds") is None and given.result.learning_rate_source == "method"


@pytest.mark.slow
def test_a_cell_that_was_killed_does_not_search_again(cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(trained(cleaned, "lora-r8"))
    first = trained(cleaned, "lora-r8", kill_at(3))
    monkeypatch.setattr(search, "search", lambda *_: pytest.fail("searched again"))
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    again, _ = train(cleaned.resolved(), cleaned.key("lora-r8"), hooks=hooks)
    assert (again.result.resume or {})["run_id"] == first.run_id
    assert outcome(again) == expected
    names = ("learning_rate", "learning_rate_at_edge", "learning_rates_tried", "search_seconds")
    before = first.result.measured
    assert {name: again.result.measured[name] for name in names} == {name: before[name] for name in names}


def test_a_rate_that_diverges_is_not_chosen_and_full_goes_back_to_its_weights(cleaned: TinyProject) -> None:
    cleaned.change(methods={"full": {"learning_rate": [1e-3, 1e30], "gradient_clip": 1e30}})
    searched = trained(cleaned, "full")
    assert json.loads(searched.result.measured["learning_rates_tried"])[1] == [1e30, None]
    curve = outcome(searched)
    cleaned.change(methods={"full": {"learning_rate": 1e-3}})
    assert outcome(trained(cleaned, "full")) == curve


def test_when_all_rates_diverge_the_cell_has() -> None:
    with pytest.raises(DivergedError, match=r"every learning rate tried diverges \(1, 2\): lower them"):
        search.best([Trial(1.0, None, 3), Trial(2.0, None, 3)])
    assert search.best([Trial(2.0, 1.5, 3), Trial(1.0, 1.5, 3)]).rate == 1.0


def test_too_few_examples_to_hold_one_back_are_said(cleaned: TinyProject) -> None:
    cleaned.change(profiles={"local": {"max_train_examples": 1}})
    attempt = trained(cleaned, "lora-r8")
    assert attempt.status == "failed" and "two training examples" in attempt.result.detail
    assert cells.latest(cleaned.data, cells.CellKey(MODEL, "lora-r8", 1)) == attempt


@contextmanager
def killed_in_trial(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Kill the child in that trial, after its steps and before its loss is recorded; yields the
    rates that were tried."""
    original, tried = Trainer.loss_of_steps, []

    def until(trainer: Any, plan: Any, rate: float, judged: Any) -> float:
        tried.append(rate)
        loss = original(trainer, plan, rate, judged)
        if len(tried) == number:
            raise KilledError
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "loss_of_steps", until)
        yield tried


@pytest.fixture
def auto(project: TinyProject) -> TinyProject:
    project.change(methods={"lora-r8": AUTO})
    return clean_for(project)


def test_auto_goes_on_after_a_kill_in_the_midst_of_its_search_to_the_same_bits(
    auto: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_in_trial(10**6, monkeypatch) as tried:
        expected = trained(auto, "lora-r8")
    # The next good run removes the model.
    expected_outcome = outcome(expected)
    assert len(tried) == 3 and expected.result.measured["steps"] == 40
    with killed_in_trial(2, monkeypatch):
        first = trained(auto, "lora-r8")
    assert first.status == "killed" and "but for the learning rates that were tried" in first.result.detail
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    with killed_in_trial(10**6, monkeypatch) as again:
        second, _ = train(auto.resolved(), auto.key("lora-r8"), hooks=hooks)
    assert again == tried[1:], "finished trials are not run again"
    assert outcome(second) == expected_outcome
    names = ("learning_rate", "learning_rate_at_edge", "learning_rates_tried")
    assert [second.result.measured[name] for name in names] == [expected.result.measured[name] for name in names]
    earlier = json.loads((first.folder / "search.jsonl").read_text(encoding="utf-8"))
    assert second.result.measured["search_seconds"] > earlier["seconds"]
    row = next(row for row in comparison_rows(auto.resolved()) if row["method"] == "lora-r8")
    assert row["learning_rate_source"] == "search" and rates_of(row) in ("tuned", "edge")
    card = (second.model_folder / "README.md").read_text(encoding="utf-8")
    assert str(row["learning_rate"]) in card and str(second.spec.recipe["learning_rate"]) not in card


@pytest.mark.slow
def test_trials_of_other_packages_do_not_count(auto: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_in_trial(3, monkeypatch):
        first = trained(auto, "lora-r8")
    journal = first.folder / "search.jsonl"
    lines = journal.read_text(encoding="utf-8").replace('"torch": "', '"torch": "1.')
    # Half a line from a kill, and a line that somebody else wrote.
    journal.write_text(lines + '7\n{"rate": 0.1, "st', encoding="utf-8")
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    with killed_in_trial(10**6, monkeypatch) as again:
        assert train(auto.resolved(), auto.key("lora-r8"), hooks=hooks)[0].status == "ok"
    assert len(again) == 3


def test_with_too_few_steps_auto_is_the_default_and_the_row_says_shared(auto: TinyProject) -> None:
    auto.change(methods={"lora-r8": {"epochs": 2}})
    attempt = trained(auto, "lora-r8", kill_at(16))
    assert attempt.result.measured["learning_rate"] == 1e-3, "what the profile names"
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    attempt, _ = train(auto.resolved(), auto.key("lora-r8"), hooks=hooks)
    assert attempt.status == "ok" and (
        attempt.result.measured["learning_rate"],
        attempt.result.learning_rate_source,
    ) == (
        1e-3,
        "search",
    )
    row = next(row for row in comparison_rows(auto.resolved()) if row["method"] == "lora-r8")
    assert (row["learning_rate"], row["learning_rate_source"], rates_of(row)) == (1e-3, "default", "shared")
    assert row["learning_rate_at_edge"] is None and attempt.result.measured.get("search_seconds") is None


def test_what_cannot_go_back_to_its_start_may_have_auto_and_no_list() -> None:
    recipe = {"quantization": None, "optimizer": "adamw", "learning_rate": [1e-4, 1e-3]}
    require_divisible({**recipe, "search_cap": 0.25, "learning_rate_default": 2e-4}, "zero2")
    with pytest.raises(UnavailableError, match="cannot restore the start to try several learning rates"):
        require_divisible({**recipe, "search_share": 0.2}, "zero2")


@pytest.mark.slow
def test_one_example_is_enough_for_auto(auto: TinyProject) -> None:
    auto.change(profiles={"local": {"max_train_examples": 1}}, methods={"lora-r8": {"epochs": 60}})
    attempt = trained(auto, "lora-r8")
    assert attempt.status == "ok" and attempt.result.measured["learning_rate"] == 1e-3


def test_auto_may_stand_at_every_level_and_the_recipe_holds_what_it_stands_for(project: TinyProject) -> None:
    def recipe(method: str = "lora-r8") -> dict[str, Any]:
        return project.now().recipe_of(MODEL, method)

    before = recipe()
    assert not {"search_share", "search_cap", "learning_rate_default"} & before.keys()
    auto: dict[str, Any] = {"learning_rate": "auto"}
    levels: list[tuple[dict[str, Any], float]] = [
        ({"training": auto, "profiles": {"local": {"training": auto}}}, 2e-4),
        ({"profiles": {"local": {"training": {"learning_rate": {"full": 1e-4, "lora": "auto"}}}}}, 2e-4),
        # The value that profile local sets below it.
        ({"methods": {"lora-r8": auto}}, 1e-3),
        ({"models": {MODEL: auto}}, 1e-3),
        ({"models": {MODEL: {"overrides": {"lora-r8": auto}}}}, 1e-3),
        ({"profiles": {"local": {"overrides": {MODEL: {"lora-r8": auto}}}}}, 1e-3),
    ]
    shipped = project.experiments.read_text(encoding="utf-8")
    for level, default in levels:
        project.change(**level)
        values = recipe()
        assert len(values["learning_rate"]) == 7 and values["learning_rate_default"] == default
        changed = {name: values[name] for name in ("learning_rate", "learning_rate_default", "search_cap")}
        assert values == before | changed
        assert project.now().training_of(MODEL, "lora-r8").learning_rate_source == "search"
        project.experiments.write_text(shipped, encoding="utf-8")
    project.change(methods={"lora-r8": {"learning_rate": [1e-4, 1e-3]}})
    assert recipe() == before | {"learning_rate": [1e-4, 1e-3], "search_share": 0.2}
    project.change(training={"search_cap": 0.5, "learning_rate": "auto"}, methods={"lora-r8": {"learning_rate": 3e-3}})
    assert recipe() == before | {"learning_rate": 3e-3}, "a rate from a nearer level is not searched for"


def test_a_profile_may_say_something_of_one_pair_and_of_models_made_from_it(project: TinyProject) -> None:
    assert project.now().training_of(MODEL, "qlora-r8").learning_rate == 2e-3, "of profile local alone"
    loaded = project.now().experiments
    assert loaded.training_for("gpu", MODEL, "qlora-r8").learning_rate_default == 2e-4
    project.change(
        models={"made": {"source": {"from": MODEL}}, "other": {"source": {"path": "/nowhere"}, "prompt": "chat"}}
    )
    loaded = project.now().experiments
    assert [loaded.training_for("local", name, "qlora-r8").learning_rate for name in ("made", "other")] == [2e-3, 1e-3]
    project.change(models={MODEL: {"overrides": {"qlora-r8": {"learning_rate": 7e-4}}}})
    assert project.now().training_of(MODEL, "qlora-r8").learning_rate == 7e-4, "what tune prints goes before it"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"methods": {"full": {"learning_rate": "automatic"}}}, r"got 'automatic'; expected one rate, .*auto"),
        ({"methods": {"full": {"learning_rate": ["auto", 1e-3]}}}, "methods.full.learning_rate"),
        ({"training": {"search_cap": 0}}, "training.search_cap"),
        ({"profiles": {"local": {"overrides": {"smollm": {}}}}}, r"profiles.local.overrides.smollm: got 'smollm'"),
        ({"profiles": {"local": {"overrides": {MODEL: {"lora": {}}}}}}, r"overrides.smollm2-135m.lora: got 'lora'"),
    ],
)
def test_what_is_no_rate_is_named(project: TinyProject, place: dict[str, Any], message: str) -> None:
    project.change(**place)
    with pytest.raises(UsageError, match=message):
        project.now()


def test_the_plan_counts_the_search() -> None:
    recipe = {"kind": "full", "learning_rate": [1e-5, 1e-4], "gradient_checkpointing": False, "search_cap": 0.25}
    assert training_flops(100, 100, 8, recipe) == 1.25 * 6 * 100 * 8


def test_what_watches_a_cell_says_which_rate_is_tried(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project.data.cells / MODEL / "lora-r8" / "1" / "a-run"
    folder.mkdir(parents=True)
    progress, attempt = CellProgress(), cells.Attempt(project.key("lora-r8"), folder)
    progress.show(attempt)
    for number in (1, 1, 2):
        write_json(folder / "child.json", {"doing": f"learning rate {number} of 3: 0.002 for 4 steps"})
        progress.show(attempt)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{MODEL} × lora-r8: learning rate {number} of 3: 0.002 for 4 steps" for number in (1, 2)]
