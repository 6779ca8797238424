"""A step on a card, without one: on PyTorch's meta device, whose tensors have shapes but no values
for the host to read."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, masking_utils

from pipelines.train.trainer import adapters, attention, checkpoint, chunked, loading, loop
from pipelines.train.trainer.cpu import products
from pipelines.train.trainer.devices.ranks import Ranks
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.losses import head_on_positions, put_on, step_loss, token_losses
from pipelines.train.trainer.measure.tally import Tally
from pipelines.train.trainer.optimizers import make_optimizer
from pipelines.train.trainer.precision import make_scaler
from tests.tiny import ARCHITECTURES, MORE_ARCHITECTURES, TARGETS, tiny_model

CPU, CARD = torch.device("cpu"), torch.device("meta")
WINDOWS = ("mistral", "gemma2", "gemma3_text", "cohere2", "exaone4", "ministral", "olmo3")
PLAIN = [name for name in [*ARCHITECTURES, *MORE_ARCHITECTURES] if name not in (*WINDOWS, "gpt_neo")]
QUICK = ("gpt2", "llama", "qwen2", "mistral", "gemma3_text")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in [*PLAIN, *WINDOWS]]


def example(name: str, tokens: int, learned: int) -> Tokenized:
    ids = [3 + (place * 7 + tokens) % 500 for place in range(tokens)]
    labels = [-100] * (tokens - learned) + ids[tokens - learned :]
    return Tokenized(name, ids, labels, [True] * tokens, 1)


GROUPS = [[example("a", 30, 12), example("b", 21, 9)], [example("c", 40, 25)], [example("d", 5, 1), example("e", 3, 3)]]


# copies to the device


def test_the_inputs_of_a_step_travel_together_and_are_those_of_each_micro_batch_alone() -> None:
    together = put_on(CPU, GROUPS)
    assert len({one.ids.untyped_storage().data_ptr() for one in together}) == 1
    for one, group in zip(together, GROUPS, strict=True):
        (alone,) = put_on(CPU, [group])
        assert all(torch.equal(getattr(one, name), getattr(alone, name)) for name in ("ids", "positions", "targets"))
        rows, longest = len(group), max(map(len, group))
        assert one.ids.shape == (rows, longest)
        learned = [(row, at) for row, e in enumerate(group) for at in range(1, len(e)) if e.labels[at] != -100]
        assert one.positions.tolist() == [row * longest + at - 1 for row, at in learned]
        assert one.targets.tolist() == [group[row].labels[at] for row, at in learned]
    assert put_on(CPU, []) == []


# reads from the device


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device replaces a card: reading a value fails where on a card the host would
    wait."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(chunked, "_usable_bytes", lambda _device: 2**34)
    monkeypatch.setattr(products, "_card_sums_in_float32", lambda _dtype: False)
    # `is_autocast_enabled` knows no meta device.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(loop, "autocast", lambda *_: nullcontext())


def model_on_card(architecture: str) -> Any:
    fields = {**ARCHITECTURES, **MORE_ARCHITECTURES}[architecture]
    config = AutoConfig.for_model(architecture.split("-")[0], **fields, pad_token_id=None)
    with CARD:
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


RECIPE: dict[str, Any] = {
    "kind": "full", "precision": "bf16", "gradient_checkpointing": False, "optimizer": "adamw", "learning_rate": 1e-3,
    "weight_decay": 0.0, "gradient_clip": 1.0,
}  # fmt: skip


def trainer_on(device: torch.device, model: Any, recipe: dict[str, Any]) -> Any:
    """The parts of a trainer that a step needs."""
    trainer: Any = object.__new__(loop.Trainer)
    worker = SimpleNamespace(stop_if_asked=lambda: None, asked_to_stop=False)
    trainer.__dict__ |= {
        "worker": worker, "ranks": Ranks(), "recipe": recipe, "device": device, "model": model, "compute": model, "zero": None,
        "named": {name: p for name, p in model.named_parameters() if p.requires_grad}, "tally": Tally(),
        "optimizer": make_optimizer(model, recipe), "scaler": make_scaler(recipe, device), "_positions": [],
    }  # fmt: skip
    return trainer


class Ran(TorchDispatchMode):
    """The names of the executed operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.usefixtures("card")
