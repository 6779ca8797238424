"""Every method and setting trains on a CPU and is part of the recipe, or is refused with a reason
where it makes no sense."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import UnavailableError, WorkError
from pipelines.lake.files import read_json, stable_hash, write_json
from pipelines.train.trainer import batches, checks, loading, precision
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.optimizers import make_optimizer
from tests.in_process import clean_for, trained
from tests.project import MODEL, TinyProject
from tests.tiny import TARGETS, save_tiny, tiny_model

RECIPE: dict[str, Any] = {
    "model": "tiny", "kind": "lora", "precision": "auto", "attention": "auto", "quantization": None, "rank": 4, "alpha": 8,
    "dropout": 0.1, "targets": TARGETS["llama"],
}  # fmt: skip
LORA = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "rslora": {**LORA, "rslora": True},
    "dora": {**LORA, "dora": True},
    "qdora": {**LORA, "dora": True, "quantization": "nf4"},
    "fp4-single": {**LORA, "quantization": "fp4", "double_quantization": False},
    "int8": {**LORA, "quantization": "int8"},
    "two-targets": {**LORA, "targets": ["q_proj", "down_proj"]},
    "attention-only": {**LORA, "targets": "attention"},
    "eager": {**LORA, "attention": "eager"},
    "full-adamw-8bit": {"kind": "full", "optimizer": "adamw_8bit", "weight_decay": 0.01},
    "full-checkpointed": {"kind": "full", "gradient_checkpointing": True},
    "full-bf16": {"kind": "full", "precision": "bf16"},
    "lora-bf16": {**LORA, "precision": "bf16"},
    "full-fp16": {"kind": "full", "precision": "fp16"},
    "lora-fp16": {**LORA, "precision": "fp16"},
}


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    project.change(methods=METHODS, profiles={"local": {"training": {"epochs": 2}}})
    return clean_for(project)


# Other methods cover parts of these.
MORE = (
    "two-targets",
    "eager",
    "lora-bf16",
    "lora-fp16",
    "fp4-single",
    "rslora",
    "full-checkpointed",
    "attention-only",
)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name in MORE else name for name in METHODS]
)
def test_it_trains(cleaned: TinyProject, method: str) -> None:
    attempt = trained(cleaned, method)
    assert attempt.status == "ok", attempt.result.detail
    losses = [point["train_loss"] for point in attempt.curve()[1:]]
    assert all(math.isfinite(loss) and 4 < loss < 8 for loss in losses)
    assert attempt.result.measured["attention"] == ("eager" if method == "eager" else "sdpa")


def test_every_setting_is_in_the_recipe(cleaned: TinyProject) -> None:
    stage = cleaned.now()
    hashes = [stable_hash(stage.recipe_of(MODEL, method)) for method in [*METHODS, "lora-r8", "full"]]
    assert len(set(hashes)) == len(hashes)


def test_when_evaluations_end_the_run_their_interval_is_in_the_recipe_too(cleaned: TinyProject) -> None:
    key = cleaned.key("lora-r8")
    assert "eval_every_steps" not in cleaned.now().recipe_of(key.model, key.method)
    cleaned.change(methods={"lora-r8": {"early_stop_patience": 2}})
    assert cleaned.now().recipe_of(key.model, key.method)["eval_every_steps"] == 8


# divergence


def test_a_cell_that_ends_worse_than_guessing_is_diverged_though_its_losses_are_finite(cleaned: TinyProject) -> None:
    cleaned.change(methods={"full": {"learning_rate": 50.0}}, profiles={"local": {"training": {"epochs": 1}}})
    attempt = trained(cleaned, "full")
    first, *_, last = attempt.curve()
    assert last["eval_loss"] > 100 > math.log(600) + 1 > first["eval_loss"] and math.isfinite(last["train_loss"])
    assert attempt.status == "diverged" and not attempt.model_folder.exists()
    assert "the loss on held-out records went from 6.40 to " in attempt.result.detail
    assert attempt.result.detail.endswith("lower learning_rate")


def test_a_cell_that_only_overfits_stays_ok(cleaned: TinyProject) -> None:
    cleaned.change(
        methods={"full": {"learning_rate": 0.1, "data": {"max_examples": 1}}},
        profiles={"local": {"training": {"epochs": 40, "eval_every_steps": 40}}},
    )
    attempt = trained(cleaned, "full")
    first, second, *_, last = attempt.curve()
    assert checks.is_clearly_worse(first["eval_loss"], last["eval_loss"], vocabulary=600)
    assert last["train_loss"] < second["train_loss"] - 1
    assert attempt.status == "ok", attempt.result.detail


@pytest.mark.parametrize(
    ("first", "last", "risen"),
    [(6.40, 6.46, False), (6.40, 7.0, False), (6.40, 7.1, True), (2.0, 2.3, False), (2.0, 2.6, True), (9.0, 8.9, True)],
)
def test_noise_around_guessing_is_no_rise(first: float, last: float, risen: bool) -> None:
    assert checks.is_clearly_worse(first, last, vocabulary=600) == risen


# early stop


def test_a_run_that_no_longer_improves_stops_and_never_looks_at_the_held_out_records(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.train.trainer.loop import Trainer

    whole = Trainer._eval_loss

    def worse_and_worse(trainer: Any, examples: Any) -> float:
        on_slice = examples is trainer._validation
        return 5.0 + trainer.tally.step if on_slice else 7.0 - trainer.tally.step / 10 + 0 * whole(trainer, examples)

    monkeypatch.setattr(Trainer, "_eval_loss", worse_and_worse)
    cleaned.change(
        methods={"lora-r8": {"early_stop_patience": 2}},
        profiles={"local": {"training": {"epochs": 10, "eval_every_steps": 1}}},
    )
    attempt = trained(cleaned, "lora-r8")
    measured = attempt.result.measured
    assert attempt.status == "ok", attempt.result.detail
    assert (measured["last_step"], measured["stopped_early"]) == (3, True) and measured["steps"] > 10
    assert measured["train_examples"] + measured["validation_examples"] == 8
    assert [point["validation_loss"] for point in attempt.curve()] == [None, 6.0, 7.0, 8.0]


def test_early_stop_with_one_example_says_what_it_needs(cleaned: TinyProject) -> None:
    cleaned.change(methods={"full": {"early_stop_patience": 1, "data": {"max_examples": 1}}})
    attempt = trained(cleaned, "full")
    assert attempt.status == "failed" and "there is only one: bring more" in attempt.result.detail


def test_examples_longer_than_the_model_reads_are_left_out_and_counted(
    cleaned: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "short")
    config = read_json(folder / "config.json") or {}
    write_json(folder / "config.json", {**config, "max_position_embeddings": 300})
    own = {MODEL: {"source": {"path": str(folder)}}}
    cleaned.change(models=own, profiles={"local": {"training": {"max_length": 2000}}})
    attempt = trained(cleaned, "full")
    assert attempt.status == "ok", attempt.result.detail
    # Some examples were truncated.
    assert attempt.result.measured["truncated_share"] > 0
    assert "max_length is 2000, this model reads 300 tokens" in capsys.readouterr().out


def test_the_slice_held_back_is_the_same_whatever_the_order() -> None:
    examples = [Tokenized(str(i), [1, 2], [-100, 2], [False, True], 1) for i in range(20)]
    remaining, away = batches.held_back(examples, 0.1)
    assert len(away) == 2 and [e.example_id for e in remaining] == [e.example_id for e in examples if e not in away]
    assert batches.held_back(examples[::-1], 0.1)[1] == away
    assert len(batches.held_back(examples[:3], 0.01)[1]) == 1


# precision


def test_half_precision_of_each_kind() -> None:
    on_cpu = {"precision": "auto", "kind": "lora"}
    assert precision.compute_dtype(on_cpu) is None and precision.weights_dtype(on_cpu) is torch.float32
    lora, full = {"precision": "bf16", "kind": "lora"}, {"precision": "bf16", "kind": "full"}
    assert precision.weights_dtype(lora) is torch.bfloat16 and precision.weights_dtype(full) is torch.float32
    assert precision.compute_dtype(full) is torch.bfloat16
    cpu = torch.device("cpu")
    assert precision.make_scaler({"precision": "fp16", "kind": "full"}, cpu).is_enabled()
    assert not precision.make_scaler(lora, cpu).is_enabled()


def test_auto_leaves_out_float16_for_a_model_that_leaves_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = {"precision": "auto", "kind": "lora"}
    for half, expected in ((torch.float16, None), (torch.bfloat16, torch.bfloat16)):
        monkeypatch.setattr(precision, "half_precision", lambda half=half: half)
        assert precision.compute_dtype({**auto, "fp16": False}) is expected
        assert precision.compute_dtype(auto) is half


def test_a_step_whose_gradients_overflow_in_float16_is_left_out_and_the_run_goes_on(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.train.trainer import loop

    monkeypatch.setattr(loop, "make_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=2.0**40))
    attempt = trained(cleaned, "full-fp16")
    assert attempt.status == "ok", attempt.result.detail


# loading


def test_gpt_neo_has_no_sdpa_and_auto_knows(tmp_path: Path) -> None:
    model = loading.load_model(save_tiny(tmp_path / "tiny", "gpt_neo"), RECIPE)
    assert model.config._attn_implementation == "eager"


def test_flash_attention_by_name_is_unavailable_without_a_card(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="needs a CUDA card"):
        loading.load_model(save_tiny(tmp_path / "tiny"), {**RECIPE, "attention": "flash_attention_2"})


def test_weights_that_lack_a_tensor_are_no_model(tmp_path: Path) -> None:
    """transformers would only warn, and train on random values."""
    folder = save_tiny(tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "q_proj" in name)
    save_file(
        {name: value for name, value in tensors.items() if name != gone}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(WorkError, match=f"lack 1 tensors of the model, the first is {gone}"):
        loading.load_model(folder, RECIPE)


def test_a_target_that_the_model_does_not_have_is_named_with_those_it_has(tmp_path: Path) -> None:
    model = loading.load_model(save_tiny(tmp_path / "tiny"), RECIPE)
    with pytest.raises(
        ValueError, match=r"targets: c_attn names no linear module of this model; it has q_proj, k_proj"
    ):
        loading.add_adapter(model, {**RECIPE, "targets": ["q_proj", "c_attn"]})


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neo", "gemma", "llama", "llama-tied", "phi3"])
def test_a_models_linear_layers_are_found_without_its_head(architecture: str) -> None:
    layers = loading.linear_layers(tiny_model(architecture))
    assert sorted(layers) == sorted(TARGETS[architecture.removesuffix("-tied")])


def test_auto_puts_an_adapter_on_each_of_them(tmp_path: Path) -> None:
    model = loading.load_model(save_tiny(tmp_path / "tiny"), RECIPE)
    adapted = loading.add_adapter(model, {**RECIPE, "targets": "auto"})
    assert set(adapted.peft_config["default"].target_modules) == set(TARGETS["llama"])


def test_rslora_scales_by_the_root_of_the_rank(tmp_path: Path) -> None:
    model = loading.load_model(save_tiny(tmp_path / "tiny"), RECIPE)
    adapted = loading.add_adapter(model, {**RECIPE, "rank": 16, "rslora": True})
    assert {m.scaling["default"] for m in adapted.modules() if isinstance(getattr(m, "scaling", None), dict)} == {8 / 4}


@pytest.mark.parametrize("double", [True, False])
def test_scales_are_quantized_once_more_where_asked(tmp_path: Path, double: bool) -> None:
    recipe = {**RECIPE, "quantization": "nf4", "double_quantization": double}
    model = loading.load_model(save_tiny(tmp_path / "tiny"), recipe)
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.nested is double


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_eight_bit_states_are_eight_bits(name: str) -> None:
    model = torch.nn.Linear(128, 64)
    optimizer = make_optimizer(model, {"learning_rate": 0.1, "weight_decay": 0.0, "optimizer": name})
    model(torch.randn(2, 128)).sum().backward()
    optimizer.step()
    held = optimizer.state[model.weight]
    assert (held["exp_avg"].dtype is torch.float32) if name == "adamw" else (held["state1"].dtype is torch.uint8)
