"""The memory of merging is predicted, and stays within the prediction."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.errors import UnavailableError, WorkError
from pipelines.extras.export import memory
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.extras.export.memory import Weights, predicted_peak, weights_in
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("shards", ["1GB", "60KB"])
def test_a_models_size_is_read_without_loading_it(tmp_path: Path, shards: str) -> None:
    model: Any = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "60KB")
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert weights_in(tmp_path) == Weights(sum(sizes), max(sizes), 4 * sum(sizes))
    model.to(torch.float16).save_pretrained(tmp_path, max_shard_size=shards)
    assert weights_in(tmp_path).bytes == 2 * sum(sizes)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="no safetensors"):
        weights_in(tmp_path)


GIGABYTE = 10**9


def test_what_lies_there_at_once_is_added_up() -> None:
    def peak(bytes_of_file: float, quantization: str | None = None, positions: int = 0) -> float:
        weights = Weights(GIGABYTE, GIGABYTE // 10, int(bytes_of_file))
        recipe = {"quantization": quantization}
        return predicted_peak(weights, recipe, vocabulary=50_000, positions=positions, occupied=GIGABYTE) / GIGABYTE

    plain = peak(4e9)
    assert plain == pytest.approx(1 + 0.4 + 4 + 0.8)
    assert peak(2e9) == pytest.approx(plain + 2), "a file in halves is read beside"
    assert peak(4e9, "nf4") == pytest.approx(plain + 0.57 + 0.4), "the packed base, its embeddings as they were"
    assert peak(4e9, positions=2000) == pytest.approx(1 + 0.4 + 4 + 1.2), "logits outweigh the change of a layer"


def test_a_machine_with_less_memory_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * GIGABYTE))
    memory.require(3 * GIGABYTE)
    with pytest.raises(UnavailableError, match=r"merging needs 9.0 GB .*use --adapter"):
        memory.require(9 * GIGABYTE)


def save_small(folder: Path) -> Path:
    """A model of some 70 million weights, large enough to show beside the libraries."""
    shape = {
        **ARCHITECTURES["llama"],
        "vocab_size": 24_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 5,
    }
    torch.manual_seed(7)
    config = AutoConfig.for_model("llama", **shape, bos_token_id=2, eos_token_id=0, pad_token_id=0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora-r8", "qlora-r8"])
def test_merging_stays_within_what_was_foretold(method: str, project: TinyProject, tmp_path: Path) -> None:
    project.change(models={MODEL: {"source": {"path": str(save_small(tmp_path / "small"))}}})
    resolved, key = clean_for(project).resolved(), project.key(method)
    attempt, _ = train(resolved, key, hooks=RunHooks(say=lambda _message: None, launcher=InProcess()))
    assert attempt.status == "ok", attempt.result.detail
    # The export runs in a process of its own.
    made = export(resolved, key, ExportRequest(), hooks=RunHooks(say=lambda _message: None))
    assert made.ok, made.result.detail
    measured = made.result.measured
    assert measured["merge_peak_gb"] <= measured["merge_foretold_gb"] <= 2 * measured["merge_peak_gb"]


def test_a_merge_that_does_not_fit_is_unavailable_and_loads_no_model(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    resolved, key = clean_for(project).resolved(), project.key("base")
    train(resolved, key, hooks=hooks)
    never: Callable[..., Any] = lambda *_args, **_options: pytest.fail("it loads a model")  # noqa: E731
    monkeypatch.setattr("pipelines.extras.export.merge.trained_model", never)
    monkeypatch.setattr(memory, "predicted_peak", lambda *_args, **_options: 10**15)
    made = export(resolved, key, ExportRequest(), hooks=hooks)
    assert made.result.status == "unavailable" and "merging needs 1000000.0 GB" in made.result.detail
    assert made.merged and not made.merged.exists()
