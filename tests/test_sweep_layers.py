"""`featherweight sweep --layers`: ordinary cells, a table and a picture, and the report's section
on fewer layers."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines import cli
from pipelines.compare import layers_report
from pipelines.compare.table import Row, comparison_rows
from pipelines.errors import UnavailableError, UsageError
from pipelines.evaluate.cell import evaluated_by
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.extras.export.gguf_file import write_gguf
from pipelines.extras.export.native import LlamaCpp
from pipelines.runs.cells import CellKey
from pipelines.runs.run import RunHooks
from pipelines.settings.model_settings import Model
from pipelines.sweep import layers as sweeping
from tests.fakes.planted import Lake, lake, row
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.test_train_layers import IDS, deep, short


@pytest.fixture
def planted_lake(tmp_path: Path) -> Lake:
    return lake(tmp_path)


def test_a_model_for_each_number_of_layers(planted_lake: Lake) -> None:
    swept = sweeping.with_layers(planted_lake.project, "tiny", [4, 0, 1, 4])
    assert swept.models == {0: "tiny", 1: "tiny-drop1", 4: "tiny-drop4"} and swept.added == ["tiny-drop1", "tiny-drop4"]
    assert swept.methods == ["base", "full", "lora-r8", "qlora-r8"]
    profile, made = swept.project.settings, swept.project.experiments.model("tiny-drop4")
    assert profile.models == ["tiny", "tiny-drop1", "tiny-drop4"] and profile.methods == swept.methods
    assert (made.source.parent, made.source.drop_layers, made.lora_targets) == ("tiny", 4, ["q_proj"])
    assert made.parent is swept.project.experiments.model("tiny")
    only = sweeping.with_layers(planted_lake.project, "tiny", [2], ["lora-r8"])
    assert only.models == {2: "tiny-drop2"} and only.project.settings.methods == ["base", "lora-r8"]


def test_what_it_makes_is_what_the_file_would_say(planted_lake: Lake) -> None:
    """Its cells stay current once its lines are put into the file."""
    written = planted_lake.configured(models={"mine": {"source": {"from": "tiny", "drop_layers": 3}}})
    swept = sweeping.with_layers(planted_lake.project, "tiny", [3])
    models: list[Model] = [swept.project.experiments.model("tiny-drop3"), written.project.experiments.model("mine")]
    assert models[0].model_dump() == models[1].model_dump()
    assert sweeping.with_layers(written.project, "tiny", [3]).models == {3: "mine"}
    recipes = [swept.project.recipe_of("tiny-drop3", "lora-r8"), written.project.recipe_of("mine", "lora-r8")]
    assert recipes[0] | {"model": ""} == recipes[1] | {"model": ""}
    other = planted_lake.configured(models={"tiny-drop4": {"source": {"from": "tiny", "drop_layers": [3]}}})
    with pytest.raises(UsageError, match="is another model than tiny without 4 layers: rename it"):
        sweeping.with_layers(other.project, "tiny", [4])


def test_however_many_layers_are_swept_the_evaluations_stay_current(planted_lake: Lake) -> None:
    """A model without some layers reads what the whole one reads, so it decides nothing about the
    records."""
    prints = {
        evaluated_by(sweeping.with_layers(planted_lake.project, "tiny", counts, ["full"]).project.resolve()).fingerprint
        for counts in ([0], [0, 1], [0, 1, 4])
    }
    assert len(prints) == 1
    configured = planted_lake.configured(
        models={"tiny-drop1": {"source": {"from": "tiny", "drop_layers": 1}, "max_length": 77}}
    )
    swept = sweeping.with_layers(configured.project, "tiny", [0], ["full"]).project
    profile = swept.settings.model_copy(update={"models": ["tiny", "tiny-drop1"]})
    wide = replace(
        swept,
        experiments=swept.experiments.model_copy(
            update={"profiles": {**swept.experiments.profiles, swept.profile: profile}}
        ),
    )
    assert evaluated_by(wide.resolve()).fingerprint not in prints, "this one reads less"


def test_what_cannot_be_swept_is_refused(planted_lake: Lake) -> None:
    with pytest.raises(UsageError, match="unknown model"):
        sweeping.with_layers(planted_lake.project, "huge", [1])
    with pytest.raises(UsageError, match="unknown method 'lora-r9'"):
        sweeping.with_layers(planted_lake.project, "tiny", [1], ["lora-r9"])
    shaped = planted_lake.configured(models={"tiny": {"source": {"hub": None, "random": "smollm2-135m"}}})
    with pytest.raises(UsageError, match="got 30; the model has 30 layers: expected 1 to 29"):
        sweeping.with_layers(shaped.project, "tiny", [0, 30])


def test_numbers_of_layers_are_read_with_commas_and_without() -> None:
    read = lambda *arguments: cli.parser().parse_args(["sweep", "tiny", *arguments])  # noqa: E731
    assert read("--layers", "0,4", "8").layers == [[0, 4], [8]] and read().layers is None
    for wrong in ("-1", "4,", "x", "1.5", ""):
        with pytest.raises(SystemExit):
            read("--layers", wrong)


def test_settings_of_ranks_do_not_go_with_layers(project: TinyProject) -> None:
    for more in (["--alpha", "scaled"], ["--targets", "attention"], ["--ranks", "8"]):
        assert cli.main(["sweep", "--layers", "1", *more]) == 2
    assert cli.main(["sweep", "--methods", "full"]) == 2


def test_a_model_that_cannot_be_made_is_a_row(planted_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UnavailableError("drop_layers: it has no stack of blocks")

    attempt = SimpleNamespace(status="unavailable")
    monkeypatch.setattr(sweeping.store, "fetch", refuse)
    monkeypatch.setattr("pipelines.sweep.cells.train", lambda *_, **__: (attempt, False))
    monkeypatch.setattr("pipelines.sweep.cells.evaluate_base", lambda *_, **__: None)
    swept, lines = sweeping.with_layers(planted_lake.project, "tiny", [0, 1], ["full"]), []
    rows = sweeping.run_sweep(swept, on_tick=lambda _: None, tell=lines.append)
    assert [(one["dropped"], one["method"], one["status"]) for one in rows] == [
        (0, "full", "missing"),
        (1, "full", "missing"),
    ]
    assert lines[1] == "tiny-drop1: drop_layers: it has no stack of blocks" and len(lines) == 4
    text = sweeping.table(rows, swept, "text")
    assert "tiny-drop1 full is missing" in text and "tiny-drop1: {source: {from: tiny, drop_layers: 1}}" in text
    assert json.loads(sweeping.table(rows, swept, "json"))[1]["dropped"] == 1
    assert sweeping.write_picture(rows, swept) is None


def _rows(models: list[str]) -> list[Row]:
    """The untouched row and two trained rows of each model."""
    common: Row = {
        "eval_bits_per_byte": 1.5,
        "trainable_params": 9,
        "peak_memory_gb": 2.0,
        "answer_tokens_per_second": 7.0,
    }
    return [
        row(
            model=model,
            method=method,
            layers=30 - 4 * number,
            **(common | ({"trainable_params": 0} if method == "base" else {})),
        )
        for number, model in enumerate(models)
        for method in ("base", "lora-r8", "qlora-r8")
    ]


def test_the_reports_part_has_a_line_for_each_method(planted_lake: Lake) -> None:
    project = planted_lake.configured(
        models={
            "short": {"source": {"from": "tiny", "drop_layers": 4}, "note": "<b>mine</b>"},
            "shorter": {"source": {"from": "short", "drop_layers": [0, 1, 2, 3]}},
            "copy": {"source": {"from": "tiny"}},
        }
    ).project
    rows = _rows(["tiny", "short", "shorter", "copy"])
    assert {
        name: [one["dropped"] for one in of] for name, of in layers_report.families(project.experiments, rows).items()
    } == {"tiny": [0, 0, 0, 4, 4, 4, 8, 8, 8]}
    html = layers_report.section(project, rows)
    assert html and all(name in html for name in ("base", "lora-r8", "qlora-r8 (nf4)", "<svg", "Fewer layers"))
    assert html.count("<tr>") == 10 and "<b>" not in html
    assert layers_report.section(project, _rows(["tiny", "copy"])) is None
    unmeasured = [{**one, "eval_bits_per_byte": None} for one in rows]
    assert layers_report.section(project, unmeasured) is None and layers_report.section(project, []) is None


@pytest.mark.slow
def test_shortened_models_are_healed_compared_and_exported(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean_for(project)
    project.change(models={MODEL: {"source": {"path": str(deep(tmp_path / "whole"))}}})
    quiet = RunHooks(say=lambda _message: None, launcher=InProcess())
    monkeypatch.setattr(sweeping, "RunHooks", lambda **_: quiet)
    swept, lines = sweeping.with_layers(project.now(), MODEL, [0, 2]), []
    rows = sweeping.run_sweep(swept, on_tick=lambda _: None, tell=lines.append)
    assert [(one["dropped"], one["layers"], one["method"], one["status"]) for one in rows] == [
        (drop, 6 - drop, method, "ok") for drop in (0, 2) for method in ("base", "full", "lora-r8", "qlora-r8")
    ]
    assert {one["dropped_layers"] is None for one in rows[:4]} == {True} and rows[4]["dropped_layers"]
    assert (
        rows[5]["base_bits_per_byte"] == rows[4]["eval_bits_per_byte"]
        and rows[4]["total_params"] < rows[0]["total_params"]
    )
    assert "nf4" in sweeping.table(rows, swept, "markdown")
    path = sweeping.write_picture(rows, swept)
    assert path and path.name == f"layers-{MODEL}.png" and path.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert cli.main(["sweep", MODEL, "--layers", "0,2", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert out.count("(current, reused)") == 8 and f"layers-{MODEL}.png" in err
    assert out.splitlines()[-8:][4].startswith(f"2,4,{rows[4]['dropped_layers']},base,none,ok,")

    resolved = swept.project.resolve()
    made = export(
        resolved, CellKey(f"{MODEL}-drop2", "lora-r8", 1), ExportRequest(output=tmp_path / "out"), hooks=quiet
    )
    assert made.ok, made.result.detail
    short_rows = [one for one in comparison_rows(resolved) if one["model"] == f"{MODEL}-drop2"]
    assert all("Without 2 of the layers of" in one["model_note"] for one in short_rows)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_llama_cpp_answers_as_the_shortened_model(architecture: str, tmp_path: Path) -> None:
    folder = short(deep(tmp_path / "whole", architecture), [1, 3])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    write_gguf(folder, tmp_path / "short.gguf", "F32", name="short")
    ids = IDS[0].tolist()
    with LlamaCpp(tmp_path / "short.gguf", context=64, threads=1) as llama, torch.no_grad():
        logs = model(IDS).logits[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy()
        np.testing.assert_allclose(llama.log_probabilities(ids), logs, atol=2e-3)


@pytest.mark.slow
def test_a_gguf_that_llama_cpp_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    """Every sixth layer of Gemma 3 differs, which llama.cpp assumes by position: without the first
    two it would be the fourth."""
    folder = short(deep(tmp_path / "whole", "gemma3_text"), [0, 1])
    with pytest.raises(UnavailableError, match=r"another kind .layer_types.*own rule"):
        write_gguf(folder, tmp_path / "short.gguf", "F32", name="short")
    # The sixth layer is gone, as in a model of four layers.
    last = short(deep(tmp_path / "other", "gemma3_text"), [4, 5])
    assert write_gguf(last, tmp_path / "short.gguf", "F32", name="short").types
