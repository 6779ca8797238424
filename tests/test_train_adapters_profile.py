"""Profile `adapters`: its kinds of adapters and their sizes, that each of them trains, and which
use a fast path."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.compare.table import comparison_rows
from pipelines.errors import UnavailableError
from pipelines.estimate import hollow
from pipelines.lake.paths import PROJECT
from pipelines.project import Project
from pipelines.settings import experiments as configuration
from pipelines.train.trainer import fast_paths, loading
from pipelines.train.trainer.cpu.products import use_faster_products
from pipelines.train.trainer.fast_paths import covers_adapters
from pipelines.train.trainer.gated import use_lean_gates
from pipelines.weights import shipped
from tests.in_process import clean_for, trained
from tests.project import MODEL, TinyProject
from tests.tiny import ARCHITECTURES, TARGETS, tiny_model, tiny_tokenizer

SLOW = pytest.mark.slow
SHIPPED = configuration.load(PROJECT / "experiments.yaml")
PROFILE = "adapters"
METHODS = SHIPPED.profiles[PROFILE].methods
TRAINED = [name for name in METHODS if SHIPPED.methods[name].traits.trains]
ADAPTERS = [name for name in METHODS if SHIPPED.methods[name].traits.has_adapter]
# Adapters that cannot have as many trained parameters as the others.
FEWER = ("vera-r256", "ia3", "ln-tuning")


# sizes


def trainable_on_packaged(method: str) -> int:
    """Trained parameters on the packaged model: those of two of its layers, extrapolated to all."""
    fields = dict(shipped.named(MODEL))
    kind, layers = fields.pop("model_type"), fields["num_hidden_layers"]
    recipe = Project(None, SHIPPED, PROFILE).recipe_of(MODEL, method)  # pyright: ignore[reportArgumentType]
    counts = []
    for few in (1, 2):
        config = AutoConfig.for_model(kind, **{**fields, "num_hidden_layers": few})
        model = hollow.build(config, recipe, torch.float32, FakeTensorMode(allow_non_fake_inputs=True))
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    return counts[0] + (counts[1] - counts[0]) * (layers - 1)


def test_ten_adapters_are_as_large_as_the_file_and_the_page_say_and_as_lora_where_they_can_be() -> None:
    assert len(ADAPTERS) == 10 and METHODS[:3] == ["base", "full", "lora-r8"]
    text = (PROJECT / "experiments.yaml").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^  ([\w.-]+): \{kind: .*\} # ([\d,]+)", text, re.M))
    page = (PROJECT / "docs" / "training.md").read_text(encoding="utf-8")
    lora = trainable_on_packaged("lora-r8")
    assert f"lora-r8 has {lora:,} there" in text and f"| `lora-r8` | {lora:,} |" in page
    for name in ADAPTERS[1:]:
        count = trainable_on_packaged(name)
        assert documented[name] == f"{count:,}", name
        assert f"| `{name}` | {count:,} |" in page, name
        assert (abs(count / lora - 1) < 0.1) is (name not in FEWER), name


# training


@pytest.fixture
def stand_in(project: TinyProject, tmp_path: Path) -> TinyProject:
    """A tiny Llama with widths that the profile's block sizes divide, and the profile's settings
    for some short examples."""
    widths = {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model("llama", **{**ARCHITECTURES["llama"], **widths}, bos_token_id=2, eos_token_id=0)
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "wide")
    tiny_tokenizer().save_pretrained(tmp_path / "wide")
    shipped_profile = SHIPPED.profiles[PROFILE].training.model_dump(exclude_none=True)
    short = {**shipped_profile, "epochs": 1, "max_length": 512, "learning_rate": {"full": 1e-3, "lora": 1e-3}}
    profile = {"methods": METHODS, "max_train_examples": 4, "training": short}
    project.change(models={MODEL: {"source": {"path": str(tmp_path / "wide")}}}, profiles={"local": profile})
    return clean_for(project)


@SLOW
@pytest.mark.parametrize("method", TRAINED)
def test_each_cell_of_the_profile_trains_a_step_and_says_whether_its_adapters_took_the_fast_path(
    stand_in: TinyProject, method: str
) -> None:
    attempt = trained(stand_in, method)
    assert attempt.status == "ok", attempt.result.detail
    assert attempt.result.measured["last_step"] >= 1 and attempt.result.measured["train_loss"] > 0
    (row,) = [row for row in comparison_rows(stand_in.resolved()) if row["method"] == method]
    expected = {"full": None, "lora-r8": True, "pissa-r8": True}
    assert row["fast_path"] is expected.get(method, False)


# fast paths


def lora(**more: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 16, **more}


# Adapters by their settings, and whether `pipelines.train.trainer.adapters` may compute them.
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "lora": (lora(), True),
    "rslora": (lora(use_rslora=True), True),
    "ranks-differ": (lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}), True),
    "pissa": (lora(init_lora_weights="pissa"), True),
    "olora": (lora(init_lora_weights="olora"), True),
    "dora": (lora(use_dora=True), False),
    "lora-bias": (lora(lora_bias=True), False),
    # A Llama has no biases to train.
    "bias-all": (lora(bias="all", target_modules=["q_proj", "gate_proj"]), True),
    "embeddings-too": (lora(target_modules=["q_proj", "embed_tokens"]), False),
    "of-parameters": (lora(target_modules=[], target_parameters=["q_proj.weight"]), True),
    "vera": ({"peft_type": "VERA", "r": 8, "d_initial": 0.3}, False),
    "ia3": ({"peft_type": "IA3"}, False),
    "oft": ({"peft_type": "OFT", "oft_block_size": 8}, False),
    "boft": ({"peft_type": "BOFT", "boft_block_size": 8}, False),
    "hra": ({"peft_type": "HRA", "r": 2}, False),
    "miss": ({"peft_type": "MISS", "r": 8}, False),
    "shira": ({"peft_type": "SHIRA", "r": 2}, False),
    "c3a": ({"peft_type": "C3A", "block_size": 8}, False),
    "randlora": ({"peft_type": "RANDLORA", "r": 8}, False),
    "fourierft": ({"peft_type": "FOURIERFT", "n_frequency": 20}, False),
    "ln-tuning": ({"peft_type": "LN_TUNING"}, False),
    "loha": ({"peft_type": "LOHA", "r": 4}, False),
    "lokr": ({"peft_type": "LOKR", "r": 4}, False),
}  # fmt: skip


QUICK = ("lora", "rslora", "dora", "lora-bias", "embeddings-too", "of-parameters", "vera", "ia3")


def loss_and_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Loss and gradients of some tokens, with trained weights moved at random, so that no adapter
    is without effect."""
    torch.manual_seed(3)
    trained = {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ids = torch.arange(40).reshape(2, 20)
    loss = model.train()(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in trained.items() if p.grad is not None}}


