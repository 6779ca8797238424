"""Measurements of a cell beside its steps: quantizing apart from loading, and NVML's memory
access."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.train.trainer import loading
from pipelines.train.trainer.measure import quantizing
from pipelines.train.trainer.measure.nvml import memory_access
from tests.test_train_methods import RECIPE
from tests.tiny import save_tiny


@pytest.mark.parametrize(("kind", "weights"), [("nf4", 14), ("int8", 14), (None, 0)])
def test_quantizing_is_timed_apart_from_loading(tmp_path: Path, kind: str | None, weights: int) -> None:
    folder = save_tiny(tmp_path / "tiny")
    with quantizing.watched(quantizes=kind is not None) as watch:
        counted: list[float] = []
        loading.load_model(folder, {**RECIPE, "quantization": kind, "double_quantization": True})
        counted.append(watch.seconds or 0.0)
    measured = watch.measured(100.0)
    assert measured["load_peak_memory_gb"] is not None and measured["load_peak_memory_gb"] > 0.05
    if weights == 0:
        assert (measured["quantize_seconds"], measured["quantize_peak_memory_gb"], measured["load_seconds"]) == (
            None,
            None,
            100.0,
        )
        return
    assert measured["quantize_seconds"] is not None and 0 < measured["quantize_seconds"] < 100
    assert measured["load_seconds"] == 100.0 - measured["quantize_seconds"]
    assert measured["quantize_peak_memory_gb"] is not None and measured["quantize_peak_memory_gb"] > 0.05


def test_the_libraries_own_steps_are_put_back() -> None:
    from transformers.integrations import bitsandbytes

    before = [getattr(bitsandbytes, name).convert for name in quantizing.STEPS]
    with quantizing.watched(quantizes=True):
        assert [getattr(bitsandbytes, name).convert for name in quantizing.STEPS] != before
    assert [getattr(bitsandbytes, name).convert for name in quantizing.STEPS] == before


class NvmlError(Exception):
    pass


class Nvml:
    """NVML's interface as in nvidia-ml-py, for one card with fixed answers."""

    NVMLError = NvmlError

    def __init__(self, answers: list[Any], *, uuid: str = "GPU-one") -> None:
        self._answers = answers
        self._uuid = uuid

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self._uuid:
            raise NvmlError("not found")
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        assert handle == "handle"
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(gpu=99, memory=answer)


def test_memory_access_is_the_memory_share_of_the_card_with_that_uuid() -> None:
    ask = memory_access("one", Nvml([12, 30]))
    assert (ask(), ask()) == (12.0, 30.0)


def test_a_card_that_nvml_does_not_know_or_refuses_is_not_measured() -> None:
    assert memory_access("other", Nvml([12]))() is None
    ask = memory_access("one", Nvml([12, NvmlError("not supported"), 40]))
    assert (ask(), ask(), ask()) == (12.0, None, None)