def test_the_host_waits_once_a_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    monkeypatch.setattr(loop, "_numbers", lambda *given: reads.append(len(given)) or [1.0, 1.0])
    model, recipe = model_on_card("llama"), {**RECIPE, "kind": kind}
    if kind == "lora":
        more = {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": TARGETS["llama"]}
        model = loading.add_adapter(model, recipe | more)
        adapters.fuse(model, torch.bfloat16)
    trainer = trainer_on(CARD, model, recipe)
    with head_on_positions(model) as trainer._positions:
        assert trainer.step(GROUPS, 1e-3) == 1.0
    # Loss and norm are read together.
    assert reads == [2]


def test_several_numbers_are_read_at_once_and_stay_what_they_are() -> None:
    values = (torch.tensor(1 / 3), 0.1, torch.tensor(1 / 3, dtype=torch.float64))
    with Ran() as ran:
        numbers = loop._numbers(*values)
    assert numbers == [values[0].item(), 0.1, 1 / 3]
    assert ran.names.count("aten.stack.default") == 1
    assert loop._numbers(2.0, 0.5) == [2.0, 0.5]


def test_a_step_says_the_same_loss_as_its_micro_batches_alone() -> None:
    model = tiny_model("llama")
    trainer, learned = trainer_on(CPU, model, {**RECIPE, "precision": "fp32"}), 50
    with head_on_positions(model) as trainer._positions:
        each = [step_loss(model, group, trainer._positions, CPU, learned=learned).item() for group in GROUPS]
        # Equal to the last bit.
        assert trainer.step(GROUPS, 0.0, learned=learned) == sum(each)


# attention


@pytest.mark.parametrize("architecture", EVERY)
@pytest.mark.usefixtures("card")
def test_only_where_a_causal_flag_says_all_is_no_mask_made(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _: looks.append(1))
    model = model_on_card(architecture)
    before = model.config._attn_implementation
    with head_on_positions(model) as positions, torch.no_grad():
        token_losses(model, GROUPS[0], positions, CARD)
    assert bool(looks) == (architecture in WINDOWS)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("architecture", EVERY)
def test_attention_without_a_mask_says_the_same(architecture: str) -> None:
    model = tiny_model(architecture)
    # Windows hold 64 tokens.
    (inputs,) = put_on(CPU, [[example("long", 90, 5), example("short", 20, 5)]])
    with torch.no_grad():
        expected = model(input_ids=inputs.ids, use_cache=False).logits
        with attention.causal(model, CARD):
            logits = model(input_ids=inputs.ids, use_cache=False).logits
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_keys_that_an_adapter_puts_before_a_text_hide_none_of_it(architecture: str) -> None:
    recipe = {
        **RECIPE,
        "kind": "adapter",
        "targets": None,
        "peft": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    }
    model = loading.add_adapter(tiny_model(architecture), recipe).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    (inputs,) = put_on(CPU, [[example("long", 30, 5), example("short", 12, 5)]])
    with torch.no_grad():
        expected = model(input_ids=inputs.ids, use_cache=False).logits
        with attention.causal(model, CARD):
            logits = model(input_ids=inputs.ids, use_cache=False).logits
    assert torch.equal(logits, expected)


def test_what_a_token_sees_decides() -> None:
    config = tiny_model("llama").config
    assert attention.needs_no_mask(config)
    for name, value in {
        "sliding_window": 64,
        "layer_types": ["full_attention", "sliding_attention"],
        "use_bidirectional_attention": True,
        "is_causal": False,
        "model_type": "something-new",
        "_attn_implementation": "eager",
    }.items():
        other = copy.deepcopy(config)
        setattr(other, name, value)
        assert not attention.needs_no_mask(other), name
    # The windows stand in the configuration of its text model.
    with_eyes = AutoConfig.for_model("gemma3")
    with_eyes._attn_implementation = "sdpa"
    assert not attention.needs_no_mask(with_eyes)


# the optimizer


def test_adamw_is_one_kernel_on_a_card_and_goes_on_after_a_resume() -> None:
    cuda = torch.device("cuda:0")
    # The tensors report that they lie on a card.
    with FakeTensorMode():
        layer = torch.nn.ParameterList([torch.empty(8, 4, device=cuda), torch.empty(4, device=cuda)])
        parameters = list(layer.parameters())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer = make_optimizer(layer, RECIPE)
        with Ran() as ran:
            optimizer.step()
        assert any("_fused_adamw_" in one for one in ran.names) and not any("_foreach_sqrt" in one for one in ran.names)
        tensors, numbers = checkpoint.optimizer_state(optimizer, parameters)
        again = make_optimizer(layer, RECIPE)
        # Tensors from a file lie on the CPU.
        read = {name: torch.empty(tensor.shape) for name, tensor in tensors.items()}
        checkpoint.set_optimizer_state(again, parameters, read, numbers)
        assert {value.device for state in again.state.values() for value in state.values()} == {cuda}
        again.step()


def test_a_step_lasts_until_the_card_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def synchronize(_device: Any = None) -> None:
        # Work that was queued and is not yet done.
        now[0] += 5.0

    monkeypatch.setattr(loop, "Stopwatch", lambda: SimpleNamespace(total=lambda: now[0], stopped=lambda: 0.0))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    for device, seconds in ((torch.device("cuda"), 5.0), (CPU, 0.0)):
        now[0] = 0.0
        trainer = trainer_on(device, torch.nn.Linear(2, 2), {**RECIPE, "precision": "fp32", "warmup_share": 0.0})
        trainer._plan, trainer._warm, trainer.chosen = [[]], False, SimpleNamespace(rate=1e-3)
        trainer.step_over = lambda *_: 1.0
        trainer._advance(GROUPS[0])
        assert trainer.tally.seconds == seconds


# the probe
