"""The second profile of a newcomer: its cells are comparable, and the first profile's rows stay
unchanged."""

import os
import subprocess
from pathlib import Path

import pytest

from pipelines.compare.table import comparison_rows
from pipelines.evaluate.cell import evaluate
from pipelines.lake.paths import PROJECT
from pipelines.project import Project, Resolved
from pipelines.runs.cells import CellKey
from pipelines.runs.run import RunHooks
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments
from pipelines.train.cell import train
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject

QUIET = RunHooks(say=lambda _message: None, launcher=InProcess())


@pytest.fixture(scope="module")
def shipped() -> Experiments:
    return configuration.load(PROJECT / "experiments.yaml")


def trained_cells(shipped: Experiments) -> list[tuple[str, str]]:
    profile = shipped.profile("tour")
    cells = [(model, method) for model in profile.models for method in profile.methods]
    return [cell for cell in cells if shipped.method(cell[1]).traits.trains]


def test_every_method_has_its_rate_searched_for(shipped: Experiments) -> None:
    cells = trained_cells(shipped)
    assert len(cells) == 5
    for model, method in cells:
        settings = shipped.training_for("tour", model, method)
        assert isinstance(settings.learning_rate, list) and len(settings.learning_rate) > 2, (model, method)
        assert settings.learning_rate_source == "search", (model, method)


def test_its_ranks_differ_by_their_rank_alone(shipped: Experiments) -> None:
    settings = [shipped.method(method).model_dump() for _, method in trained_cells(shipped)]
    ranks = [one for one in settings if one["kind"] == "lora" and one["quantization"] is None]
    assert sorted(one["rank"] for one in ranks) == [8, 32, 128]
    assert len({str({**one, "rank": None}) for one in ranks}) == 1 and ranks[0]["alpha"] == 32
    assert {"base", "base-few-shot", "full", "qlora-r8"} < set(shipped.profile("tour").methods)


def test_its_cells_are_no_other_profiles_and_its_weights_are_locals(shipped: Experiments) -> None:
    tour, local = shipped.profile("tour"), shipped.profile("local")
    others = [profile for name, profile in shipped.profiles.items() if name != "tour"]
    assert not any(set(tour.models) & set(profile.models) for profile in others)
    assert [shipped.model(name).origin for name in tour.models] == [shipped.model(name) for name in local.models]
    assert len(local.methods) == 5


def make(target: str, tmp_path: Path) -> str:
    """The commands of `target`, run by programs that only print their profile."""
    for name in ("python", "featherweight"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$(basename $0) $* ${FEATHERWEIGHT_PROFILE:-none}"\n')
        (tmp_path / name).chmod(0o755)
    # Without the variables that a surrounding `make test` sets.
    ours = ("FEATHERWEIGHT_PROFILE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    command = ["make", "--no-print-directory", "-o", ".venv/runtime-stamp", target, f"BIN={tmp_path}"]
    return subprocess.run(command, cwd=PROJECT, env=env, check=True, capture_output=True, text=True).stdout


def test_make_names_the_profile(tmp_path: Path) -> None:
    assert make("tour", tmp_path).endswith("python -m assets.run tour\n")
    assert make("run", tmp_path).endswith("python -m assets.run none\n")


def under(project: TinyProject, profile: str) -> Resolved:
    return Project(project.data, project.now().experiments, profile).resolve()


def run(project: TinyProject, profile: str) -> list[bool]:
    """Make the profile's cells current; returns for each whether it was current before."""
    resolved, reused = under(project, profile), []
    for key in [CellKey(model, method, 1) for model, method in resolved.project.grid]:
        reused += [train(resolved, key, hooks=QUIET)[1], evaluate(resolved, key, hooks=QUIET)[1]]
    return reused


def test_the_corpus_is_enough_for_it_and_both_profiles_rows_stay_current(project: TinyProject) -> None:
    selected = under(clean_for(project), "tour").selected
    assert len(selected.eval) >= 30 and len(selected.train) == 40, "without any generated record"
    few = {"methods": ["lora-r8"], "max_train_examples": 12, "max_eval_examples": 4}
    searched = {"training": {"learning_rate": {"lora": [1e-4, 1e-3, 1e-2]}}}
    project.change(profiles={"local": {"methods": ["lora-r8"]}, "tour": few | searched})
    project.change(profiles={"tour": {"evaluation": {"answers": 1, "max_new_tokens": 4}}})
    assert not any(run(project, "local")) and not any(run(project, "tour"))
    assert all(run(project, "local")) and all(run(project, "tour"))
    for profile, rates in (("local", ("shared",)), ("tour", ("tuned", "edge"))):
        (row,) = comparison_rows(under(project, profile))
        assert (row["status"], row["is_stale"]) == ("ok", False) and row["rates"] in rates, profile
        assert row["model"] == (MODEL if profile == "local" else f"{MODEL}-tour") and row["eval_bits_per_byte"]
