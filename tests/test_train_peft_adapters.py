"""Every PEFT adapter is a method by configuration alone, or a row that gives PEFT's reason against
it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.table import adapter_of, comparison_rows
from pipelines.errors import UsageError
from pipelines.estimate.estimate import estimates
from pipelines.evaluate.cell import evaluate
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.lake.files import read_json, read_jsonl
from pipelines.lake.paths import PROJECT
from pipelines.lake.warehouse import arrow_table
from pipelines.runs import cells
from pipelines.runs.cells import Attempt
from pipelines.runs.run import RunHooks
from pipelines.settings import experiments as configuration
from pipelines.settings.methods import traits_of
from pipelines.train.cell import train
from pipelines.train.trainer import loading, peft_adapter
from pipelines.train.trainer.peft_adapter import CHECK
from tests.in_process import InProcess, clean_for, kill_at, trained
from tests.project import MODEL, TinyProject
from tests.tiny import save_tiny, tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "vera": {"learning_rate": 5e-3, "peft": {"peft_type": "VERA", "r": 16, "vera_dropout": 0.05}},
    "ia3": {"learning_rate": 5e-3, "peft": {"peft_type": "IA3"}},
    "dora": {"peft": {"peft_type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "use_dora": True}},
    "pissa": {"peft": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa"}},
    "pissa-by-chance": {"peft": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa_niter_1"}},
    "prefix": {"peft": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no-such-type": ({"peft_type": "MAGIC"}, "has no MAGIC; it has "),
    "no-such-setting": ({"peft_type": "VERA", "rank": 4}, "PEFT's VERA with these settings on this model: TypeError: "),
    "too-few-settings": (
        {"peft_type": "PROMPT_TUNING"},
        "PEFT's PROMPT_TUNING with these settings on this model: TypeError",
    ),
    "weighs-tokens": (
        {"peft_type": "CPT", "cpt_token_ids": [5, 6], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
        "CPT weighs the losses of its own tokens",
    ),
    "moves-ranks": ({"peft_type": "ADAMSS", "use_asa": True}, "moves its ranks after every step"),
    "too-few-steps": ({"peft_type": "ADALORA", "tinit": 50}, "AdaLoRA moves ranks after step 50 (tinit)"),
    "asks-for-more": ({"peft_type": "POLY"}, "task_ids should not be None"),
    "no-yes-or-no": ({"peft_type": "LORA", "use_dora": "no"}, "peft.use_dora: got 'no'; expected true or false"),
    "wants-texts": ({"peft_type": "LORA", "init_lora_weights": "corda"}, "corda needs sample texts"),
    "saves-nothing": (
        {"peft_type": "LORA", "modules_to_save": ["head"]},
        "peft.modules_to_save: this model has no module head",
    ),
    "no-such-module": ({"peft_type": "VERA", "target_modules": ["q_proj", "w_q"]}, "this model has no module w_q"),
    "nowhere-to-go": (
        {"peft_type": "VERA", "target_modules": ["embed_tokens"]},
        "PEFT's VERA with these settings on this",
    ),
}
QUIET = RunHooks(say=lambda _message: None, launcher=InProcess())


@pytest.fixture
def adapters(project: TinyProject) -> TinyProject:
    given = {name: {"kind": "adapter", **settings} for name, settings in METHODS.items()}
    given |= {name: {"kind": "adapter", "peft": settings} for name, (settings, _) in REFUSED.items()}
    small = {"general_texts": 1, "latency_answers": 1, "serving_batch": 2, "serving_tokens": 3}
    profile = {
        "methods": ["base", *METHODS],
        "training": {"epochs": 2, "checkpoint_every_steps": 2},
        "evaluation": small,
    }
    project.change(methods=given, profiles={"local": profile})
    return clean_for(project)


def weights_of(attempt: Attempt) -> dict[str, bytes]:
    assert attempt.status == "ok", attempt.result.detail
    return {path.name: path.read_bytes() for path in attempt.model_folder.glob("*.safetensors")}


SLOW = pytest.mark.slow


@SLOW
@pytest.mark.parametrize("method", ["vera", "ia3", "dora"])
def test_an_adapter_by_configuration_alone_is_gone_on_with_to_the_same_bits(adapters: TinyProject, method: str) -> None:
    key, resolved = adapters.key(method), adapters.resolved()
    undisturbed = trained(adapters, method)
    expected = weights_of(undisturbed)
    saved = load_file(undisturbed.model_folder / "adapter_model.safetensors")
    assert saved and all(tensor.isfinite().all() for tensor in saved.values())
    shutil.rmtree(key.folder(adapters.data))
    killed, _ = train(resolved, key, hooks=RunHooks(say=QUIET.say, launcher=kill_at(3)))
    assert killed.status == "killed" and "goes on after step 2" in killed.result.detail
    attempt, _ = train(resolved, key, hooks=QUIET)
    assert weights_of(attempt) == expected


@pytest.mark.parametrize("method", ["vera", pytest.param("ia3", marks=SLOW), pytest.param("dora", marks=SLOW)])
def test_it_is_evaluated_merged_and_predicted(adapters: TinyProject, method: str, tmp_path: Path) -> None:
    key, resolved, attempt = adapters.key(method), adapters.resolved(), trained(adapters, method)
    evaluation, _ = evaluate(resolved, key, hooks=QUIET)
    assert evaluation.ok, evaluation.result.detail
    assert [row["mode"] for row in read_jsonl(evaluation.folder / "serving.jsonl")] == ["attached"] * 2 + ["merged"] * 2
    (row,) = [row for row in comparison_rows(resolved) if row["method"] == method]
    assert row["status"] == "ok" and 0 < row["trainable_params"] < row["total_params"] / 4
    assert json.loads(row["peft"])["peft_type"] == traits_of(attempt.spec.recipe).peft_type
    assert row["rank"] == METHODS[method]["peft"].get("r") and row["fast_paths"].startswith("head, gates")

    made = export(resolved, key, ExportRequest(output=tmp_path / "out"), hooks=QUIET)
    assert made.ok, made.result.detail
    assert made.result.measured["merged_bits_per_byte"] == pytest.approx(row["eval_bits_per_byte"], rel=1e-3)
    (predicted,) = estimates(adapters.now(), [(MODEL, method)], say=lambda _: None)
    assert predicted.because is None and predicted.answer["trainable"] == row["trainable_params"]


@pytest.mark.parametrize(
    ("kind", "modules"),
    [("VERA", {"q_proj", "up_proj"}), ("IA3", {"k_proj", "v_proj", "down_proj"}), ("OFT", {"q_proj", "up_proj"})],
)
def test_it_goes_where_lora_goes_or_where_peft_puts_it(kind: str, modules: set[str]) -> None:
    recipe = {"kind": "adapter", "peft": {"peft_type": kind}, "targets": ["q_proj", "up_proj"], "quantization": None}
    assert peft_adapter.config_of(tiny_model("llama"), recipe, []).target_modules in (modules, None)
    own = {**recipe, "peft": {"peft_type": kind, "target_modules": ["o_proj"]}, "targets": None}
    if kind != "IA3":
        assert loading.add_adapter(tiny_model("llama"), own).peft_config["default"].target_modules == {"o_proj"}
    adapted = loading.add_adapter(tiny_model("llama"), recipe)
    assert {
        name.split(".")[-1] for name, module in adapted.named_modules() if hasattr(module, "get_base_layer")
    } == modules


def test_a_method_that_changes_the_base_when_it_begins_is_loaded_as_it_was_saved(adapters: TinyProject) -> None:
    attempt = trained(adapters, "pissa")
    evaluation, _ = evaluate(adapters.resolved(), adapters.key("pissa"), hooks=QUIET)
    assert evaluation.ok, evaluation.result.detail
    noted = read_json(attempt.model_folder / CHECK) or {}
    assert len(noted["input_ids"]) > 20 and len(noted["before"]) == len(noted["after"]) == len(noted["input_ids"]) - 1
    assert noted["before"] != noted["after"]


@pytest.mark.parametrize("method", ["vera", "pissa-by-chance"])
def test_an_adapter_that_is_not_what_was_trained_is_not_evaluated(adapters: TinyProject, method: str) -> None:
    attempt = trained(adapters, method)
    # The file holds nothing of what was learned.
    if method == "vera":
        file = attempt.model_folder / "adapter_model.safetensors"
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
    evaluation, _ = evaluate(adapters.resolved(), adapters.key(method), hooks=QUIET)
    assert evaluation.result.status == "failed", evaluation.result.detail
    assert "the saved adapter, loaded again, is not what was trained" in evaluation.result.detail


def test_biases_that_peft_trains_get_their_gradients() -> None:
    recipe = {
        "kind": "adapter",
        "peft": {"peft_type": "LORA", "r": 4, "bias": "all"},
        "targets": "auto",
        "quantization": None,
    }
    model = loading.add_adapter(tiny_model("opt"), recipe)
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    without = {name for name in trains if model.get_parameter(name).grad is None}
    assert any(name.endswith("bias") for name in trains) and not without


@pytest.mark.parametrize("given", ["abc", [1], True, 2.5, 10**12, {"a": 1}, float("inf")])
def test_a_rank_or_alpha_that_is_no_number_spoils_no_table(given: object) -> None:
    shown = adapter_of({"kind": "adapter", "peft": {"peft_type": "VERA", "r": given, "lora_alpha": given}})
    table = arrow_table([COMPARISON.empty() | {**shown, "peft": None}], COMPARISON)
    assert table.column("rank").to_pylist() == [None]
    assert table.column("alpha").to_pylist() in ([None], [2.5], [1e12])


def test_what_peft_cannot_merge_is_measured_attached(adapters: TinyProject, tmp_path: Path) -> None:
    assert trained(adapters, "prefix").status == "ok"
    resolved, key = adapters.resolved(), adapters.key("prefix")
    evaluation, _ = evaluate(resolved, key, hooks=QUIET)
    assert evaluation.ok, evaluation.result.detail
    assert {row["mode"] for row in read_jsonl(evaluation.folder / "serving.jsonl")} == {"attached"}
    assert evaluation.result.measured["latency_mode"] == "attached"
    made = export(resolved, key, ExportRequest(output=tmp_path / "out"), hooks=QUIET)
    assert made.result.status == "unavailable" and "PREFIX_TUNING puts tokens of its own" in made.result.detail
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("method", REFUSED)
def test_what_cannot_be_trained_is_a_row_that_says_why(adapters: TinyProject, method: str) -> None:
    attempt = trained(adapters, method)
    assert attempt.status == "unavailable", attempt.result.detail
    assert REFUSED[method][1] in attempt.result.detail
    assert "Error: '" not in attempt.result.detail.split("settings")[0]


@pytest.mark.parametrize(
    "words", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUDA error: out of memory"]
)
def test_memory_that_runs_out_says_nothing_of_settings(words: str) -> None:
    error = RuntimeError(words)
    with (
        pytest.raises(RuntimeError) as raised,
        peft_adapter.in_pefts_words({"kind": "adapter", "peft": {"peft_type": "VERA"}}),
    ):
        raise error
    assert raised.value is error


def test_what_fails_with_gradient_checkpointing_alone_is_told_before_it_trains(adapters: TinyProject) -> None:
    adapters.change(methods={"prefix": {"gradient_checkpointing": True}})
    attempt = trained(adapters, "prefix")
    assert attempt.status == "unavailable" and "PEFT's PREFIX_TUNING with these settings" in attempt.result.detail


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "adapter"}, "kind adapter needs peft"),
        ({"kind": "adapter", "peft": {"r": 4}}, "expected peft_type"),
        ({"kind": "adapter", "peft": {"peft_type": 3}}, "expected peft_type"),
        ({"kind": "adapter", "peft": {"peft_type": "VERA", "task_type": "SEQ_CLS"}}, "task_type: set by the trainer"),
        ({"kind": "adapter", "rank": 4, "peft": {"peft_type": "VERA"}}, "rank: such settings belong to kind lora"),
        ({"kind": "lora", "rank": 4, "peft": {"peft_type": "VERA"}}, "belong to kind adapter, not lora"),
        ({"kind": "full", "peft": {}}, "belong to kind adapter, not full"),
        (
            {"kind": "adapter", "targets": "attention", "peft": {"peft_type": "VERA", "target_modules": ["x"]}},
            "both name the modules",
        ),
        ({"kind": "adapter", "shots": 2, "peft": {"peft_type": "VERA"}}, "belong to kind none, not adapter"),
        ({"kind": "full", "optimizer": "lorafa"}, "optimizer: lorafa: only LoRA has an A and a B"),
        ({"kind": "full", "loraplus_lr_ratio": 16}, "loraplus_lr_ratio: only LoRA has an A and a B"),
        ({"kind": "adapter", "loraplus_lr_ratio": 4, "peft": {"peft_type": "VERA"}}, "only LoRA has an A and a B"),
        ({"kind": "lora", "rank": 4, "optimizer": "lorafa", "loraplus_lr_ratio": 4}, "exclude each other"),
        ({"kind": "lora", "rank": 4, "loraplus_lr_ratio": 0.5}, "expected 1 or more"),
        ({"kind": "lora", "rank": 4, "loraplus_lr_ratio": float("inf")}, "finite"),
        ({"kind": "adapter", "peft": {"peft_type": "ADALORA", "total_step": 9}}, "total_step: the trainer sets it"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_with_their_line(
    project: TinyProject, settings: dict[str, Any], words: str
) -> None:
    project.change(methods={"mine": settings})
    with pytest.raises(UsageError, match=words) as refused:
        configuration.load(project.experiments)
    assert "methods.mine" in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("kind", sorted(kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_adapter_of_peft_is_ok_or_says_why_not(
    adapters: TinyProject, kind: str, architecture: str, tmp_path: Path
) -> None:
    save_tiny(tmp_path / architecture, architecture)
    model = {"source": {"path": str(tmp_path / architecture)}, "lora_targets": "auto"}
    adapters.change(models={MODEL: model}, methods={"any": {"kind": "adapter", "peft": {"peft_type": kind}}})
    attempt = trained(adapters, "any")
    assert attempt.status in ("ok", "unavailable"), attempt.result.detail
    if attempt.status == "unavailable":
        assert kind in attempt.result.detail and len(attempt.result.detail) > 40
        return
    evaluation, _ = evaluate(adapters.resolved(), adapters.key("any"), hooks=QUIET)
    assert evaluation.ok, evaluation.result.detail
    assert len(cells.attempts(adapters.data, adapters.key("any"))) == 1


def test_how_methods_differ_is_said_in_one_file() -> None:
    """Searches for words that would say it elsewhere: comparisons of kinds, and the short form's
    name."""
    asks = re.compile(r"""(recipe\["kind"\]|method\.kind|\.get\("kind"\)) *(==|!=|in\b)|["']lora["']""")
    files = [*(PROJECT / "pipelines").rglob("*.py"), *(PROJECT / "assets").rglob("*.py")]
    matches = {str(file.relative_to(PROJECT)) for file in files if asks.search(file.read_text(encoding="utf-8"))}
    assert matches == {"pipelines/settings/methods.py"}
