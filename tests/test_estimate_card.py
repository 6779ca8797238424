"""The prediction of memory for cards: each computes in its own format and with its own kernels, not
by a CPU's paths."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from pipelines.compare import estimates as shown
from pipelines.estimate import cards, child, estimate, memory, rehearsal
from pipelines.estimate.batch import Batch
from pipelines.estimate.card_rules import as_on_cuda
from pipelines.estimate.cards import CARDS, Card
from pipelines.estimate.estimate import Estimate, key_of, training_gb
from pipelines.estimate.live import Counting, Live, Moment
from pipelines.estimate.question import Question
from pipelines.lake.paths import PROJECT
from pipelines.recipe import recipe_of
from pipelines.settings import experiments as configuration
from pipelines.train.trainer import loading
from pipelines.train.trainer.losses import head_on_positions, step_loss
from pipelines.weights import shipped
from tests.fakes import driver as fake_driver
from tests.fakes.driver import FakeCard
from tests.test_estimate_memory import BATCH, FULL, LORA, account_of
from tests.tiny import ARCHITECTURES, TARGETS, tiny_model

T4, L4, *NEWER = CARDS
OPT = {**LORA, "targets": TARGETS["opt"]}
GROUPED = AutoConfig.for_model(
    "llama", **{**ARCHITECTURES["llama"], "num_attention_heads": 4, "num_key_value_heads": 1}
)


# formats


def test_a_card_computes_in_the_format_that_the_trainer_would_choose_there() -> None:
    for card, plain, out_of_range in ((T4, "fp16", "fp32"), *((one, "bf16", "bf16") for one in (L4, *NEWER))):
        assert card.format({"precision": "auto"}) == plain
        assert card.format({"precision": "auto", "fp16": False}) == out_of_range
        assert card.format({"precision": "fp32"}) == "fp32"
    assert cards.of_device("Tesla T4") is T4 and cards.of_device("NVIDIA L4").capability == L4.capability
    for name in ("NVIDIA RTX PRO 6000", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 3090", "NVIDIA A10G", "NVIDIA H200"):
        assert cards.of_device(name).format({"precision": "auto"}) == "bf16", name
    for name in (
        "Tesla V100-SXM2-16GB",
        "NVIDIA GeForce RTX 2080 Ti",
        "NVIDIA GeForce GTX 1660",
        "Quadro RTX 8000",
        "Tesla P100-PCIE",
    ):
        assert cards.of_device(name).format({"precision": "auto", "fp16": False}) == "fp32", name


def test_this_machines_card_is_asked_for_its_memory_and_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard())
    cards._installed.cache_clear()
    assert cards.here() == Card("Tesla T4", T4.total, (7, 5))
    assert estimate.machine_gb() == T4.total / 1e9
    card_estimate = {
        "trainable": 1,
        "cpu": {"train": 1e9},
        "fp32": {"train": 2e9},
        "recipe": {"precision": "auto", "fp16": False},
    }
    assert (key_of(card_estimate), key_of(card_estimate, L4), training_gb(card_estimate)) == ("fp32", "bf16", 2.0)
    # A prediction of code that did not distinguish cards.
    before = {"trainable": 1, "cpu": {"train": 1e9}, "cuda": {"train": 3e9}}
    assert training_gb(before) == 3.0


@pytest.mark.parametrize(("name", "expected"), [("Some GPU", "bf16"), ("Tesla T4", "fp16")])
def test_where_the_driver_says_no_capability_the_name_counts(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard(name, memory="[N/A]", capability="[N/A]"))
    cards._installed.cache_clear()
    card = cards.here()
    assert card is not None and card.format({"precision": "auto"}) == expected
    # The memory of this machine.
    assert estimate.machine_gb() > 0.5


# computation


def really(architecture: str, recipe: dict[str, Any], dtype: torch.dtype, *, autocasts: bool) -> Live:
    """The account of the step on tensors with real bytes, assembled and computed as on a card."""
    model = tiny_model(architecture).to(dtype)
    if recipe["kind"] == "lora":
        model = loading.add_adapter(model, recipe, for_card=dtype)
    live = account_of(model)
    grouped = dtype is torch.bfloat16 or autocasts
    kernels = as_on_cuda(norms_in_float32=autocasts, grouped_queries=grouped, memory=10**10)
    half = torch.autocast("cpu", torch.bfloat16) if autocasts else nullcontext()
    with kernels, head_on_positions(model) as positions, Counting(live):
        live.begin("forward 1")
        with half:
            loss = step_loss(model, BATCH.examples(), positions, torch.device("cpu"), learned=1)
        live.begin("backward 1")
        loss.backward()
    return live


@pytest.mark.parametrize(
    ("architecture", "recipe", "device", "dtype", "autocasts"),
    [
        ("opt", OPT, "bf16", torch.bfloat16, False),
        ("llama", LORA, "fp32", torch.float32, False),
        ("opt", FULL, "bf16", torch.float32, True),
    ],
    ids=["a frozen half base", "float32", "full under autocast"],
)
def test_a_cards_step_is_that_of_real_tensors(
    architecture: str, recipe: dict[str, Any], device: Any, dtype: torch.dtype, autocasts: bool
) -> None:
    counted = rehearsal.rehearse(tiny_model(architecture).config, recipe, [BATCH], device)
    live = really(architecture, recipe, dtype, autocasts=autocasts)
    assert counted.moments.keys() == live.moments.keys()
    for stretch, moment in live.moments.items():
        assert counted.moments[stretch].total == pytest.approx(moment.total, rel=0.01), stretch


def test_norms_of_a_frozen_half_base_keep_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not rehearsal.autocasts(OPT, "bf16") and rehearsal.autocasts(FULL, "fp16")
    assert not rehearsal.autocasts(FULL, "fp32") and not rehearsal.autocasts(FULL, "cpu")
    config, one_layer = tiny_model("opt").config, {**OPT, "targets": ["q_proj"], "dropout": 0.0}
    halves = rehearsal.rehearse(config, one_layer, [BATCH], "bf16").peak.activations
    monkeypatch.setattr(rehearsal, "autocasts", lambda _recipe, _device: True)
    assert halves < 0.95 * rehearsal.rehearse(config, one_layer, [BATCH], "bf16").peak.activations


def test_cards_before_bfloat16_repeat_keys_and_values_for_the_queries_that_share_them() -> None:
    def activations(config: Any, device: Any) -> float:
        return rehearsal.rehearse(config, FULL, [BATCH], device).peak.activations

    assert rehearsal.groups_queries(GROUPED) and not rehearsal.groups_queries(tiny_model("opt").config)
    assert activations(GROUPED, "fp16") > activations(GROUPED, "bf16")
    assert activations(tiny_model("opt").config, "fp16") == activations(tiny_model("opt").config, "bf16")


def test_a_stretch_that_overtakes_another_with_more_layers_is_the_peak_then() -> None:
    def counted(**gigabytes: float) -> rehearsal.Counted:
        moments = {stretch: Moment(0, activations) for stretch, activations in gigabytes.items()}
        return rehearsal.Counted(0, 0, 0, 0, 0, 0, moments)

    carried = rehearsal._extrapolate(counted(forward=6, backward=10), counted(forward=11, backward=12), steps=2)
    # The larger of the two rehearsals alone would give 16.
    assert carried.peak.total == 21


# answers


def question_with(**more: Any) -> dict[str, Any]:
    config = {"model_type": "llama", **GROUPED.to_diff_dict(), **ARCHITECTURES["llama"], "num_key_value_heads": 1}
    recipe = {
        **LORA,
        "gradient_checkpointing": True,
        "max_length": 24,
        "micro_batch_tokens": 48,
        "examples_per_step": 2,
        "epochs": 1,
    }
    return {"config": config, "recipe": recipe, "examples": None, "device": "cpu", **more}


def test_an_answer_holds_each_format_with_checkpointing_and_without() -> None:
    prediction = child.answer(question_with(cards=["bf16", "fp32"], otherwise=True), {False: 0, True: 0})
    for one in ("bf16", "fp32"):
        assert prediction["otherwise"][one]["train"] > prediction[one]["train"] > 0
    row = estimate.columns(Estimate("m", "lora", prediction))
    assert row["bf16_with_checkpointing_gb"] == prediction["bf16"]["peak"] / 1e9
    assert row["fp32_without_checkpointing_gb"] == prediction["otherwise"]["fp32"]["peak"] / 1e9
    assert (row["fp16_with_checkpointing_gb"], "cpu" in prediction) == (None, True)


def test_the_other_choice_of_checkpointing_is_predicted_where_it_may_decide_what_fits() -> None:
    def may(gigabytes: float, *, checkpointed: bool) -> bool:
        recipe = {"precision": "bf16", "gradient_checkpointing": checkpointed}
        return child.may_decide({"bf16": {"peak": gigabytes * 1e9}}, recipe)

    assert [may(gigabytes, checkpointed=False) for gigabytes in (5, 20, 200)] == [False, True, True]
    assert [may(gigabytes, checkpointed=True) for gigabytes in (5, 20, 200)] == [True, True, False]


def test_what_was_answered_to_one_who_asked_for_other_things_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"trainable": 1, "cpu": {}, "bf16": {}, "otherwise": {"bf16": {}}, "halved_gb": 1.0}
    sent_questions: list[dict[str, Any]] = []

    def answers_to(questions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        sent_questions.extend(questions)
        for question in questions:
            names = [
                "trainable",
                "cpu",
                *question.get("cards", []),
                *(name for name in ("otherwise",) if question.get(name)),
            ]
            names += ["halved_gb"] if question.get("halved") else []
            yield {name: made[name] for name in names}

    monkeypatch.setattr(estimate, "answers_to", answers_to)
    file = tmp_path / "one.json"
    for more in ({"cards": [], "halved": True}, {"cards": ["bf16"], "otherwise": True}, {"cards": [], "halved": True}):
        (answer,) = estimate.answers([Question("m", "lora", file, {"config": {}, **more})], say=lambda _: None).values()
    assert len(sent_questions) == 2 and answer.keys() > made.keys()


def test_the_table_says_where_the_other_choice_of_checkpointing_decides() -> None:
    def predicted(peak: float) -> dict[str, float]:
        return {**vars(memory.Prediction(peak * 1e9, *[0.0] * 7)), "peak": peak * 1e9}

    plain = {"trainable": 1, "parameters": 1, "batch": "b", "batch_from": "s", "cpu": predicted(40)}
    big, small = {"bf16": predicted(30), "fp16": predicted(30)}, {"bf16": predicted(12), "fp16": predicted(12)}
    without = Estimate("m", "lora", {**plain, **big, "otherwise": small, "recipe": {"precision": "auto"}})
    table = shown.render([without], "text")
    assert "gradient_checkpointing would fit: T4 16 (12.0 GB, yes), L4 24 (12.0 GB, yes)\n" in table + "\n"
    checkpointed = {"precision": "auto", "gradient_checkpointing": True}
    table = shown.render([Estimate("m", "lora", {**plain, **small, "otherwise": big, "recipe": checkpointed})], "text")
    assert "fits even without gradient_checkpointing, which is faster: A100 40 (30.0 GB, yes)" in table


# the profile for cards


def trained_gb(model: str, method: str, device: rehearsal.Device) -> float:
    """Few layers, few learned tokens and one micro-batch show what differs between methods."""
    fields = dict(shipped.named(model))
    recipe = recipe_of(configuration.load(PROJECT / "experiments.yaml"), "gpu", model, method)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return memory.on_card(rehearsal.rehearse(config, recipe, [Batch(8, 1024, 64)], device), recipe).train / 1e9


def test_every_trained_method_of_the_profile_has_the_same_checkpointing_and_micro_batches() -> None:
    grid = configuration.load(PROJECT / "experiments.yaml")
    profile = grid.profile("gpu")
    recipes = [
        recipe_of(grid, "gpu", model, method)
        for model in profile.models
        for method in profile.methods
        if grid.method(method).traits.trains
    ]
    alike = {(one["gradient_checkpointing"], one["micro_batch_tokens"]) for one in recipes}
    assert alike == {(True, 8192)}


@pytest.mark.parametrize("model", ["gpt2-large", "opt-1.3b", "gemma-2b-it"])
def test_full_needs_more_than_lora_and_lora_more_than_qlora(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MORE_LAYERS", 3)
    full, lora, qlora = (trained_gb(model, method, "bf16") for method in ("full", "lora-r8", "qlora-r8"))
    assert full > 1.5 * lora and lora > 1.2 * qlora


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt2-large", "opt-1.3b", "gemma-2b-it"])
def test_full_lora_and_qlora_are_in_that_order_on_every_card_as_the_command_asks(model: str) -> None:
    grid = configuration.load(PROJECT / "experiments.yaml")
    methods = ("full", "lora-r128", "lora-r8", "qlora-r8")
    recipes = {method: recipe_of(grid, "gpu", model, method) for method in methods}
    questions = [
        {"config": shipped.named(model), "recipe": recipe, "tokenizer": None, "examples": None, "device": "cpu",
         "cards": cards.formats_of(recipe), "otherwise": True}
        for recipe in recipes.values()
    ]  # fmt: skip
    estimates = [
        Estimate(model, method, one) for method, one in zip(methods, estimate.answers_to(questions), strict=True)
    ]
    for card in CARDS:
        peaks = [one.gb(card, "train") or 0 for one in estimates]
        assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks), (card.name, peaks)
