"""The columns on a card's memory, by a card with given numbers."""

import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.runs import restart
from pipelines.train.trainer.devices.ranks import Ranks
from pipelines.train.trainer.loop import Trainer
from pipelines.train.trainer.measure import memory, quantizing
from pipelines.train.trainer.measure.memory import MemoryMeter

GB = 10**9
COLUMNS = ("peak_memory_gb", "gpu_allocated_peak_gb", "gpu_reserved_peak_gb", "gpu_device_peak_gb")


class Card:
    """The second of two cards, with 16 GB, as torch.cuda reports it.

    A question about another card fails.
    """

    def __init__(self) -> None:
        self.allocated = self.reserved = 1 * GB
        self.most_allocated = self.most_reserved = 1 * GB
        self.free = 14 * GB
        # Number of samples by another thread.
        self.sampled = 0

    def grow(self, allocated: int, reserved: int, free: int) -> None:
        self.allocated, self.reserved, self.free = allocated * GB, reserved * GB, free * GB
        self.most_allocated = max(self.most_allocated, self.allocated)
        self.most_reserved = max(self.most_reserved, self.reserved)

    def of(self, name: str) -> Any:
        def answer(device: Any = None) -> int:
            assert device in (1, None) and (device == 1 or threading.current_thread() is threading.main_thread())
            return getattr(self, name)

        return answer

    def mem_get_info(self, device: int) -> tuple[int, int]:
        assert device == 1
        self.sampled += threading.current_thread() is not threading.main_thread()
        return self.free, 16 * GB

    def reset(self, *_: Any) -> None:
        self.most_allocated, self.most_reserved = self.allocated, self.reserved

    def properties(self, device: int) -> Any:
        assert device == 1
        return SimpleNamespace(total_memory=16 * GB, uuid="card-1")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card()
    functions = {
        "is_available": lambda: True, "current_device": lambda: 1, "memory_allocated": made.of("allocated"),
        "max_memory_allocated": made.of("most_allocated"), "memory_reserved": made.of("reserved"),
        "max_memory_reserved": made.of("most_reserved"), "mem_get_info": made.mem_get_info,
        "reset_peak_memory_stats": made.reset, "get_device_properties": made.properties, "synchronize": lambda: None,
    }  # fmt: skip
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(memory, "memory_access", lambda uuid: lambda: 30.0 if uuid == "card-1" else None)
    return made


def test_a_card_has_three_peaks_and_the_host_one_of_its_own(card: Card) -> None:
    meter = MemoryMeter()
    meter.start()
    card.grow(allocated=5, reserved=6, free=9)
    assert meter.now()["gpu_reserved_mb"] == 6000 and meter.now()["gpu_device_mb"] == 7000
    # Another program takes memory of the card, which only the sampling thread sees.
    card.grow(allocated=2, reserved=4, free=3)
    samples, deadline = card.sampled, time.monotonic() + 60
    while card.sampled < samples + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    card.grow(allocated=2, reserved=4, free=11)
    meter.stop()
    summary = meter.summary()
    assert [summary[name] for name in COLUMNS] == [5.0, 5.0, 6.0, 13.0]
    assert summary["gpu_allocated_pct"] == 100 * 5 / 16 and summary["gpu_memory_access_pct"] == 30.0
    host = summary["host_peak_memory_gb"]
    assert host is not None and host == pytest.approx(memory.peak_resident_bytes() / 1e9, rel=0.2)


def test_evaluation_leaves_no_trace_in_a_cards_peaks(card: Card) -> None:
    meter = MemoryMeter()
    meter.start()
    card.grow(allocated=3, reserved=4, free=10)
    with meter.apart():
        card.grow(allocated=9, reserved=9, free=2)
        card.grow(allocated=3, reserved=4, free=10)
    meter.stop()
    assert [meter.summary()[name] for name in COLUMNS] == [3.0, 3.0, 4.0, 6.0]


def test_peaks_go_on_with_a_run(card: Card) -> None:
    first = MemoryMeter()
    first.start()
    card.grow(allocated=5, reserved=6, free=9)
    first.stop()
    state = json.loads(json.dumps(first.state()))
    card.grow(allocated=1, reserved=1, free=14)
    card.reset()
    second = MemoryMeter()
    # An attempt since then wrote no checkpoint.
    second.go_on(state, {"gpu_reserved_peak_gb": 8.0, "peak_memory_gb": 5.0})
    assert [second.summary()[name] for name in COLUMNS] == [5.0, 5.0, 8.0, 7.0]
    host = second.summary()["host_peak_memory_gb"]
    assert host is not None and host < 5.0, "the card's peak is not the host's"
    assert set(memory.PEAKS) <= set(restart.PEAKS), "and each of them is handed on"


def test_loading_has_the_cards_peak_and_the_hosts_beside_it(card: Card) -> None:
    watch = quantizing.Quantizing()
    # Before the first weight is quantized.
    card.grow(allocated=4, reserved=4, free=11)
    card.grow(allocated=1, reserved=4, free=11)

    def quantize() -> None:
        card.grow(allocated=2, reserved=4, free=11)

    watch.timed(quantize)()
    measured = watch.measured(10.0)
    assert (measured["load_peak_memory_gb"], measured["quantize_peak_memory_gb"]) == (4.0, 2.0)
    host = measured["host_peak_memory_gb"]
    assert host is not None and 0.05 < host != 4.0


def test_of_several_ranks_each_peak_is_that_of_the_device_that_needs_most(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"peak_memory_gb": 3.0, "host_peak_memory_gb": 5.0, "gpu_allocated_peak_gb": 3.0, "gpu_reserved_peak_gb": 4.0}
    own |= {"gpu_device_peak_gb": 6.0}
    # The peak of loading.
    measured: dict[str, Any] = {"host_peak_memory_gb": 7.0}
    trainer: Any = Trainer.__new__(Trainer)
    trainer.ranks, trainer._peaks, trainer.optimizer = Ranks(0, 2), [{}, {}], None
    trainer.meter = SimpleNamespace(summary=lambda: dict(own))
    trainer.worker = SimpleNamespace(report={"measured": measured}, measure=lambda **numbers: measured.update(numbers))
    monkeypatch.setattr(Ranks, "all_of", lambda _self, numbers: [numbers, [4.0, 1.0, 4.0, 5.0, 5.5]])
    trainer._measure_memory(together=True)
    peaks = [measured[name] for name in memory.PEAKS]
    assert peaks == [4.0, 7.0, 4.0, 5.0, 6.0] and measured["memory_in_all_gb"] == 7.0
    assert json.loads(measured["memory_per_device_gb"]) == [3.0, 4.0] and measured["pageable_gb"] is None
    # Set afterwards, when the other rank may be gone.
    own["peak_memory_gb"] = 9.0
    monkeypatch.setattr(Ranks, "all_of", lambda _self, _numbers: pytest.fail("nobody answers"))
    trainer._measure_memory()
    assert (measured["peak_memory_gb"], measured["gpu_reserved_peak_gb"]) == (9.0, 5.0)
