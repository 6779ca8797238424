"""The checks for a card: dry on a CPU, and their branches for a card on a CPU that answers like
one."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import varlen

from benchmarks import rate
from benchmarks.card import (
    attention,
    cells,
    grid,
    head,
    interruption,
    layers,
    numerics,
    ours,
    profiling,
    rates,
    remaining,
    training,
    trl,
)
from benchmarks.card.bench import DRY, Bench, device
from benchmarks.card.cells import Cell
from benchmarks.card.checks import named
from benchmarks.card.models import GEMMA
from pipelines.lake.files import write_json, write_jsonl
from pipelines.train.trainer.cpu import four_bits
from pipelines.train.trainer.examples import Tokenized
from tests.fakes import driver as fake_driver
from tests.fakes.driver import FakeCard


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "weights").mkdir()
    return Bench(tmp_path, dry=True, ends=time.monotonic() + 600)


def test_a_card_that_torch_cannot_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard("Tesla T4"))
    assert device(bench)["name"] == DRY
    report = device(replace(bench, dry=False))
    assert report["name"] is None and report["listed"] == "Tesla T4"


def test_the_driver_s_word_on_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard(), FakeCard(uuid="GPU-2", used="1000"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with cells.DeviceMemory() as memory:
        fake_driver.install(tmp_path, monkeypatch, FakeCard(), FakeCard(uuid="GPU-2", used="2000"))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        sampled = Event()
        monkeypatch.setattr(cells, "_used_gb", _noting(cells._used_gb, sampled))
        assert sampled.wait(600)
    assert (memory.before_gb, memory.peak_gb) == pytest.approx((1.048576, 2.097152))
    fake_driver.install(tmp_path, monkeypatch, FakeCard(used="[N/A]"))
    with cells.DeviceMemory() as memory:
        pass
    assert memory.peak_gb is None


def _noting(ask: Callable[[], float | None], sampled: Event) -> Callable[[], float | None]:
    """`ask` with a signal at its second call, by which time the first answer was noted."""
    answers: list[float | None] = []

    def answer_noted() -> float | None:
        answers.append(ask())
        if len(answers) > 1:
            sampled.set()
        return answers[-1]

    return answer_noted


def findings(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {line["finding"]: line["agrees"] for line in lines if "finding" in line}


@pytest.mark.parametrize(("name", "module"), [("attention", attention), ("head", head)])
def test_a_check_runs_dry_and_reports_on_all_it_expects(name: str, module: Any, bench: Bench) -> None:
    verdicts = findings(list(module.check(bench)))
    (check,) = named(name)
    assert set(verdicts) == set(check.expects)
    judged = {name: agrees for name, agrees in verdicts.items() if agrees is not None}
    assert judged == {"attention": {}, "head": {"same loss": True}}[name]


def test_the_head_s_check_sees_a_piece_that_is_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ours.head_loss
    monkeypatch.setattr(ours, "head_loss", lambda hidden, weight, targets: original(hidden[:-9], weight, targets[:-9]))
    calls = iter(range(100))
    plain = head._both_ways

    def only_the_first_is_right(*args: Any) -> Any:
        if next(calls) == 0:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ours, "head_loss", original)
                return plain(*args)
        return plain(*args)

    monkeypatch.setattr(head, "_both_ways", only_the_first_is_right)
    assert findings(list(head.check(bench)))["same loss"] is False


def test_pieces_are_as_large_as_asked() -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(10, 4), torch.randn(30, 4)
    targets = torch.randint(30, (10,))
    sizes: list[int] = []
    plain = ours.chunked.logits_of

    def counted(rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.append(len(rows))
        return plain(rows, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, ours.pieces_of(4):
        patch.setattr(ours.chunked, "logits_of", counted)
        ours.head_loss(hidden.requires_grad_(), weight, targets)
    assert sizes == [4, 4, 2]


def test_one_function_is_an_adapted_layer(bench: Bench) -> None:
    torch.manual_seed(1)
    x, weight, down, up = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 6), (7, 6), (3, 6), (7, 3)))
    for trained in (x, down, up):
        trained.requires_grad_()

    def adapted(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        made: Any = layers.OneFunction.apply(x, weight, down, up, 2.0, 0.0)
        return made

    expected = x @ weight.t() + 2.0 * (x @ down.t()) @ up.t()
    assert torch.allclose(adapted(x, down, up), expected)
    expected_gradients = torch.autograd.grad(expected.square().sum(), (x, down, up))
    gradients = torch.autograd.grad(adapted(x, down, up).square().sum(), (x, down, up))
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-5)


def test_kernels_are_told_apart_by_their_names() -> None:
    events = [
        ("sm90_xmma_gemm_bf16bf16_bf16f32", 3.0, 10),
        ("void flash_fwd_kernel<...>", 1.0, 2),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor>", 0.5, 30),
        ("void at::native::multi_tensor_apply_kernel<AdamW>", 0.25, 1),
        ("Memcpy HtoD (Pageable -> Device)", 0.125, 4),
        ("something new", 0.1, 1),
        ("cudaLaunchKernel", 0.0, 500),
    ]
    spent, kernels = profiling.by_group(events)
    assert kernels == 48
    assert spent == {
        "matrix products": 3.0, "attention": 1.0, "elementwise": 0.5, "optimizer": 0.25, "copies": 0.125, "other": 0.1,
    }  # fmt: skip


def test_a_cell_s_row_is_read_from_its_folder(tmp_path: Path) -> None:
    measured = {
        "gpu_allocated_peak_gb": 9.5,
        "gpu_reserved_peak_gb": 11.0,
        "tokens_per_second": 900.0,
        "load_seconds": 4.0,
    }
    write_json(tmp_path / "child.json", {"status": "ok", "phase": "save", "measured": measured})
    points = [(0, 0.0, None, 9.0), (1, 3.0, 9.0, None), (2, 4.0, 8.0, None), (3, 5.5, 7.0, 7.5)]
    names = ("step", "elapsed_seconds", "train_loss", "eval_loss")
    write_jsonl(tmp_path / "curve.jsonl", [dict(zip(names, point, strict=True)) for point in points])
    row = cells.outcome(tmp_path)
    assert row["status"] == "ok" and row["losses"] == [9.0, 8.0, 7.0] and row["eval_losses"] == [9.0, 7.5]
    assert (row["allocated_gb"], row["reserved_gb"], row["device_gb"]) == (9.5, 11.0, None)
    assert (row["first_step_seconds"], row["step_seconds"]) == (3.0, 1.25)


class AsOnCard(Bench):
    """A card's branches on a CPU, in tiny shapes; `as_on_card` answers PyTorch's questions about
    the card."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def sized(self, on_card: Any, dry: Any) -> Any:
        return dry


