"""Adapters that need more than a configuration class.

They have optimizers of their own, ranks that move, tokens of their own, or initial weights from
texts or from the base's rounding. Each is compared with the computation in PEFT's own
documentation.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from pipelines.errors import UnavailableError
from pipelines.evaluate import answering
from pipelines.evaluate.answering import PromptedModel
from pipelines.evaluate.cell import evaluate
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.lake.files import read_jsonl
from pipelines.recipe import recipe_of
from pipelines.runs.cells import Attempt
from pipelines.runs.run import RunHooks
from pipelines.settings import experiments as configuration
from pipelines.settings.methods import traits_of
from pipelines.train.cell import train
from pipelines.train.trainer import batches, checkpoint, from_texts, loading, moving_ranks, peft_adapter
from pipelines.train.trainer.examples import Tokenized, longest
from pipelines.train.trainer.losses import head_on_positions, step_loss, token_losses
from pipelines.train.trainer.optimizers import make_optimizer, set_rate
from pipelines.train.trainer.prompts import PromptFormat
from tests.in_process import InProcess, clean_for, kill_at, trained
from tests.project import MODEL, TinyProject
from tests.tiny import ARCHITECTURES, MORE_ARCHITECTURES, only, save_tiny, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
RECORDS = [
    {"example_id": "a", "instruction": "For a nurse?", "input": "After a night shift.", "output": "Olive Kitteridge."},
    {"example_id": "b", "instruction": "한 권만", "input": "", "output": "정세랑의 『보건교사 안은영』이요."},
    {"example_id": "c", "instruction": "One sentence, please.", "input": "", "output": "Read Stoner."},
]  # fmt: skip
VIRTUAL: dict[str, dict[str, Any]] = {
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
}


def recipe_for(kind: str = "LORA", *, more: dict[str, Any] | None = None, **peft: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "learning_rate": 1e-2, "weight_decay": 0.0, "optimizer": "adamw", "precision": "fp32", "quantization": None,
        "examples_per_step": 2, "epochs": 1, "targets": "auto", "attention": "auto",
    }  # fmt: skip
    return {"kind": "adapter", "peft": {"peft_type": kind, **peft}, **settings, **(more or {})}


def adapted(recipe: dict[str, Any], architecture: str = "llama") -> Any:
    torch.manual_seed(3)
    return loading.add_adapter(tiny_model(architecture), recipe)


def trainable(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def text(seed: int = 0, length: int = 12) -> torch.Tensor:
    return torch.randint(5, 300, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def examples() -> list[Tokenized]:
    form = PromptFormat(tiny_tokenizer(), "chat")
    return [only(form, record) for record in RECORDS]


# optimizers


def test_lora_plus_gives_b_its_multiple_of_every_learning_rate() -> None:
    model = adapted(recipe_for(r=4))
    optimizer = make_optimizer(model, recipe_for(r=4, more={"loraplus_lr_ratio": 16.0}))
    for rate in (1e-3, 3e-4):
        set_rate(optimizer, rate)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert set(rates) == {id(p) for p in trainable(model).values()}
        for name, parameter in trainable(model).items():
            assert rates[id(parameter)] == pytest.approx(rate * (16 if "lora_B" in name else 1))


def test_lora_fa_is_pefts_and_goes_on_from_a_checkpoint_to_the_same_bits() -> None:
    recipe = recipe_for(r=4, more={"optimizer": "lorafa"})
    model, plain = adapted(recipe), adapted(recipe_for(r=4))
    assert {name.split(".")[-3] for name in trainable(model)} == {"lora_B"}

    from peft.optimizers import create_lorafa_optimizer

    ours, pefts = make_optimizer(model, recipe), create_lorafa_optimizer(plain, r=4, lora_alpha=8, lr=1e-2)
    for one, optimizer in ((model, ours), (plain, pefts)):
        _steps(one, optimizer, 3)
    assert _equal(model, plain)

    parameters = list(trainable(model).values())
    tensors, numbers = checkpoint.optimizer_state(ours, parameters)
    assert {name.partition("/")[2] for name in tensors} == {"exp_avg_B", "exp_avg_sq_B"} and len(tensors) == 2 * len(
        parameters
    )
    fresh = make_optimizer(model, recipe)
    checkpoint.set_optimizer_state(fresh, parameters, {n: t.clone() for n, t in tensors.items()}, numbers)
    fresh.load_state_dict(fresh.state_dict())
    _steps(model, fresh, 2, start=3)
    _steps(plain, pefts, 2, start=3)
    assert _equal(model, plain)


@pytest.mark.parametrize("more", [{"use_dora": True}, {"bias": "lora_only", "lora_bias": True}])
def test_lora_fa_takes_no_adapter_whose_parameters_peft_would_pair_wrongly(more: dict[str, Any]) -> None:
    recipe = recipe_for(r=4, more={"optimizer": "lorafa"}, **more)
    with pytest.raises(UnavailableError, match="in pairs of lora_A and lora_B"):
        make_optimizer(adapted(recipe), recipe)


def _steps(model: Any, optimizer: torch.optim.Optimizer, count: int, *, start: int = 0) -> None:
    model.train()
    for step in range(start, start + count):
        ids = text(step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _equal(one: Any, other: Any) -> bool:
    there = trainable(other)
    pairs = [(p, there[name]) for name, p in trainable(one).items()]
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


# ranks that move

MOVING: dict[str, Any] = {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 2}


def moved(model: Any, recipe: dict[str, Any], steps: range, optimizer: Any = None) -> Any:
    """The model after these steps of eight, as the trainer makes them."""
    moving_ranks.plan(model, 8)
    optimizer = optimizer or make_optimizer(model, recipe)
    model.train()
    for step in steps:
        ids = text(step)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        moving_ranks.penalty(model).backward()  # pyright: ignore[reportOptionalMemberAccess]
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_ranks_move_as_in_pefts_own_loop(tmp_path: Path) -> None:
    recipe = recipe_for("ADALORA", **MOVING)
    model, plain = adapted(recipe), adapted(recipe)
    moved(model, recipe, range(8))

    plain.peft_config["default"].total_step = 8
    optimizer = torch.optim.AdamW(trainable(plain).values(), lr=1e-2, weight_decay=0.0)
    plain.train()
    # The loop of `AdaLoraModel.update_and_allocate`.
    for step in range(8):
        ids = text(step)
        plain(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        plain.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-4, atol=1e-5)

    left = [int((p != 0).sum()) for name, p in trainable(model).items() if "lora_E" in name]
    # The total is that of the requested ranks, but the ranks differ.
    assert sum(left) == 2 * len(left) and len(set(left)) > 1
    moving_ranks.settle(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path)).eval()
    assert _says(again) == pytest.approx(_says(model.eval()), abs=1e-5) != _says(tiny_model("llama"))


# While ranks move, when that ends, and after it.
@pytest.mark.parametrize("at", [2, *(pytest.param(at, marks=pytest.mark.slow) for at in (6, 7))])
def test_what_moves_ranks_is_in_a_checkpoint(at: int) -> None:
    recipe = recipe_for("ADALORA", **MOVING)
    undisturbed, model = adapted(recipe), adapted(recipe)
    moved(undisturbed, recipe, range(8))
    optimizer = moved(model, recipe, range(at))
    tensors, numbers = checkpoint.optimizer_state(optimizer, list(trainable(model).values()))
    later = adapted(recipe)
    later.load_state_dict(model.state_dict())
    fresh = make_optimizer(later, recipe)
    checkpoint.set_optimizer_state(fresh, list(trainable(later).values()), tensors, numbers)
    moved(later, recipe, range(at, 8), fresh)
    assert _equal(later, undisturbed)
    if at == 2:
        forgetful = adapted(recipe)
        forgetful.load_state_dict(model.state_dict())
        moved(forgetful, recipe, range(at, 8))
        assert not _equal(forgetful, undisturbed)


def test_a_step_at_a_rate_of_zero_moves_nothing_and_too_few_steps_are_told() -> None:
    recipe = recipe_for("ADALORA", **MOVING)
    model = adapted(recipe)
    optimizer = make_optimizer(model, recipe)
    set_rate(optimizer, 0.0)
    before = {name: p.clone() for name, p in trainable(model).items()}
    moved(model, recipe, range(2), optimizer)
    assert all(torch.equal(p, before[name]) for name, p in trainable(model).items())
    assert not any("rank_" in key for state in optimizer.state.values() for key in state)
    with pytest.raises(UnavailableError, match=r"this plan has 3 optimizer steps"):
        moving_ranks.plan(model, 3)
    with pytest.raises(UnavailableError, match=r"target_r: got 8; expected less than init_r, 6"):
        adapted(recipe_for("ADALORA", init_r=6))


def _says(model: Any) -> list[float]:
    return peft_adapter.losses_of(model, text()[0].tolist())


# tokens of its own


def with_tokens(kind: str, architecture: str) -> Any:
    model = adapted(recipe_for(kind, **VIRTUAL[kind]), architecture)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.3)
    return model.eval()


SLOWLY = [*ARCHITECTURES, *MORE_ARCHITECTURES]
SOME = [("PROMPT_TUNING", "gpt2"), ("PREFIX_TUNING", "qwen3"), ("P_TUNING", "opt-350m")]
EVERY = [(kind, architecture) for kind in VIRTUAL for architecture in SLOWLY if (kind, architecture) not in SOME]


@pytest.mark.parametrize(
    ("kind", "architecture"), [*SOME, *(pytest.param(*one, marks=pytest.mark.slow) for one in EVERY)]
)
def test_losses_gradients_and_answers_are_of_the_texts_own_tokens(
    kind: str, architecture: str, examples: list[Tokenized]
) -> None:
    model = with_tokens(kind, architecture)
    plain = []
    # PEFT's own loss, one row at a time.
    for example in examples:
        ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
        plain.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss * example.learned)
    (sum(plain) / 10).backward()  # pyright: ignore[reportAttributeAccessIssue]
    expected: dict[str, Any] = {name: p.grad.clone() for name, p in trainable(model).items()}
    model.zero_grad()
    with head_on_positions(model) as positions:
        loss = step_loss(model, examples, positions, CPU, learned=10)
        loss.backward()
        with torch.no_grad():
            losses = token_losses(model, examples, positions, CPU)
    assert loss.item() * 10 == pytest.approx(float(sum(plain)), rel=1e-5)
    assert losses.sum().item() == pytest.approx(float(sum(plain)), rel=1e-5)
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)

    form = PromptFormat(tiny_tokenizer(), "chat")
    prompted_model = PromptedModel(model, form, recipe_for(kind, **VIRTUAL[kind]), CPU)
    prompts = [form.prompt(record) for record in RECORDS]
    assert len({len(prompt) for prompt in prompts}) > 1
    alone = [_greedy(model, prompt, 6) for prompt in prompts]
    assert answering.answer(prompted_model, prompts, 6, exactly=True) == alone


def _greedy(model: Any, prompt: list[int], limit: int) -> list[int]:
    """The whole row again for every token."""
    ids = list(prompt)
    for _ in range(limit):
        row = torch.tensor([ids])
        with torch.no_grad():
            ids.append(
                int(model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -1].argmax())
            )
    return ids[len(prompt) :]


def test_tokens_of_its_own_take_room_in_a_micro_batch_and_in_the_model(examples: list[Tokenized]) -> None:
    room = 2 * max(map(len, examples))
    assert len(batches.micro_batches(examples, max_tokens=room)[0]) == 2
    assert len(batches.micro_batches(examples, max_tokens=room, virtual=1)[0]) == 1
    config = tiny_model("gpt2").config
    assert (longest(1024, config, 4), longest(1024, config), longest(100, config, 4)) == (508, 512, 100)
    assert traits_of(recipe_for("PREFIX_TUNING", num_virtual_tokens=4)).virtual_tokens == 4
    assert traits_of(recipe_for("LORA", r=4)).virtual_tokens == 0


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_there_is_nothing_to_merge_in_them(kind: str) -> None:
    with pytest.raises(UnavailableError, match=f"{kind} puts tokens of its own before a text and changes no weight"):
        loading.merged(with_tokens(kind, "llama"))


# initial weights


@pytest.mark.parametrize(
    "architecture", ["llama", pytest.param("opt", marks=pytest.mark.slow), pytest.param("gpt2", marks=pytest.mark.slow)]
)
def test_eva_begins_with_the_directions_of_the_texts(
    architecture: str, examples: list[Tokenized], tmp_path: Path
) -> None:
    recipe = recipe_for(r=3, init_lora_weights="eva", more={"examples_per_step": 3})
    model = adapted(recipe, architecture)
    state = torch.get_rng_state()
    loading.begin_from_texts(model, recipe, examples, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "get_base_layer")]
    ranks = [layer.r["default"] for layer in layers]
    # The ranks were distributed anew.
    assert len(set(ranks)) > 1
    for layer in layers:
        directions = layer.lora_A["default"].weight
        torch.testing.assert_close(directions @ directions.T, torch.eye(len(directions)), atol=1e-3, rtol=0)
        assert not layer.lora_B["default"].weight.any()
    # The layers are computed in groups, like plain LoRA.
    assert any("forward" in vars(layer) for layer in layers)
    again = adapted(recipe, architecture)
    loading.begin_from_texts(again, recipe, examples, seed=1)
    assert _equal(model, again)
    _steps(model, make_optimizer(model, recipe), 2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(architecture), str(tmp_path)).eval()
    assert _says(loaded) == pytest.approx(_says(model.eval()), abs=1e-5) != _says(tiny_model(architecture))


def test_eva_with_too_few_tokens_ends_in_words(examples: list[Tokenized], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(r=1000, init_lora_weights="eva")
    with pytest.raises(UnavailableError, match=r"EVA looks for 2000 directions"):
        loading.begin_from_texts(adapted(recipe), recipe, examples, seed=1)
    monkeypatch.setattr(from_texts, "PASSES", 0)
    recipe = recipe_for(r=3, init_lora_weights="eva")
    with pytest.raises(UnavailableError, match="EVA has not settled"):
        loading.begin_from_texts(adapted(recipe), recipe, examples, seed=1)


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_loftq_makes_up_for_the_rounding(architecture: str, tmp_path: Path) -> None:
    peft = {"r": 8, "lora_alpha": 4, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}
    recipe = recipe_for(**peft, more={"quantization": "nf4"})
    folder = save_tiny(tmp_path / "tiny", architecture)
    model = loading.add_adapter(loading.load_model(folder, recipe), recipe)
    base = tiny_model(architecture)
    ids = text()
    with torch.no_grad():
        expected = base(input_ids=ids).logits
        off = (model.eval()(input_ids=ids).logits - expected).abs().mean()
        with model.disable_adapter():
            without = (model(input_ids=ids).logits - expected).abs().mean()
    assert off < 0.8 * without
    model.save_pretrained(tmp_path / "saved")
    again = PeftModel.from_pretrained(loading.load_model(folder, recipe), str(tmp_path / "saved")).eval()
    assert _says(again) == pytest.approx(_says(model), abs=1e-5)


@pytest.mark.parametrize(
    ("more", "peft", "words"),
    [
        ({}, {}, "set quantization: nf4"),
        ({"quantization": "int8"}, {}, "has quantization int8"),
        ({"quantization": "nf4"}, {"loftq_config": {"loftq_iter": 5}}, "loftq_iter: 1"),
        ({"quantization": "nf4"}, {"use_dora": True}, "sets A and B alone"),
    ],
)
def test_loftq_that_would_be_something_else_is_refused(more: dict[str, Any], peft: dict[str, Any], words: str) -> None:
    recipe = recipe_for(r=4, init_lora_weights="loftq", more=more, **peft)
    with pytest.raises(UnavailableError, match=words):
        peft_adapter.config_of(tiny_model("llama"), recipe, [])


@pytest.mark.parametrize("start", ["olora", "pissa"])
def test_what_changes_the_base_begins_as_the_base_and_comes_back(start: str, tmp_path: Path) -> None:
    recipe = recipe_for(r=4, init_lora_weights=start)
    model = adapted(recipe)
    assert _says(model) == pytest.approx(_says(tiny_model("llama")), abs=1e-4)
    _steps(model, make_optimizer(model, recipe), 2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path)).eval()
    assert _says(again) == pytest.approx(_says(model.eval()), abs=1e-4) != _says(tiny_model("llama"))


def test_olora_is_refused_where_peft_would_begin_with_another_model() -> None:
    recipe = recipe_for(r=4, init_lora_weights="olora", target_modules=["attn.c_proj"])
    with pytest.raises(UnavailableError, match="olora misreads this model's weights"):
        loading.add_adapter(tiny_model("gpt2"), recipe)
    from peft import LoraConfig

    settings: Any = {"r": 4, "init_lora_weights": "olora", "target_modules": ["attn.c_proj"], "fan_in_fan_out": True}
    spoilt = get_peft_model(tiny_model("gpt2"), LoraConfig(task_type="CAUSAL_LM", **settings))
    # Otherwise there would be no reason to refuse it.
    assert _says(spoilt) != pytest.approx(_says(tiny_model("gpt2")), abs=1e-3)


# whole cells

CELLS: dict[str, dict[str, Any]] = {
    "lora-rslora": {"peft": {"peft_type": "LORA", "r": 4, "use_rslora": True}},
    "lora-dora": {"peft": {"peft_type": "LORA", "r": 4, "use_dora": True}},
    "lora-pissa": {"peft": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa"}},
    "lora-olora": {"peft": {"peft_type": "LORA", "r": 4, "init_lora_weights": "olora"}},
    "lora-eva": {"peft": {"peft_type": "LORA", "r": 4, "init_lora_weights": "eva"}},
    "lora-loftq": {"quantization": "nf4", "peft": {"peft_type": "LORA", "r": 4, "init_lora_weights": "loftq"}},
    "lora-plus": {"loraplus_lr_ratio": 16, "peft": {"peft_type": "LORA", "r": 4}},
    "lora-fa": {"optimizer": "lorafa", "peft": {"peft_type": "LORA", "r": 4}},
    "vera": {"learning_rate": 1e-3, "peft": {"peft_type": "VERA", "r": 16}},
    "adalora": {"peft": {"peft_type": "ADALORA", "init_r": 6, "target_r": 2, "tfinal": 1}},
    "ia3": {"peft": {"peft_type": "IA3"}},
    "oft": {"peft": {"peft_type": "OFT", "oft_block_size": 8}},
    "boft": {"peft": {"peft_type": "BOFT", "boft_block_size": 4}},
    "hra": {"peft": {"peft_type": "HRA", "r": 4}},
    "miss": {"peft": {"peft_type": "MISS", "r": 4}},
    "shira": {"peft": {"peft_type": "SHIRA", "r": 4}},
    "c3a": {"peft": {"peft_type": "C3A", "block_size": 8}},
    "randlora": {"peft": {"peft_type": "RANDLORA", "r": 4}},
    "fourierft": {"peft": {"peft_type": "FOURIERFT", "n_frequency": 50}},
    "ln": {"peft": {"peft_type": "LN_TUNING"}},
    "prompt": {"peft": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}},
    "p-tuning": {"peft": {"peft_type": "P_TUNING", "num_virtual_tokens": 4, "encoder_hidden_size": 16}},
    "prefix": {"peft": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}},
}
PAIRS = [(method, architecture) for architecture in SLOWLY for method in CELLS]
QUIET = RunHooks(say=lambda _message: None, launcher=InProcess())


@pytest.mark.slow
@pytest.mark.parametrize(("method", "architecture"), PAIRS)
def test_a_whole_cell_learns_goes_on_after_a_kill_and_is_evaluated_as_it_was_trained(
    project: TinyProject, method: str, architecture: str, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "model", architecture)
    model = {"source": {"path": str(tmp_path / "model")}, "lora_targets": "auto"}
    small = {"general_texts": 1, "latency_answers": 1, "serving_batch": 2, "serving_tokens": 3}
    steps = {"epochs": 4, "examples_per_step": 8, "checkpoint_every_steps": 1, "warmup_share": 0}
    project.change(
        models={MODEL: model},
        methods={method: {"kind": "adapter", "learning_rate": 5e-3, **CELLS[method]}},
        profiles={"local": {"methods": ["base", method], "training": steps, "evaluation": small}},
    )
    clean_for(project)
    attempt = trained(project, method)
    # The row gives its reason in words; on a Llama everything is possible.
    if attempt.status == "unavailable":
        assert architecture != "llama" and len(attempt.result.detail) > 40, attempt.result.detail
        return
    assert attempt.status == "ok", attempt.result.detail
    curve = read_jsonl(attempt.folder / "curve.jsonl")
    losses = [row["train_loss"] for row in curve if row["train_loss"] is not None]
    # Every step has the same eight examples; an architecture's own dropout makes the training
    # losses noisy, but not the held-out ones.
    assert len(losses) == 4
    assert min(losses[1:]) < losses[0] or curve[-1]["eval_loss"] < curve[0]["eval_loss"]
    bits = _bits(attempt)

    key, resolved = project.key(method), project.resolved()
    shutil.rmtree(key.folder(project.data))
    killed, _ = train(resolved, key, hooks=RunHooks(say=QUIET.say, launcher=kill_at(3)))
    assert "goes on after step 2" in killed.result.detail
    attempt, _ = train(resolved, key, hooks=QUIET)
    assert _bits(attempt) == bits

    evaluation, _ = evaluate(resolved, key, hooks=QUIET)
    assert evaluation.ok, evaluation.result.detail
    # Both have the same records: a dropped or exchanged adapter would answer differently.
    assert evaluation.result.measured["eval_loss"] == pytest.approx(curve[-1]["eval_loss"], rel=1e-4)
    made = export(resolved, key, ExportRequest(output=tmp_path / "out"), hooks=QUIET)
    if traits_of(attempt.spec.recipe).virtual_tokens:
        assert made.result.status == "unavailable" and "tokens of its own" in made.result.detail
    elif made.ok:
        bits_per_byte = evaluation.result.measured["eval_bits_per_byte"]
        assert made.result.measured["merged_bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-3)
    else:
        assert made.result.status == "unavailable" and "PEFT's" in made.result.detail, made.result.detail


def _bits(attempt: Attempt) -> dict[str, bytes]:
    assert attempt.status == "ok", attempt.result.detail
    return {path.name: path.read_bytes() for path in attempt.model_folder.glob("*.safetensors")}


# settings


def test_they_are_in_the_recipe_where_they_are_set_and_nowhere_else(project: TinyProject) -> None:
    project.change(
        methods={
            "plus": {"kind": "lora", "rank": 8, "loraplus_lr_ratio": 16},
            "frozen-a": {"kind": "lora", "rank": 8, "optimizer": "lorafa"},
        }
    )
    loaded = configuration.load(project.experiments)
    plus, frozen, plain = (recipe_of(loaded, "local", MODEL, name) for name in ("plus", "frozen-a", "lora-r8"))
    assert (plus["loraplus_lr_ratio"], plus["optimizer"], frozen["optimizer"]) == (16.0, "adamw", "lorafa")
    assert "loraplus_lr_ratio" not in plain and "loraplus_lr_ratio" not in frozen
