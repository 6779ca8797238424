"""Of several learning rates the best is searched for on a slice of train: the same whatever happens to the cell, and apart."""

import json
from typing import Any

import pytest

from pipelines.compare.table import comparison_rows
from pipelines.compare.tables import all_tables
from pipelines.runs import cells
from pipelines.runs.run import Watch
from pipelines.runs.worker import DivergedError
from pipelines.train import search
from pipelines.train.cell import train
from pipelines.train.loop import Trainer
from tests.in_process import InProcess, clean_for, kill_at, trained
from tests.project import MODEL, TinyProject
from tests.test_restart import outcome

RATES = [1e-4, 1e-2, 3e-2]


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
    whole = Trainer.loss_of_steps

    def noted(trainer: Any, plan: Any, rate: float, slice_: Any) -> float:
        judged.append({example.example_id for example in slice_})
        assert not judged[-1] & {example.example_id for step in plan for example in step}
        assert len(plan) == 3
        return whole(trainer, plan, rate, slice_)

    monkeypatch.setattr(Trainer, "loss_of_steps", noted)
    searched = trained(cleaned, "lora-r8")
    found, measured = outcome(searched), searched.result.measured
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
    assert outcome(given) == found
    assert given.result.measured.get("search_seconds") is None and given.result.learning_rate_source == "method"


@pytest.mark.slow
def test_a_cell_that_was_killed_does_not_search_again(cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(trained(cleaned, "lora-r8"))
    first = trained(cleaned, "lora-r8", kill_at(3))
    monkeypatch.setattr(search, "search", lambda *_: pytest.fail("searched again"))
    watch = Watch(say=lambda _message: None, launcher=InProcess())
    again, _ = train(cleaned.resolved(), cleaned.key("lora-r8"), watch=watch)
    assert (again.result.resume or {})["run_id"] == first.run_id
    assert outcome(again) == expected
    names = ("learning_rate", "learning_rate_at_edge", "learning_rates_tried", "search_seconds")
    before = first.result.measured
    assert {name: again.result.measured[name] for name in names} == {name: before[name] for name in names}


def test_a_rate_that_diverges_is_not_chosen_and_full_goes_back_to_its_weights(cleaned: TinyProject) -> None:
    cleaned.change(methods={"full": {"learning_rate": [1e-3, 1e30], "gradient_clip": 1e30}})
    searched = trained(cleaned, "full")
    assert json.loads(searched.result.measured["learning_rates_tried"])[1] == [1e30, None]
    found = outcome(searched)
    cleaned.change(methods={"full": {"learning_rate": 1e-3}})
    assert outcome(trained(cleaned, "full")) == found


def test_when_all_rates_diverge_the_cell_has() -> None:
    with pytest.raises(DivergedError, match=r"every learning rate tried diverges \(1, 2\): lower them"):
        search.best([(1.0, None), (2.0, None)])
    assert search.best([(2.0, 1.5), (1.0, 1.5)]).rate == 1.0


def test_too_few_examples_to_hold_one_back_are_said(cleaned: TinyProject) -> None:
    cleaned.change(profiles={"local": {"max_train_examples": 1}})
    attempt = trained(cleaned, "lora-r8")
    assert attempt.status == "failed" and "two training examples" in attempt.result.detail
    assert cells.latest(cleaned.data, cells.CellKey(MODEL, "lora-r8", 1)) == attempt
