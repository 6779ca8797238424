"""Changed weights or another tokenizer under one name: earlier results are never mixed with new
ones."""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.compare.table import comparison_rows
from pipelines.errors import UsageError
from pipelines.evaluate.cell import evaluate, evaluated_by, spec_of
from pipelines.extras.export import bit_widths
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.lake import files
from pipelines.lake.paths import DataRoot
from pipelines.nightly.due import why_due
from pipelines.project import Resolved
from pipelines.runs import checkpoints
from pipelines.runs.cells import Attempt, latest
from pipelines.runs.run import RunHooks
from pipelines.runs.spec import RunSpec, spec_in
from pipelines.train import cell
from pipelines.train.cell import train
from pipelines.weights import content as weights_content
from pipelines.weights.content import content_of
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject, make_project

WATCH = RunHooks(say=lambda _message: None, launcher=InProcess())


def content(folder: Path, record: Path | None = None) -> str | None:
    return content_of(folder, record or folder.parent / "hashes.json", say=lambda _message: None)


def other_weights(folder: Path) -> None:
    """Move one tensor of the model a little; names, shapes and sizes stay."""
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name] = tensors[name] + torch.ones_like(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("<|im_start|>", "<|im_start|> "), encoding="utf-8")


def settled(folder: Path) -> None:
    """Make the files look as if they were written a while ago."""
    for path in folder.rglob("*"):
        os.utime(path, (1.7e9, 1.7e9))


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "weights"))


@dataclass(frozen=True)
class Made:
    """A project whose model lies in `folder`, with `base` and `lora-r8` trained and evaluated."""

    project: TinyProject
    folder: Path

    def attempt(self, method: str) -> Attempt:
        newest = latest(self.project.data, self.project.key(method))
        assert newest
        return newest

    def copied(self, to: Path) -> "Made":
        shutil.copytree(self.project.data.root.parent.parent, to)
        folder = to / "weights"
        project = TinyProject(DataRoot(to / "project" / "data"), to / "project" / "experiments.yaml")
        project.change(models={MODEL: {"source": {"path": str(folder)}}})
        return Made(project, folder)


def run(project: TinyProject, method: str) -> None:
    resolved = project.resolved()
    train(resolved, project.key(method), hooks=WATCH)
    evaluate(resolved, project.key(method), hooks=WATCH)


@pytest.fixture(scope="module")
def first(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("made")
    folder = Path(shutil.copytree(tiny_folder, root / "weights"))
    project = clean_for(make_project(root / "project", folder))
    for method in ("base", "lora-r8"):
        run(project, method)
    return Made(project, folder)


@pytest.fixture
def made(first: Made, tmp_path: Path) -> Made:
    """A copy of the project under other paths and with other times."""
    return first.copied(tmp_path / "copy")


def by_method(resolved: Resolved) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in comparison_rows(resolved)}


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        other_template,
        lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text(encoding="utf-8").replace("<|im_end|>", "<|the_end|>"), encoding="utf-8"
        ),
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": [0, 5]}', encoding="utf-8"),
        lambda folder: (folder / "config.json").write_text(
            json.dumps({**json.loads((folder / "config.json").read_text(encoding="utf-8")), "rms_norm_eps": 1e-3}), "utf-8"
        ),
    ],
    ids=["weights", "template", "tokenizer", "generation", "config"],
)  # fmt: skip
def test_the_hash_is_of_what_is_loaded(change: Any, folder: Path) -> None:
    before = content(folder)
    change(folder)
    assert content(folder) != before


def test_the_hash_is_not_of_what_is_beside_it(folder: Path, tmp_path: Path) -> None:
    before = content(folder)
    (folder / "README.md").write_text("another word", encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"not loaded where model.safetensors is")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9"}), encoding="utf-8")
    assert content(folder) == before
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "copied"))
    assert content(copied) == before


def test_an_index_names_the_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "part-1.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(tensors, "part-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    before = content(folder)
    tensors = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(tensors, folder / "part-1.safetensors", metadata={"format": "pt"})
    assert content(folder) != before


