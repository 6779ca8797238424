"""The prediction of memory.

Its counts against real tensors, its formulas against the libraries, its verdicts, and the places
that show it.
"""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.cli import main
from pipelines.compare.advice import advise
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.compare import compare, published_rows
from pipelines.compare.tables import all_tables
from pipelines.errors import UsageError
from pipelines.estimate import estimate as estimating
from pipelines.estimate import hollow, memory, rehearsal
from pipelines.estimate.batch import Batch, allowed, batch_of, heaviest
from pipelines.estimate.cards import CARDS
from pipelines.estimate.estimate import Estimate
from pipelines.estimate.live import Counting, Live, Moment
from pipelines.estimate.optimizer import state_bytes
from pipelines.estimate.question import config_of
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.settings import experiments as configuration
from pipelines.train.trainer import loading
from pipelines.train.trainer.cpu.products import use_faster_products
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.gated import use_lean_gates
from pipelines.train.trainer.losses import head_on_positions, step_loss
from pipelines.weights import shipped
from tests.fakes import planted
from tests.project import TinyProject
from tests.tiny import ARCHITECTURES, TARGETS, tiny_model

BATCH = Batch(rows=2, length=24, learned=14)
FULL = {
    "model": "tiny", "kind": "full", "precision": "auto", "attention": "auto", "quantization": None, "rank": None, "alpha": None,
    "dropout": None, "targets": None, "optimizer": "adamw", "gradient_checkpointing": False,
}  # fmt: skip
LORA = {**FULL, "kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1, "targets": TARGETS["llama"]}
INT8 = {**LORA, "quantization": "int8"}


def recipe_for(architecture: str, kind: str) -> dict[str, Any]:
    attention = "eager" if architecture == "gpt_neo" else "auto"
    plain = FULL if kind == "full" else {**LORA, "targets": TARGETS[architecture]}
    return {**plain, "attention": attention}


def llama(layers: int = 2) -> Any:
    return AutoConfig.for_model("llama", **{**ARCHITECTURES["llama"], "num_hidden_layers": layers})


def account_of(model: Any) -> Live:
    """The memory that a step of `model` will keep, without its weights and buffers."""
    trained = [p for p in model.parameters() if p.requires_grad]
    live = Live(len(trained))
    for tensor in (*model.parameters(), *model.buffers()):
        live.ignore(tensor)
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda p: live.gradient(p.grad))
    model.train()
    return live


def really_counted(model: Any) -> Live:
    """The same account of the same step, on tensors with real bytes."""
    live = account_of(model)
    with head_on_positions(model) as positions, Counting(live):
        live.begin("forward 1")
        loss = step_loss(model, BATCH.examples(), positions, torch.device("cpu"), learned=1)
        live.begin("backward 1")
        loss.backward()
    return live


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_without_bytes_live_as_long_as_real_ones(architecture: str, kind: str) -> None:
    model, recipe = tiny_model(architecture), recipe_for(architecture, kind)
    config = model.config
    counted = rehearsal.rehearse(config, recipe, [BATCH], "cpu")
    use_faster_products(model)
    use_lean_gates(model)
    if kind == "lora":
        model = loading.add_adapter(model, recipe)
    live = really_counted(model)
    assert counted.weights == sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()})
    assert counted.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted.moments.keys() == live.moments.keys() and len(live.moments) == 3
    for stretch, moment in live.moments.items():
        assert counted.moments[stretch].total == pytest.approx(moment.total, rel=0.01), stretch


