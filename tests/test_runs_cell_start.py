"""Modules and tokenizers that a cell's processes load once, and those that they never load."""

import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate.fitting import fitting_everywhere
from pipelines.lake.files import write_json
from pipelines.runs.worker import Worker
from pipelines.train.trainer.prompts import PromptFormat
from tests.in_process import clean_for
from tests.project import TinyProject
from tests.tiny import save_tiny

ASKED: dict[str, Any] = {"prompt": "chat", "template": None}


def test_an_adapter_is_attached_without_importing_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    from pipelines.train.trainer import loading

    seen: list[Any] = []

    class Attached:
        @staticmethod
        def from_pretrained(_model: Any, _folder: str) -> str:
            seen.append(sys.modules.get("bitsandbytes", "it would be imported"))
            return "attached"

    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.setattr(peft, "PeftModel", Attached)
    assert loading.attach_trained(None, Path("trained")) == "attached"
    assert seen == [None] and "bitsandbytes" not in sys.modules
    monkeypatch.setitem(sys.modules, "bitsandbytes", "as a quantized model has it")  # pyright: ignore[reportArgumentType]
    loading.attach_trained(None, Path("trained"))
    assert seen[1:] == ["as a quantized model has it"]


def test_the_cells_own_tokenizer_is_loaded_once_and_every_other_reader_has_its_own(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = save_tiny(tmp_path / "models" / "own"), save_tiny(tmp_path / "models" / "other")
    records = clean_for(project).resolved().selected.eval
    form, loaded = PromptFormat.of(own, ASKED), []
    load = PromptFormat.of

    def noted(folder: Path, recipe: Any) -> PromptFormat:
        loaded.append(folder.name)
        return load(folder, recipe)

    monkeypatch.setattr(PromptFormat, "of", noted)

    def kept_ids(**recipe: Any) -> list[str]:
        readers = [{"model": path.name, "folder": str(path), "max_length": 512, **ASKED} for path in (own, other)]
        spec = {
            "root": str(tmp_path),
            "weights": "models/own",
            "recipe": {**ASKED, **recipe},
            "tokenizers_to_fit": readers,
        }
        write_json(tmp_path / "spec.json", spec)
        return [record["example_id"] for record in fitting_everywhere(Worker(tmp_path), records, form)]

    once = kept_ids()
    assert loaded == ["other"]
    assert kept_ids(prompt="alpaca") == once and loaded == ["other", "own", "other"], "asked otherwise than the reader"


def test_a_cell_whose_own_model_reads_no_record_is_not_measured_on_those_of_others(
    project: TinyProject, tmp_path: Path
) -> None:
    own = save_tiny(tmp_path / "models" / "own")
    records = clean_for(project).resolved().selected.eval
    reader = {"model": "own", "folder": str(own), "max_length": 1, **ASKED}
    spec = {"root": str(tmp_path), "weights": "models/own", "recipe": ASKED, "tokenizers_to_fit": [reader]}
    # The spec names its weights relative to the root, and its reader's by their whole path.
    write_json(tmp_path / "spec.json", spec)
    with pytest.raises(ValueError, match="own can read none of 3 evaluation records, with max_length 1"):
        fitting_everywhere(Worker(tmp_path), records)
