"""A model made from another model of the file is a model like any other: fetched, predicted,
trained, compared, exported."""

from pathlib import Path

import pytest

from pipelines.compare.table import comparison_rows, note_on
from pipelines.compare.tables import all_tables
from pipelines.errors import UsageError
from pipelines.estimate.estimate import estimates
from pipelines.estimate.question import config_of
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.lake.weights_record import RECORD
from pipelines.runs.cells import CellKey
from pipelines.runs.run import RunHooks
from pipelines.settings import experiments as configuration
from pipelines.train.cell import train
from pipelines.train.provenance import base_of
from pipelines.weights import store
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.tiny import save_tiny

QUIET = RunHooks(say=lambda _message: None, launcher=InProcess())


@pytest.fixture
def project(project: TinyProject) -> TinyProject:
    """The tiny model, and one made from it with a note of its own."""
    project.change(models={"made": {"source": {"from": MODEL}, "note": "Made for a test.", "lora_targets": ["q_proj"]}})
    project.change(profiles={"local": {"models": [MODEL, "made"], "methods": ["base", "lora-r8"]}})
    return project


def fetched(project: TinyProject) -> Path:
    return store.fetch(project.data, project.now().experiments, "made", say=lambda _: None)


def test_it_has_what_is_said_of_the_other_and_not_of_itself(project: TinyProject) -> None:
    own = {"lora-r8": {"epochs": 2}}
    settings = {
        "note": "The first.",
        "license": "apache-2.0",
        "learning_rate": 3e-4,
        "overrides": {**own, "full": {"epochs": 3}},
    }
    project.change(models={MODEL: settings, "made": {"overrides": {"full": {"epochs": 4}}}})
    made, other = (project.now().experiments.model(name) for name in ("made", MODEL))
    assert (made.prompt, made.license, made.learning_rate) == (other.prompt, other.license, 3e-4)
    assert (made.note, made.lora_targets, made.origin) == ("Made for a test.", ["q_proj"], other)
    assert [made.overrides[name].epochs for name in ("lora-r8", "full")] == [2, 4]
    assert note_on(made) == "The first. Made for a test."


def test_its_files_take_no_room_and_its_record_says_where_they_are_from(project: TinyProject) -> None:
    folder, now = fetched(project), project.now()
    parent = store.model_folder(project.data, MODEL, now.experiments.model(MODEL))
    assert folder == project.data.models / "made" and (folder / RECORD).exists()
    assert (folder / "model.safetensors").stat().st_ino == (parent / "model.safetensors").stat().st_ino
    assert (folder / "config.json").stat().st_ino != (parent / "config.json").stat().st_ino, "may be changed alone"
    same = [store.content(project.data, name, now.experiments.model(name)) for name in ("made", MODEL)]
    assert same[0] == same[1] and base_of(folder).name == parent.name


def test_it_is_made_again_when_the_other_has_become_another(project: TinyProject) -> None:
    folder, now = fetched(project), project.now()
    made = now.experiments.model("made")
    parent = store.model_folder(project.data, MODEL, now.experiments.model(MODEL))
    before = store.content(project.data, "made", made)
    project.change(models={MODEL: {"source": {"path": str(save_tiny(parent.parent / "other", "gemma"))}}})
    other = project.now().experiments.model("made")
    assert store.source_id(other) != store.source_id(made)
    assert not store.is_present(project.data, "made", other)
    assert fetched(project) == folder and store.content(project.data, "made", other) != before

    # The other model is saved under the same path.
    again = save_tiny(parent.parent / "other", "llama")
    assert (again / "config.json").exists() and not store.is_present(project.data, "made", other)
    fetched(project)
    assert store.is_present(project.data, "made", other) and store.content(project.data, "made", other) == before
    again.rename(parent.parent / "elsewhere")
    assert store.is_present(project.data, "made", other), "the made model works without its source"


def test_its_shape_is_known_before_it_is_there(project: TinyProject) -> None:
    experiments = project.now().experiments
    shapes = [config_of(project.data, name, experiments.model(name)) for name in ("made", MODEL)]
    assert shapes[0] and shapes[0] == shapes[1] and not (project.data.models / "made").exists()


@pytest.mark.slow
def test_it_is_predicted_before_it_is_there_trained_published_and_exported(
    project: TinyProject, tmp_path: Path
) -> None:
    clean_for(project)
    (predicted,) = estimates(project.now(), [("made", "lora-r8")], say=lambda _: None)
    assert predicted.because is None and not (project.data.models / "made").exists()
    resolved, key = project.resolved(), CellKey("made", "lora-r8", 1)
    attempt, _ = train(resolved, key, hooks=QUIET)
    assert attempt.status == "ok", attempt.result.detail
    assert predicted.answer["trainable"] == attempt.result.measured["trainable_params"]
    made = export(resolved, key, ExportRequest(output=tmp_path / "out"), hooks=QUIET)
    assert made.ok, made.result.detail
    rows = {(row["model"], row["method"]): row for row in comparison_rows(project.resolved())}
    assert rows["made", "lora-r8"]["model_note"].endswith("Made for a test.")
    assert rows["made", "lora-r8"]["weights_fingerprint"] and rows[MODEL, "lora-r8"]["status"] == "missing"
    tables = all_tables(project.data, project.now().experiments, list(rows.values()))
    assert tables["training_runs"].column("model").to_pylist() == ["made"]


def test_random_weights_stay_random_when_a_model_is_made_of_them(project: TinyProject) -> None:
    project.change(models={MODEL: {"source": {"path": None, "random": "smollm2-135m"}}})
    assert "random weights in the shape of smollm2-135m" in (note_on(project.now().experiments.model("made")) or "")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"from": "nobody"}, "source.from: got .nobody.; expected one of gemma"),
        ({"from": "made"}, "made is made from made"),
        ({"from": "third"}, "made is made from third is made from made"),
        ({"from": MODEL, "hub": "a/b"}, "exactly one of wheel, hub, path, random or from"),
        ({"from": 3}, "got 3; expected a text"),
    ],
)
def test_what_cannot_be_made_is_refused(project: TinyProject, source: dict[str, object], words: str) -> None:
    project.change(models={"made": {"source": source}, "third": {"source": {"from": "made"}}})
    with pytest.raises(UsageError, match=words):
        configuration.load(project.experiments)