@pytest.mark.parametrize("name", shipped.shipped())
def test_every_shipped_configuration_is_built_without_weights_and_has_its_number_of_parameters(name: str) -> None:
    fields = dict(shipped.named(name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == shipped.shipped()[name]["parameters"]


def test_every_model_of_the_grid_has_a_configuration_without_its_weights(tmp_path: Path) -> None:
    grid = configuration.load(PROJECT / "experiments.yaml")
    for name, model in grid.models.items():
        config = config_of(DataRoot(tmp_path), name, model)
        assert config and config["model_type"], name


@pytest.mark.parametrize("name", configuration.load(PROJECT / "experiments.yaml").models)
def test_every_model_of_the_grid_is_rehearsed_in_4_bits_and_its_adapters_targets_are_found(
    name: str, tmp_path: Path
) -> None:
    grid = configuration.load(PROJECT / "experiments.yaml")
    fields = dict(config_of(DataRoot(tmp_path), name, grid.models[name]) or {})
    config = rehearsal._with_layers(AutoConfig.for_model(fields.pop("model_type"), **fields), 2)
    attention = grid.models[name].attention or "auto"
    recipe = {**LORA, "attention": attention, "quantization": "nf4", "targets": grid.models[name].lora_targets}
    counted = rehearsal.rehearse(config, recipe, [Batch(1, 8, 4)], "cpu")
    assert 0 < counted.quantized < counted.parameters
    assert 0 < counted.trainable < counted.parameters


@pytest.mark.parametrize(
    "recipe",
    [
        FULL,
        {**LORA, "quantization": "nf4"},
        pytest.param(LORA, marks=pytest.mark.slow),
        pytest.param(INT8, marks=pytest.mark.slow),
    ],
    ids=["full", "qlora", "lora", "int8"],
)
def test_few_layers_carried_on_are_all_layers(recipe: dict[str, Any]) -> None:
    config = llama(layers=8)
    whole = rehearsal._rehearse(config, recipe, [BATCH, BATCH], "cpu")
    carried = rehearsal.rehearse(config, recipe, [BATCH, BATCH], "cpu")
    assert (carried.weights, carried.trainable, carried.optimizer) == (whole.weights, whole.trainable, whole.optimizer)
    assert carried.moments.keys() == whole.moments.keys() and len(whole.moments) == 6
    for stretch, moment in whole.moments.items():
        assert carried.moments[stretch].total == pytest.approx(moment.total, rel=0.02), stretch


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_architecture_is_rehearsed_as_on_a_card(architecture: str, checkpointing: bool) -> None:
    recipe = {**recipe_for(architecture, "full"), "gradient_checkpointing": checkpointing}
    here, card = (rehearsal.rehearse(tiny_model(architecture).config, recipe, [BATCH], d) for d in ("cpu", "bf16"))
    assert card.weights == here.weights and 0 < card.peak.total < 1.3 * here.peak.total


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_on_a_card_a_base_in_4_bits_keeps_no_more_than_one_in_half_precision(architecture: str) -> None:
    config, recipe = tiny_model(architecture).config, {**LORA, "targets": TARGETS[architecture], "dropout": 0.0}
    half, four = (
        rehearsal.rehearse(config, {**recipe, "quantization": kind}, [Batch(8, 64, 8)], "bf16").early.activations
        for kind in (None, "nf4")
    )
    assert four < 1.05 * half


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_magnitude_and_direction_apart_are_rehearsed_over_any_base(quantization: str | None) -> None:
    dora = {**LORA, "quantization": quantization, "dora": True}
    plain, apart = (rehearsal.rehearse(llama(), recipe, [BATCH], "cpu") for recipe in ({**dora, "dora": False}, dora))
    assert apart.trainable > plain.trainable and apart.peak.total > plain.peak.total


def test_layers_of_several_kinds_are_rehearsed_whole() -> None:
    config = llama(layers=8)
    assert rehearsal._layers_are_alike(config)
    config.layer_types = ["sliding", "sliding", "full", "sliding"] * 2
    assert not rehearsal._layers_are_alike(config)
    config.layer_types = ["sliding", "full"] * 4
    assert rehearsal._layers_are_alike(config)


def test_what_costs_and_what_spares_memory() -> None:
    def activations(recipe: dict[str, Any], batch: Batch = BATCH) -> float:
        return rehearsal.rehearse(llama(layers=8), recipe, [batch], "cpu").early.activations

    assert activations({**FULL, "gradient_checkpointing": True}) < 0.6 * activations(FULL)
    assert activations({**LORA, "dropout": 0.0}) < activations(LORA)
    # Only learned tokens have logits.
    assert activations(FULL, Batch(2, 24, 4)) < activations(FULL, Batch(2, 24, 40))
    assert activations(FULL, Batch(4, 24, 14)) > 1.5 * activations(FULL)
    assert rehearsal.rehearse(llama(), FULL, [BATCH], "bf16").peak.total < activations(FULL)


def test_four_bits_are_counted_as_bitsandbytes_keeps_them() -> None:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(96, 520), blocksize=64, compress_statistics=True, quant_type="nf4")
    assert state.state2 is not None and state.state2.absmax is not None
    expected = packed.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert hollow.four_bit_bytes(96 * 520) == expected


def test_states_are_counted_as_the_optimizers_keep_them() -> None:
    from pipelines.train.trainer.optimizers import make_optimizer

    for optimizer in ("adamw", "adamw_8bit", "paged_adamw_8bit"):
        layer = torch.nn.Linear(100, 70)
        layer(torch.ones(1, 100)).sum().backward()
        made = make_optimizer(layer, {"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 0.0})
        made.step()
        expected = {
            id(value): value.numel() * value.element_size()
            for state in made.state.values()
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and name != "step" and not name.startswith("qmap")
        }
        assert sum(expected.values()) == state_bytes([7000, 70], optimizer)


def example(number: int, length: int, learned: int) -> Tokenized:
    labels = [-100] * (length - learned) + [1] * learned
    return Tokenized(str(number), [1] * length, labels, [True] * length, 1)


def test_the_heaviest_micro_batches_of_the_examples_are_found() -> None:
    settings = {**FULL, "max_length": 50, "micro_batch_tokens": 60, "epochs": 1, "examples_per_step": 3}
    # The second example is too long.
    examples = [example(1, 20, 5), example(2, 60, 5), example(3, 30, 9), example(4, 28, 9)]
    batches = heaviest(examples, settings, [1], llama())
    assert batches == [Batch(2, 30, 18), Batch(1, 20, 5)]
    assert heaviest([example(2, 60, 5)], settings, [1], llama()) == []
    assert batch_of(Batch(3, 40, 50).examples()) == Batch(3, 40, 50)
    assert allowed(settings) == [Batch(1, 50, 49)] * 2


def counted(**changes: Any) -> Any:
    plain = {
        "weights": 4e9,
        "trainable": 1e9,
        "optimizer": 8e9,
        "quantized": 0,
        "parameters": 1e9,
        "largest": 2e8,
    }
    early, late = Moment(0, 3e9, 1e9), Moment(4e9, 1e9, 5e8)
    moments = {"moments": {"backward 1": early, "backward 1, later half": late}, "early": early, "late": late}
    return rehearsal.Counted(**{**plain, **moments, **changes})


def test_the_parts_add_up() -> None:
    made = memory.on_cpu(counted(), FULL, framework=0.5e9, file_width=4)
    parts = (made.framework, made.weights, made.gradients, made.optimizer, made.activations, made.slack)
    assert sum(parts) == pytest.approx(made.train) and made.train > 16.5e9
    card = memory.on_card(counted(), FULL)
    # Weights, states and the end of the backward pass; the optimizer's step adds nothing.
    assert card.train == 4e9 + 8e9 + 4e9 + 1e9
    paged = memory.on_card(counted(optimizer=2e9), {**FULL, "optimizer": "paged_adamw_8bit"})
    assert (paged.pageable, paged.optimizer) == (2e9, 0)


def test_what_loading_comes_to() -> None:
    def load(width: int, quantized: float = 0) -> float:
        made = counted(weights=1e9, parameters=1e9, quantized=quantized)
        return memory.on_cpu(made, LORA, framework=0.5e9, file_width=width).load

    # The file is mapped and not yet read.
    assert load(4) == 0.5e9
    # Quantizing has read the file.
    assert load(4, quantized=8e8) == 0.5e9 + 1e9 + 4 * 8e8
    assert load(2) == load(2, quantized=8e8) == 0.5e9 + 1e9 + 2 * 1e9


def test_verdicts() -> None:
    def at(gigabytes: float, **settings: Any) -> Estimate:
        prediction = {"peak": gigabytes * 1e9, "train": gigabytes * 1e9}
        prediction_row = {"cpu": prediction, "fp16": prediction, "trainable": 1, "recipe": {"precision": "auto"}}
        return Estimate("m", "full", prediction_row, **settings)

    t4 = CARDS[0]
    assert [at(gb).fits(t4) for gb in (3, 15, 16)] == ["yes", "tight", "no"]
    assert at(15.9).margin_gb(t4) == pytest.approx(t4.usable / 1e9 - 15.9) and at(15.9).fits(t4) == "no"
    assert [at(gb, budget_gb=3.0).fits() for gb in (2.5, 2.9, 3.4)] == ["yes", "tight", "no"]
    unknown = Estimate("m", "full", {"because": "no configuration"})
    assert (unknown.fits(t4), unknown.fits(), unknown.margin_gb()) == (None, None, None)


# the command, the comparison, the advice


def test_the_command_predicts_once_and_then_remembers(
    project: TinyProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["estimate", "smollm2-135m", "lora-r8", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["method"], row["fits"], row["t4_16_fits"]) == ("smollm2-135m", "lora-r8", "yes", "yes")
    assert 0.2 < row["framework_gb"] < row["training_gb"] < 1.5 and row["because"] is None
    assert row["batch_from"].startswith("the most that the settings allow")

    monkeypatch.setattr(estimating, "answers_to", lambda _: pytest.fail("asked again"))
    for form in ("text", "markdown", "csv"):
        assert main(["estimate", "smollm2-135m", "lora-r8", "--format", form]) == 0
        shown = capsys.readouterr().out
        assert "lora-r8" in shown and ("T4 16" in shown or form == "csv")
    assert next(csv.DictReader(io.StringIO(shown)))["fits"] == "yes"


class Stderr(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_sees_how_far_the_predictions_are_and_a_log_does_not(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(estimating, "answers_to", lambda questions: ({"because": "not asked"} for _ in questions))
    monkeypatch.setattr(sys, "stderr", stderr := Stderr(terminal=terminal))
    assert main(["estimate", "smollm2-135m"]) == 0
    methods = len(project.now().experiments.methods)
    assert ("predicting memory: 100%" in stderr.getvalue()) == terminal == (f"{methods}/{methods}" in stderr.getvalue())


def test_models_are_listed_with_size_licence_and_what_fits(
    project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(project.experiments.read_text(encoding="utf-8"))
    parts = {"wheel": ["mine-1==1.0", "mine-2==1.0"], "file": ["a/w.gguf.part0", "b/w.gguf.part1"], "sha256": "0a" * 32}
    licensed = {"license": "other", "license_link": "https://example.org/terms"}
    mine = {"source": parts, "prompt": "chat", **licensed}
    settings["models"] = {"smollm2-135m": settings["models"]["smollm2-135m"], "mine": mine}
    settings["methods"] = {name: settings["methods"][name] for name in ("base", "full", "lora-r8", "qlora-r8")}
    settings["profiles"] = {"local": {"models": ["smollm2-135m"], "methods": ["full"]}}
    project.experiments.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    assert main(["models", "--format", "json"]) == 0
    tiny, mine = json.loads(capsys.readouterr().out)
    assert (tiny["is_here"], mine["is_here"], tiny["license"]) == (True, False, "apache-2.0")
    assert [tiny[f"{method}_fits"] for method in ("full", "lora-r8", "qlora-r8")] == ["yes"] * 3
    assert tiny["weights_gb"] == pytest.approx(tiny["parameters"] * 4 / 1e9, rel=0.05)
    assert mine["source"] == "mine-1==1.0, mine-2==1.0"
    assert mine["full_fits"] is None and "featherweight fetch mine" in mine["because"]
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "licence other, https://example.org/terms: mine" in shown and "mine: neither weights" in shown


def test_every_shipped_model_has_a_licence_and_a_configuration_that_says_where_it_was_read(
    project: TinyProject,
) -> None:
    for one in shipped.shipped().values():
        assert one["read_from"]["config"] and one["read_from"]["tokens"], one["hub"]
    for name, model in configuration.load(PROJECT / "experiments.yaml").models.items():
        assert config_of(project.data, name, model), name
        assert model.license and (model.license_link or model.license in ("apache-2.0", "mit")), name


def test_an_unknown_name_is_bad_usage(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "smollm3"]) == 2
    assert main(["estimate", "smollm2-135m", "lora-r9"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_model_without_weights_and_configuration_says_what_to_do(
    project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    project.change(models={"mine": {"source": {"hub": "me/mine"}, "prompt": "chat", "lora_targets": ["q_proj"]}})
    assert main(["estimate", "mine", "full"]) == 0
    assert "featherweight fetch mine" in capsys.readouterr().out


def test_a_model_that_cannot_be_built_costs_only_its_own_prediction(project: TinyProject, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "no-such-model"}', encoding="utf-8")
    wrong = {"source": {"path": str(broken)}, "prompt": "alpaca", "lora_targets": ["q_proj"]}
    project.change(models={"wrong": wrong})
    predictions = estimating.estimates(project.now(), [("wrong", "full"), ("smollm2-135m", "full")])
    assert predictions[0].because and "no-such-model" in predictions[0].because
    assert predictions[1].fits() == "yes"


def test_the_prediction_stands_beside_the_measurement(project: TinyProject) -> None:
    assert main(["clean"]) == 0
    project.change(profiles={"local": {"methods": ["full"]}})
    assert main(["train", "smollm2-135m", "full"]) == 0
    stage = project.now()
    publication = compare(stage)
    (row,) = published_rows(project.data)
    assert row["estimated_memory_gb"] == pytest.approx(row["peak_memory_gb"], rel=0.35)
    (run,) = all_tables(stage.data, stage.experiments, publication.rows)["training_runs"].to_pylist()
    assert run["estimated_memory_gb"] == row["estimated_memory_gb"]


def test_a_failed_prediction_costs_only_its_numbers(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean"]) == 0
    monkeypatch.setattr(estimating.sys, "executable", "/bin/false")
    assert all(row["estimated_memory_gb"] is None for row in compare(project.now()).rows)
    assert "no prediction of memory" in capsys.readouterr().err


def out_of_memory(**known: Any) -> dict[str, Any]:
    empty = COMPARISON.empty()
    return {**empty, "model": "m", "method": "full", "status": "out_of_memory", "memory_budget_gb": 3.0, **known}


def test_where_no_method_is_predicted_to_fit_advice_names_the_least() -> None:
    cells = [
        out_of_memory(method=method, estimated_memory_gb=needed, estimated_half_batch_gb=needed, memory_budget_gb=0.5)
        for method, needed in (("full", 3.0), ("qlora-r8", 1.3))
    ]
    for dead, needed in zip(cells, ("3.0", "1.3"), strict=True):
        assert advise(dead, cells) == (
            f"{dead['method']} needs about {needed} GB of 0.5: no method here fits, the least is qlora-r8 with about 1.3 GB: raise "
            "memory_budget_gb, or take a smaller model"
        )


def test_advice_speaks_of_predictions_where_they_are_known_and_true() -> None:
    dead = out_of_memory(estimated_memory_gb=3.41, estimated_half_batch_gb=2.2, peak_memory_gb=3.05)
    measured = {**out_of_memory(), "method": "lora-r8", "status": "ok", "peak_memory_gb": 2.31}
    assert advise(dead, [dead, measured]) == (
        "full needs about 3.4 GB of 3: lora-r8 needs 2.31 GB, or halve micro_batch_tokens (about 2.2 GB)"
    )
    foretold = {**out_of_memory(), "method": "lora-r8", "status": "missing", "estimated_memory_gb": 2.3}
    assert "lora-r8 would need about 2.3 GB" in advise(dead, [dead, foretold])
    hopeless = out_of_memory(estimated_memory_gb=3.4, estimated_half_batch_gb=3.3)
    too_close = {**foretold, "estimated_memory_gb": 2.95}
    assert advise(hopeless, [hopeless, too_close]) == (
        "full needs about 3.4 GB of 3: choose a lora or qlora method, or a smaller model"
    )
    refuted = out_of_memory(estimated_memory_gb=2.8, estimated_half_batch_gb=2.4, peak_memory_gb=3.05)
    assert advise(refuted, [refuted]).startswith("it had 3.05 GB of 3 GB when it failed")


# random weights


@pytest.fixture
def random_project(project: TinyProject, tmp_path: Path) -> TinyProject:
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps({"model_type": "llama", **ARCHITECTURES["llama"], "vocab_size": 800}), encoding="utf-8")
    made_up = {"source": {"random": str(shape)}, "prompt": "chat", "lora_targets": TARGETS["llama"]}
    project.change(
        models={"made-up": made_up}, profiles={"local": {"models": ["made-up"], "methods": ["base", "lora-r8"]}}
    )
    return project


@pytest.mark.slow
def test_random_weights_are_measured_and_marked_and_have_no_quality(
    random_project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean"]) == 0
    assert main(["train", "made-up", "lora-r8"]) == 0
    assert main(["evaluate", "made-up", "lora-r8"]) == 0
    assert "random weights" in capsys.readouterr().out
    row = next(row for row in compare(random_project.now()).rows if row["method"] == "lora-r8")
    assert row["status"] == "ok" and row["peak_memory_gb"] > 0 and row["estimated_memory_gb"] > 0
    quality = ("train_loss", "eval_loss", "eval_bits_per_byte", "base_bits_per_byte", "chrf", "is_pareto")
    assert [row[name] for name in quality] == [None] * len(quality)
    assert row["model_note"].startswith("random weights in the shape of")
    # Beside other programs the line also says so.
    assert row["advice"].startswith("random weights: memory and speed are measured, quality is not")


def test_a_random_source_names_a_shipped_configuration_or_a_file(project: TinyProject, tmp_path: Path) -> None:
    assert shipped.named("gpt2-large")["n_layer"] == 36
    with pytest.raises(UsageError, match="gpt2-large"):
        shipped.named("gpt2-huge")
    no_type = tmp_path / "config.json"
    no_type.write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="model_type"):
        shipped.named(str(no_type))
    project.change(models={"made-up": {"source": {"random": "gpt2-huge"}, "prompt": "chat", "lora_targets": ["x"]}})
    assert main(["fetch", "made-up"]) == 2


def test_two_sources_are_one_too_many(project: TinyProject) -> None:
    project.change(
        models={"both": {"source": {"random": "gpt2-xl", "hub": "a/b"}, "prompt": "chat", "lora_targets": ["x"]}}
    )
    with pytest.raises(UsageError, match="exactly one of wheel, hub, path, random or from"):
        project.now()


def test_planted_lakes_without_weights_predict_nothing(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path)
    lake.cell("full")
    assert all(row["estimated_memory_gb"] is None for row in compare(lake.project).rows)
