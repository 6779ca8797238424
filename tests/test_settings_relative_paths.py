"""Paths in experiments.yaml are relative to its folder, wherever a command is started; `~` is the
home folder."""

import shutil
from pathlib import Path

import pytest

from pipelines.clean.read import hub_records, raw_records
from pipelines.errors import UsageError
from pipelines.estimate.question import config_of
from pipelines.generate.requests import load_prompts
from pipelines.lake.files import write_jsonl
from pipelines.weights import store
from tests.in_process import InProcess, clean_for, trained
from tests.project import MODEL, TinyProject

RECORDS = [
    {"instruction": f"What is {n} plus {n}?", "input": "", "output": f"The sum of {n} and {n} is {2 * n}."}
    for n in range(3)
]


@pytest.fixture
def beside(project: TinyProject, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """A project whose own files lie beside experiments.yaml; commands start elsewhere."""
    shutil.copytree(tiny_folder, project.experiments.parent / "mymodel")
    shutil.copytree(tiny_folder, tmp_path / "home" / "model")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return project


@pytest.mark.parametrize("named", ["mymodel", "./mymodel", "~/model"])
def test_a_models_folder(beside: TinyProject, named: str) -> None:
    beside.change(models={MODEL: {"source": {"path": named}}})
    now = beside.now()
    model = now.experiments.model(MODEL)
    folder = store.fetch(now.data, now.experiments, MODEL)
    assert folder.is_absolute() and (folder / "config.json").exists() and model.source.path == named
    assert Path(now.data.root / store.lies_in(now.data, MODEL, model)) == folder, "where its child looks"


@pytest.mark.slow
def test_a_cell_is_trained_on_weights_beside_experiments_yaml(beside: TinyProject) -> None:
    beside.change(models={MODEL: {"source": {"path": "mymodel"}}})
    attempt = trained(clean_for(beside), "lora-r8", InProcess())
    assert attempt.status == "ok", attempt.result.status_detail


def test_files_globs_prompts_data_sets_and_configurations(beside: TinyProject, tmp_path: Path) -> None:
    for path in (
        beside.experiments.parent / "mine.jsonl",
        beside.experiments.parent / "set" / "a.jsonl",
        tmp_path / "home" / "x.jsonl",
    ):
        path.parent.mkdir(exist_ok=True)
        write_jsonl(path, RECORDS)
    for named in ("mine.jsonl", "min*.jsonl", "~/x.jsonl", "~/*.jsonl", str(beside.experiments.parent / "mine.jsonl")):
        beside.change(sources={"corpus": False, "files": [named], "providers": []})
        now = beside.now()
        assert len(list(raw_records(now.data, now.experiments))) == 3, named
    beside.change(
        sources={"files": [], "hub": [{"dataset": "set"}]},
        generation={"prompts": "file", "prompts_file": "mine.jsonl"},
        models={MODEL: {"source": {"path": None, "random": "mymodel/config.json"}}},
    )
    now = beside.now()
    assert len(list(load_prompts(now.data, now.experiments.generation).ordered(["en"]))) == 3
    assert [record.source for record in hub_records(now.experiments.sources.hub[0])] == ["set"] * 3
    config = config_of(now.data, MODEL, now.experiments.model(MODEL))
    assert config and config["model_type"] == "llama"


def test_a_folder_with_brackets_in_its_name_is_no_pattern(beside: TinyProject, tmp_path: Path) -> None:
    folder = tmp_path / "a[1] *?"
    folder.mkdir()
    write_jsonl(folder / "mine.jsonl", RECORDS)
    write_jsonl(folder / "mine[2].jsonl", RECORDS)
    beside.change(sources={"corpus": False, "files": ["m*.jsonl", "mine[2].jsonl"], "providers": []})
    moved = TinyProject(beside.data, Path(shutil.copy(beside.experiments, folder)))
    assert len(list(raw_records(moved.data, moved.now().experiments))) == 6


def test_what_is_not_there_is_said_with_the_place_that_was_looked_at(beside: TinyProject) -> None:
    folder = beside.experiments.parent
    beside.change(models={MODEL: {"source": {"path": "nomodel"}}}, sources={"files": ["none.jsonl"]})
    now = beside.now()
    with pytest.raises(UsageError, match=f"{folder / 'nomodel'} has no config.json"):
        store.fetch(now.data, now.experiments, MODEL)
    with pytest.raises(UsageError, match=f"{folder / 'none.jsonl'}: no such file"):
        list(raw_records(now.data, now.experiments))
    beside.change(sources={"files": ["~nobody-of-this-name/x.jsonl"]})
    with pytest.raises(UsageError, match=r"~nobody-of-this-name/x\.jsonl: no such file"):
        list(raw_records(now.data, beside.now().experiments))
