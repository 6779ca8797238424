"""Tuning a learning rate: trials on a slice of train that continue after an interruption, and the
lines to write down."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.errors import UsageError, WorkError
from pipelines.extras.tune.tune import Range, tune
from pipelines.lake.files import read_json, write_json, write_jsonl
from pipelines.runs.cells import CellKey
from pipelines.runs.command import CellCommand
from pipelines.runs.run import RunHooks
from pipelines.settings.experiments import load
from pipelines.upkeep.prune import leftovers, remove
from tests.in_process import Ended, InProcess, clean_for
from tests.project import TinyProject


class Invented:
    """A launcher whose trials end at once, with the least loss at 1e-3; `ends` makes the nth trial
    end otherwise."""

    def __init__(self, ends: dict[int, Any] | None = None) -> None:
        self.rates: list[float] = []
        self._ends = ends or {}

    def start(self, command: CellCommand) -> Ended:
        spec = read_json(command.folder / "spec.json") or {}
        self.rates.append(rate := spec["recipe"]["learning_rate"])
        (command.folder / "log.txt").touch()
        end = self._ends.get(len(self.rates), "ok")
        if isinstance(end, BaseException):
            raise end
        loss = 1.0 + abs(rate - 1e-3)
        points = [{"step": step, "steps": 4, "eval_loss": loss + (4 - step), "examples": step} for step in range(5)]
        write_jsonl(command.folder / "curve.jsonl", points if end == "ok" else points[:1])
        write_json(
            command.folder / "child.json", {"phase": "train", "measured": {}, "status": end, "detail": "as told"}
        )
        return Ended(0 if end == "ok" else 3)


def run(project: TinyProject, launcher: Any, trials: int, **options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    hooks = RunHooks(say=lambda _message: None, launcher=launcher)
    outcome = tune(project.resolved(), project.key("lora-r8"), trials=trials, hooks=hooks, tell=lines.append, **options)
    return outcome, lines


def test_a_real_trial_is_judged_on_a_slice_of_train_and_leaves_no_model(project: TinyProject) -> None:
    outcome, lines = run(clean_for(project), InProcess(), 1)
    assert (
        outcome.rate == 1e-3
        and 3 < outcome.loss < 8
        and lines[0].startswith("trial 1 of 1: learning rate 1.00e-03: loss ")
    )
    (folder,) = (project.data.lake / "tune").rglob("trial-0000")
    assert not list(folder.glob("model*")) and not list(project.data.cells.glob("*"))


def test_it_goes_on_after_an_interruption_and_says_what_to_write_down(project: TinyProject) -> None:
    first = Invented({3: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(clean_for(project), first, 8)
    second = Invented({2: "diverged"})
    outcome, lines = run(project, second, 8)
    assert second.rates[0] == first.rates[2], "the interrupted one is tried first"
    assert len(second.rates) == 6 and len(set(first.rates + second.rates)) == 8
    assert all(1e-4 <= rate <= 1e-2 for rate in second.rates)
    assert lines[1].startswith("trial 4 of 8") and "diverged" in lines[1]
    assert outcome.rate == min(
        set(first.rates[:2] + second.rates) - {second.rates[1]}, key=lambda rate: abs(rate - 1e-3)
    )
    assert run(project, Invented({1: WorkError("none was left to run")}), 8)[0] == outcome

    project.change(**yaml.safe_load(outcome.yaml()))
    settings = load(project.experiments).training_for("local", "smollm2-135m", "lora-r8")
    assert settings.learning_rate == pytest.approx(outcome.rate, rel=0.01)
    assert settings.learning_rate_source == "tune"


def test_the_edge_of_the_range_is_said_and_another_range_is_kept_to(project: TinyProject) -> None:
    launcher = Invented()
    outcome, _ = run(clean_for(project), launcher, 4, bounds=Range(2e-3, 8e-3))
    assert all(2e-3 <= rate <= 8e-3 for rate in launcher.rates)
    assert outcome.at_edge is (outcome.rate < 2.3e-3)
    assert Range(1e-4, 1e-2).at_edge(1.1e-4) and not Range(1e-4, 1e-2).at_edge(1e-3)


def test_another_range_is_another_search_that_takes_over_what_lies_within(project: TinyProject) -> None:
    first, wide = Invented(), Range(1e-3, 1e-1)
    assert run(clean_for(project), first, 4, bounds=wide)[0].trials == 4

    # A range without shared trials: every trial and the best one are its own.
    below = Invented()
    outcome, lines = run(project, below, 4, bounds=Range(1e-6, 1e-5))
    assert len(below.rates) == 4 and all(1e-6 <= rate <= 1e-5 for rate in [outcome.rate, *below.rates])
    assert "0 trials of other ranges are within and count, 4 are outside" in lines[0] and outcome.trials == 4

    # A range with some shared trials: they count, and the best lies within it, though a better
    # one is known outside.
    inside = sorted(first.rates)[1:]
    narrow = Range(inside[0], 1e-1)
    more = Invented()
    outcome, lines = run(project, more, 5, bounds=narrow)
    assert len(more.rates) == 2 and outcome.trials == 5 and "3 trials of other ranges are within and count" in lines[0]
    assert outcome.rate == min(inside + more.rates) > min(first.rates)

    # Back to the first range: nothing is lost or counted twice, and new trials are taken over.
    again = Invented()
    outcome, lines = run(project, again, 6, bounds=wide)
    # Trials pruned by the other range's median are not among them.
    taken = int(lines[0].split(" trials of other ranges")[0].split()[-1])
    assert 1 <= taken <= 2 and len(again.rates) == 2 - taken and outcome.trials == 6
    assert outcome.rate == min(first.rates + more.rates)
    fewer, lines = run(project, Invented(), 2, bounds=wide)
    assert fewer == outcome and "6 trials within this range are done, so none is run" in lines[-1]


def test_an_earlier_versions_trials_count_and_those_of_another_recipe_or_seed_do_not(project: TinyProject) -> None:
    from optuna import create_study
    from optuna.distributions import FloatDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState, create_trial

    run(clean_for(project), Invented(), 1)
    (journal,) = (project.data.lake / "tune").rglob("journal.log")
    old = create_study(study_name="rate", storage=JournalStorage(JournalFileBackend(str(journal))))
    space: dict[str, Any] = {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    for state, rate in ((TrialState.COMPLETE, 2e-3), (TrialState.PRUNED, 9e-3), (TrialState.COMPLETE, 1.5e-4)):
        value = 0.5 if state == TrialState.COMPLETE else None
        old.add_trial(create_trial(state=state, value=value, params={"learning_rate": rate}, distributions=space))
    launcher = Invented()
    assert run(project, launcher, 4)[0].loss == 0.5 and not launcher.rates

    project.change(training={"weight_decay": 0.5})
    changed = Invented()
    outcome, lines = run(project, changed, 2)
    assert len(changed.rates) == 2 == outcome.trials and "other data, another recipe" in lines[0]
    other_seed = Invented()
    hooks = RunHooks(say=lambda _message: None, launcher=other_seed)
    tune(project.resolved(), CellKey("smollm2-135m", "lora-r8", 2), trials=1, hooks=hooks, tell=lines.append)
    assert len(other_seed.rates) == 1


def test_what_would_end_every_trial_ends_the_tuning(project: TinyProject, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="is out_of_memory: as told"):
        run(clean_for(project), Invented({1: "out_of_memory"}), 3)
    with pytest.raises(UsageError, match="trains nothing"):
        tune(project.resolved(), CellKey("smollm2-135m", "base", 1), trials=1)


def test_prune_keeps_the_search_that_a_cell_goes_on_with_and_clears_the_others(project: TinyProject) -> None:
    run(clean_for(project), Invented(), 1)
    (study,) = (project.data.lake / "tune").glob("*/*/*")
    assert study not in [leftover.path for leftover in leftovers(project.now())]
    project.change(methods={"lora-r8": {"weight_decay": 0.5}})
    run(project, Invented(), 1)
    assert [leftover.path for leftover in leftovers(project.now())] == [study]
    assert [why for _, why in remove(leftovers(project.now()))] == [None]
    assert run(project, Invented(), 1)[1][0].startswith("1 trials within this range are done"), (
        "the newer search is whole"
    )