@pytest.fixture
def as_on_card(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsOnCard:
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 * 10**9)
    answers = {
        "get_device_capability": (9, 0), "get_device_properties": card, "mem_get_info": (7 * 10**10, 8 * 10**10),
        "synchronize": None, "memory_allocated": 10**9, "max_memory_allocated": 3 * 10**9, "reset_peak_memory_stats": None,
        "empty_cache": None, "set_sync_debug_mode": None,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    # The slow test covers the model of a cell.
    monkeypatch.setattr(layers, "_ours", lambda _bench: {})
    # `four_bits` imports bitsandbytes in half of the time.
    four_bits.prepare()
    plain = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda total, a, b, out_dtype: plain(total, a.to(out_dtype), b.to(out_dtype)))
    return AsOnCard(bench.work, dry=False, ends=bench.ends)


IMPORTS_PEFT = pytest.param("layers", layers, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "module"), [("attention", attention), ("head", head), IMPORTS_PEFT])
def test_a_card_s_own_branches_judge_all_they_expect(
    name: str, module: Any, as_on_card: AsOnCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only for this check: bitsandbytes, which `layers` imports, would look for the rest of CUDA.
    if name == "attention":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    lines = list(module.check(as_on_card))
    (check,) = named(name)
    verdicts = findings(lines)
    assert set(verdicts) == set(check.expects) and None not in verdicts.values()
    if name == "attention":
        assert (
            verdicts["cudnn first"] is False
            and json.loads((as_on_card.work / rates.FILE).read_text())["stated_tflops"] == 989
        )
    if name == "layers":
        assert verdicts["same gradients"] is True
    if name == "head":
        assert {line["peak_gb"] for line in lines if "peak_gb" in line} == {2.0} and "in_one_seconds" in lines[-1]


def test_an_old_card_is_not_judged_by_what_newer_ones_do(as_on_card: AsOnCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert as_on_card.half is torch.float16
    assert findings(list(attention.check(as_on_card))) == {"cudnn first": None, "no math": None, "new shapes": None}


def test_the_head_leaves_out_pieces_whose_logits_would_not_fit(
    as_on_card: AsOnCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (12 * 300 * 40 / head.ROOM, 10**6))
    lines = list(head.check(as_on_card))
    assert [line["rows"] for line in lines if "would not fit" in line.get("detail", "")] == [48, 48]


def test_variable_length_and_four_bits_are_compared(as_on_card: AsOnCard, monkeypatch: pytest.MonkeyPatch) -> None:
    def each_alone(q: Any, k: Any, v: Any, starts: Any, _starts: Any, _longest: int, _: int, **options: Any) -> Any:
        assert options == {"window_size": (-1, 0), "enable_gqa": True}
        sizes = starts.diff().tolist()
        rows = zip(*(one.transpose(0, 1).split(sizes, dim=1) for one in (q, k, v)), strict=True)
        made = [functional.scaled_dot_product_attention(*row, is_causal=True, enable_gqa=True) for row in rows]
        return torch.cat(made, dim=1).transpose(0, 1)

    monkeypatch.setattr(varlen, "varlen_attn", each_alone)
    verdicts = findings([*numerics._variable_length(as_on_card), *numerics._four_bits(as_on_card)])
    assert verdicts == {"variable length": True, "four bits": True}
    monkeypatch.setattr(ours, "packed", lambda weight: torch.zeros(weight.numel() // 2, dtype=torch.uint8))
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **options: each_alone(*args, **options).flip(0))
    verdicts = findings([*numerics._variable_length(as_on_card), *numerics._four_bits(as_on_card)])
    assert verdicts == {"variable length": False, "four bits": False}


def test_optimizers_are_compared(as_on_card: AsOnCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remaining, "_matrices", lambda _bench: 2)
    verdicts = findings(list(remaining._optimizers(as_on_card)))
    # The allocator reports two gigabytes of copies.
    assert verdicts == {
        "fused": False,
        "own optimizer": True,
    }


@pytest.mark.parametrize(("free", "stays"), [([70, 69, 69, 68], True), ([70, 70, 70, 70], False)])
def test_memory_that_a_paged_optimizer_keeps_is_seen(
    free: list[int], stays: bool, as_on_card: AsOnCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "PAGED_ELEMENTS", 4096)
    resident = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10**9))
    monkeypatch.setattr(interruption, "psutil", SimpleNamespace(Process=lambda: resident))
    answers = iter(free)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (next(answers) * 10**9, 8 * 10**10))
    assert findings(list(interruption._paged(as_on_card))) == {"paged stays": stays}


