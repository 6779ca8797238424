"""The prediction of an adapter's memory: its rehearsal counts what real tensors take, whatever PEFT
computes with."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import estimate as benchmark
from pipelines.errors import UnavailableError, UsageError
from pipelines.estimate import hollow, memory, rehearsal
from pipelines.estimate.live import Moment
from pipelines.estimate.rehearsal import Counted
from pipelines.train.trainer import loading
from pipelines.train.trainer.cpu.products import use_faster_products
from pipelines.train.trainer.gated import use_lean_gates
from tests.test_estimate_memory import BATCH, FULL, llama, really_counted
from tests.tiny import TARGETS, tiny_model

SLOW = pytest.mark.slow
KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.1, "use_rslora": True},
    "dora": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.1, "use_dora": True},
    "pissa": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa"},
    "olora": {"peft_type": "LORA", "r": 4, "init_lora_weights": "olora"},
    "vera": {"peft_type": "VERA", "r": 8},
    "ia3": {"peft_type": "IA3"},
    "oft": {"peft_type": "OFT", "oft_block_size": 8},
    "boft": {"peft_type": "BOFT", "boft_block_size": 8},
    "hra": {"peft_type": "HRA", "r": 2},
    "miss": {"peft_type": "MISS", "r": 8},
    "shira": {"peft_type": "SHIRA", "r": 2},
    "c3a": {"peft_type": "C3A", "block_size": 8},
    "randlora": {"peft_type": "RANDLORA", "r": 8},
    "fourierft": {"peft_type": "FOURIERFT", "n_frequency": 20},
    "ln-tuning": {"peft_type": "LN_TUNING"},
}
# Bytes of the tiny Llama's projections in two layers.
LINEAR = 2 * 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
# A real FFT keeps a few bytes inside itself, which no rehearsal sees.
WITH_FFT = ("c3a", "fourierft")


def recipe_of(kind: str) -> dict[str, Any]:
    return {**FULL, "kind": "adapter", "peft": KINDS[kind], "targets": TARGETS["llama"]}


def bytes_of(model: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in hollow.tensors_of(model))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind == "shira" else SLOW) for kind in KINDS])
def test_an_adapters_tensors_without_bytes_live_as_long_as_real_ones(kind: str) -> None:
    model, recipe = tiny_model("llama"), recipe_of(kind)
    counted = rehearsal.rehearse(model.config, recipe, [BATCH], "cpu")
    use_faster_products(model)
    use_lean_gates(model)
    live = really_counted(adapted := loading.add_adapter(model, recipe))
    assert counted.weights == bytes_of(adapted)
    assert counted.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counted.moments.keys() == live.moments.keys() and len(live.moments) == 3
    for stretch, moment in live.moments.items():
        allowed = 0.03 if kind in WITH_FFT else 0.01
        assert counted.moments[stretch].total == pytest.approx(moment.total, rel=allowed), stretch


@SLOW
@pytest.mark.parametrize("kind", KINDS)
def test_few_layers_carried_on_are_all_layers_of_an_adapter(kind: str) -> None:
    config, recipe = llama(layers=8), recipe_of(kind)
    whole = rehearsal._rehearse(config, recipe, [BATCH, BATCH], "cpu")
    carried = rehearsal.rehearse(config, recipe, [BATCH, BATCH], "cpu")
    for name in ("weights", "trainable", "optimizer", "replaced"):
        assert getattr(carried, name) == getattr(whole, name), name
    for stretch, moment in whole.moments.items():
        assert carried.moments[stretch].total == pytest.approx(moment.total, rel=0.02), stretch


def test_what_a_module_holds_beside_its_parameters_is_counted_once() -> None:
    module: Any = torch.nn.Linear(4, 4, bias=False)
    module.indices = {"default": torch.zeros(2, 10, dtype=torch.int64)}
    module.alone, module.again = (tensor := torch.zeros(3)), tensor
    assert bytes_of(module) == 4 * 16 + 8 * 20 + 4 * 3
    hollow.give_tensors(module)
    assert module.alone is module.again is not tensor and module.indices["default"].shape == (2, 10)


@pytest.fixture(scope="module")
def pissa() -> Counted:
    return rehearsal.rehearse(llama(), recipe_of("pissa"), [BATCH], "cpu")


@pytest.fixture(scope="module")
def shira() -> Counted:
    return rehearsal.rehearse(llama(), recipe_of("shira"), [BATCH], "cpu")


def predicted(counted: Counted, kind: str, width: int = 4) -> memory.Prediction:
    return memory.on_cpu(counted, recipe_of(kind), framework=0, file_width=width)


def test_whether_adapters_compute_in_groups_is_seen_not_named(pissa: Counted, shira: Counted) -> None:
    assert pissa.grouped and not shira.grouped


def test_what_is_the_same_in_every_micro_batch_has_less_slack(pissa: Counted, shira: Counted) -> None:
    assert pissa.moments.keys() == shira.moments.keys() == {"forward 1", "backward 1", "backward 1, later half"}
    # SHiRA adapts a copy of each projection.
    assert pissa.fixed == 0 and LINEAR < shira.fixed < 2 * LINEAR
    heap, spared = shira.early.total, memory.HEAP_SLACK["adapter"] * (1 - memory.FIXED_SHARE)
    one = replace(shira, late=Moment())
    assert shira.fixed < heap
    none, some, all_of_it, more = (
        predicted(replace(one, fixed=fixed), "shira").train for fixed in (0, shira.fixed, heap, 2 * heap)
    )
    assert none - some == pytest.approx(spared * shira.fixed) and none - all_of_it == pytest.approx(spared * heap)
    assert more == all_of_it


def test_weights_that_an_adapter_replaces_stay_in_memory_with_the_file_that_they_lie_in(
    pissa: Counted, shira: Counted
) -> None:
    assert (pissa.replaced, shira.replaced) == (LINEAR, 0)
    plain = replace(pissa, replaced=0)
    assert predicted(pissa, "pissa").train - predicted(plain, "pissa").train == LINEAR
    assert predicted(pissa, "pissa").load == 2 * LINEAR
    # Converted weights lie in no file.
    assert predicted(pissa, "pissa", 2) == predicted(plain, "pissa", 2)


def test_what_peft_refuses_is_refused_in_its_words_whatever_it_lacks_on_the_way() -> None:
    recipe = {**recipe_of("boft"), "peft": {"peft_type": "BOFT", "boft_block_size": 7}}
    with pytest.raises(UnavailableError, match="divisible by boft_block_size"):
        rehearsal.rehearse(llama(), recipe, [BATCH], "cpu")


def test_an_adapter_of_no_such_name_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(UsageError, match=r"'doraa'; expected one of .*did you mean 'dora-r8'"):
        next(benchmark.measure(["doraa"]))