def test_what_has_not_changed_is_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(folder)
    read: list[Path] = []
    monkeypatch.setattr(weights_content, "file_sha256", lambda path: read.append(path) or files.file_sha256(path))
    record = tmp_path / "lake" / "hashes.json"
    first = content(folder, record)
    assert folder / "model.safetensors" in read
    for another_process in (False, True):
        read.clear()
        if another_process:
            monkeypatch.setattr(weights_content, "_hashed", {})
        assert content(folder, record) == first
        assert read == []
    os.utime(folder / "model.safetensors", (1.8e9, 1.8e9))
    assert content(folder, record) == first
    assert read == [folder / "model.safetensors"]


def test_large_weights_are_announced_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(folder)
    monkeypatch.setattr(weights_content, "LARGE", 1000)
    lines: list[str] = []
    for _ in range(2):
        content_of(folder, tmp_path / "lake" / "hashes.json", say=lines.append)
    assert len(lines) == 1 and str(folder) in lines[0]


def test_other_weights_under_one_path_are_another_recipe(made: Made) -> None:
    project, lora, base = made.project, made.attempt("lora-r8"), made.attempt("base")
    before = by_method(project.resolved())
    assert before["lora-r8"]["is_stale"] is False and before["lora-r8"]["base_bits_per_byte"] is not None
    assert base.result.fingerprints["weights"] == lora.result.fingerprints["weights"] == content(made.folder)

    other_weights(made.folder)
    resolved, key = project.resolved(), lora.key
    assert resolved.changed(lora) == resolved.changed(base) == ["recipe"]
    assert why_due(resolved, key, evaluated_by(resolved)) == "stale: recipe"
    for refused in (
        lambda: evaluate(resolved, key, hooks=WATCH),
        lambda: export(resolved, key, ExportRequest(), hooks=WATCH),
        lambda: bit_widths.measure(resolved, key, ["fp32"], hooks=WATCH),
    ):
        with pytest.raises(UsageError, match="made with other weights or another tokenizer than"):
            refused()

    # Runs on the new weights; the adapter's row is still of the old ones.
    run(project, "base")
    rows = by_method(project.resolved())
    assert rows["base"]["is_stale"] is False
    assert rows["lora-r8"]["stale_because"] == "recipe"
    assert rows["lora-r8"]["weights_fingerprint"] != rows["base"]["weights_fingerprint"]
    for name in ("base_bits_per_byte", "delta_base", "forgetting_bits_per_byte"):
        assert rows["lora-r8"][name] is None
    assert "measured with other weights" in rows["lora-r8"]["advice"]


def test_a_copied_root_and_a_copied_folder_stay_current(first: Made, made: Made) -> None:
    # Without the stored hashes, nothing is known of this place.
    shutil.rmtree(made.project.data.lake / "weights")
    attempt, resolved = made.attempt("lora-r8"), made.project.resolved()
    assert attempt.spec.recipe["source"] != resolved.plan(attempt.key).recipe["source"]
    assert resolved.changed(attempt) == []
    again, reused = evaluate(resolved, attempt.key, hooks=WATCH)
    assert again.ok and reused
    assert spec_of(resolved, attempt).weights == str(made.folder) != str(first.folder)


def test_an_interrupted_cell_does_not_go_on_on_other_weights(made: Made) -> None:
    attempt = made.attempt("lora-r8")
    result = json.loads((attempt.folder / "result.json").read_text(encoding="utf-8"))
    prints = made.project.resolved().plan(attempt.key).fingerprints
    files.write_json(attempt.folder / "result.json", {**result, "status": "killed", "fingerprints": prints})
    replace(spec_in(attempt.folder), fingerprints=prints).write(attempt.folder)
    checkpoint = attempt.folder / checkpoints.FOLDER / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / checkpoints.STATE).write_text("{}", encoding="utf-8")
    lines: list[str] = []
    hooks = replace(WATCH, say=lines.append)

    def next_attempt() -> RunSpec:
        return spec_in(cell._next_attempt(made.project.resolved(), attempt.key, hooks).folder)

    goes_on = next_attempt()
    assert (goes_on.resume or {})["run_id"] == attempt.run_id and not lines
    other_weights(made.folder)
    assert next_attempt().resume is None
    assert "interrupted on other weights" in lines[-1]