def row(method: str, **values: Any) -> dict[str, Any]:
    plain = {
        "model": GEMMA,
        "method": method,
        "status": "ok",
        "eval_losses": [9.0, 8.0],
        "predicted_over_allocated": 1.02,
    }
    return {**plain, "allocated_gb": {"full": 40.0, "lora-r8": 9.0, "qlora-r8": 6.0}[method], **values}


@pytest.mark.parametrize(
    ("changes", "otherwise"),
    [
        ({}, []),
        ({"status": "out_of_memory", "allocated_gb": None, "predicted_over_allocated": None}, ["all end ok"]),
        ({"eval_losses": [9.0, 9.5]}, ["loss falls"]),
        ({"allocated_gb": 9.5}, ["fewer bytes"]),
        ({"predicted_over_allocated": 0.85}, ["as predicted"]),
    ],
)
def test_what_cells_show_is_judged(changes: dict[str, Any], otherwise: list[str]) -> None:
    rows = [row("lora-r8"), row("full"), row("qlora-r8", **changes)]
    verdicts = findings(list(training.findings(rows)))
    assert [name for name, agrees in verdicts.items() if not agrees] == otherwise
    assert set(verdicts) == set(named("cells")[0].expects)


def test_a_cell_is_the_profile_s_own_but_short(bench: Bench) -> None:
    cell = Cell(replace(bench, dry=False), GEMMA, "full-8bit", steps=12)
    assert (cell.recipe["model"], cell.recipe["epochs"], cell.recipe["examples_per_step"]) == (GEMMA, 1, 16)
    assert cell.recipe["micro_batch_tokens"] == 8192 and cell.recipe["optimizer"].endswith("8bit")