def ours_and_pefts(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The model as a cell trains it, and as PEFT alone builds it from the same weights."""
    recipe = {"kind": "adapter", "peft": settings, "targets": TARGETS["llama"], "quantization": None}
    if "target_modules" in settings:
        recipe["targets"] = None
    ours, plain = tiny_model("llama"), tiny_model("llama")
    use_faster_products(ours)
    use_lean_gates(ours)
    torch.manual_seed(1)
    ours = loading.add_adapter(ours, recipe)
    monkeypatch.setattr(loading, "fuse", lambda *_: None)
    monkeypatch.setattr(loading, "make_cheap", lambda _: None)
    torch.manual_seed(1)
    return ours, loading.add_adapter(plain, recipe)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind in QUICK else SLOW) for kind in KINDS])
def test_the_fast_path_is_for_what_it_was_proven_equal_for_and_changes_no_result(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, is_fast = KINDS[kind]
    ours, plain = ours_and_pefts(settings, monkeypatch)
    assert ("adapters" in fast_paths.active(ours, in_float32=True)) is is_fast
    assert "adapters" not in fast_paths.active(plain, in_float32=True)
    results, expected = loss_and_gradients(ours), loss_and_gradients(plain)
    assert results.keys() == expected.keys() and len(results) > 2
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value, rtol=1e-3, atol=1e-5)
    assert any(value.abs().sum() > 0 for name, value in expected.items() if name != "loss")


def test_the_column_says_nothing_of_rows_without_adapters_or_without_a_word() -> None:
    adapter, full = {"kind": "adapter", "peft": {"peft_type": "VERA"}}, {"kind": "full"}
    assert covers_adapters("head, gates, adapters, products", adapter) is True
    assert covers_adapters("head, gates", adapter) is covers_adapters("none", adapter) is False
    assert covers_adapters("head, gates, products", full) is covers_adapters(None, adapter) is None


def test_block_sizes_that_do_not_divide_the_widths_are_told_in_pefts_words() -> None:
    settings = {"peft_type": "C3A", "block_size": 48}
    recipe = {"kind": "adapter", "peft": settings, "targets": ["q_proj"], "quantization": None}
    with pytest.raises(UnavailableError, match="PEFT's C3A with these settings on this model"):
        loading.add_adapter(tiny_model("llama"), recipe)