def test_weights_that_change_while_a_cell_waits_are_not_trained(made: Made) -> None:
    resolved, key = made.project.resolved(), made.project.key("lora-r8")
    waiting = cell._next_attempt(resolved, key, WATCH)
    other_weights(made.folder)
    result = waiting.to_result(resolved.project.site(WATCH))
    assert result.status == "unavailable" and "changed while" in result.detail


def test_what_was_fetched_for_a_cell_is_named_in_its_spec(made: Made) -> None:
    """The weights are not here yet when the cell is planned."""
    away = made.folder.rename(made.folder.with_name("away"))
    resolved, key = made.project.resolved(), made.project.key("lora-r8")
    waiting = cell._next_attempt(resolved, key, WATCH)
    assert "weights" not in spec_in(waiting.folder).fingerprints
    away.rename(made.folder)
    waiting.fetch()
    fingerprints = spec_in(waiting.folder).fingerprints
    assert fingerprints["weights"] == content(made.folder)
    assert fingerprints["recipe"] == made.project.resolved().plan(key).fingerprints["recipe"]


def test_weights_that_are_gone_make_nothing_stale(made: Made) -> None:
    attempt = made.attempt("lora-r8")
    recipe = made.project.resolved().plan(attempt.key).recipe
    replace(spec_in(attempt.folder), recipe=recipe).write(attempt.folder)
    made.folder.rename(made.folder.with_name("away"))
    assert made.project.resolved().changed(made.attempt("lora-r8")) == []


def without_hashes(made: Made, method: str, **result: str) -> Attempt:
    """The attempt as recorded by code that did not hash the weights; `result` overrides fields of
    its result."""
    attempt = made.attempt(method)
    recipe = made.project.resolved().plan(attempt.key).recipe
    prints = {name: value for name, value in attempt.spec.fingerprints.items() if name != "weights"}
    prints["recipe"] = files.stable_hash(recipe)
    replace(spec_in(attempt.folder), recipe=recipe, fingerprints=prints).write(attempt.folder)
    recorded = json.loads((attempt.folder / "result.json").read_text(encoding="utf-8"))
    files.write_json(attempt.folder / "result.json", {**recorded, "fingerprints": prints, **result})
    shutil.rmtree(made.project.data.lake / "weights")
    return made.attempt(method)


LONG_AGO = "2020-01-01T00:00:00.000+00:00"


def test_rows_of_code_without_hashes_are_current_until_the_weights_change(made: Made) -> None:
    settled(made.folder)
    old = without_hashes(made, "lora-r8")
    resolved = made.project.resolved()
    assert resolved.changed(old) == []
    # The content at the first look.
    assert resolved.weights_of(old) == content(made.folder)
    other_weights(made.folder)
    assert made.project.resolved().changed(old) == ["recipe"]
    with pytest.raises(UsageError, match="made with other weights"):
        made.project.resolved().require_same_weights(old)


def test_weights_written_after_an_old_row_are_not_taken_for_its_own(made: Made) -> None:
    without_hashes(made, "lora-r8", started_at=LONG_AGO)
    row = by_method(made.project.resolved())["lora-r8"]
    assert row["stale_because"] is None, "the weights are unknown, so it is not stale"
    assert row["weights_fingerprint"] is None
    assert row["base_bits_per_byte"] is None, "the untouched model's weights are known, the adapter's are not"


@pytest.mark.parametrize(("commit", "changed"), [("abc", []), ("def", ["recipe"])])
def test_a_commit_recorded_with_an_old_row_says_whether_its_weights_are_here(
    commit: str, changed: list[str], made: Made
) -> None:
    files.write_json(made.folder / "featherweight.json", {"commit": commit})
    old = without_hashes(made, "lora-r8", started_at=LONG_AGO, weights_revision="abc")
    assert made.project.resolved().changed(old) == changed