@pytest.mark.parametrize(
    ("name", "stated"),
    [("NVIDIA H100 PCIe", 756), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA L4", 121), ("Tesla T4", 65), (DRY, None)],
)
def test_arithmetic_is_set_beside_what_the_card_can_do(name: str, stated: float | None, bench: Bench) -> None:
    assert rates.stated(name) == stated
    list(rates.measured(bench))
    # A CPU's numbers are not kept.
    assert rates.shares(bench, 100.0) == {"share_of_products": None, "mfu": None}
    write_json(bench.work / rates.FILE, {"products_tflops": 500.0, "stated_tflops": stated})
    assert rates.shares(bench, 100.0) == {"share_of_products": 0.2, "mfu": 100.0 / stated if stated else None}


@pytest.mark.parametrize(("adapters", "work"), [(None, 180 + 480 + 1200), (7, 120 + 210 + 320 + 1200)])
def test_the_work_of_a_cell_is_counted(adapters: int | None, work: int) -> None:
    config = SimpleNamespace(vocab_size=10, hidden_size=4, num_hidden_layers=2)
    example = Tokenized("one", [1] * 5, [-100, -100, -100, 1, 1], [True] * 5, 1)
    assert rate.operations([(3, 2)], config, [example], adapters=adapters) == work


def test_trl_s_settings_keep_the_steps_of_the_profile() -> None:
    plain = trl.settings(16, extras=[], on_card=True)
    with_all = trl.settings(16, extras=trl.EXTRAS, on_card=True)
    assert all(
        one["per_device_train_batch_size"] * one["gradient_accumulation_steps"] == 16 for one in (*plain, *with_all)
    )
    # Everything else is TRL's default.
    assert set(plain[0]) == {"per_device_train_batch_size", "gradient_accumulation_steps"}
    assert [bool(one.get("packing")) for one in plain] == [False, False]
    assert [bool(one.get("packing")) for one in with_all] == [False, True, False]
    assert [bool(one.get("use_liger_kernel")) for one in with_all] == [False, True, True]
    assert set(trl.extras_of(sys.executable)) <= set(trl.EXTRAS)


def test_trl_s_default_and_best_are_set_beside() -> None:
    lines = [{"tokens_per_second": 100.0}, {"detail": "not run"}, {"tokens_per_second": 250.0}]
    assert grid.ratios(lines, 500.0) == {"over_default": 5.0, "over_best": 2.0}
    assert grid.ratios([{"detail": "failed"}, {"tokens_per_second": 250.0}], 500.0) == {
        "over_default": None,
        "over_best": 2.0,
    }
    assert grid.ratios([], 500.0) == {"over_default": None, "over_best": None}
