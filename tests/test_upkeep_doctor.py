"""The lines of `featherweight doctor` on the machine's cards."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.hardware import cuda_devices
from pipelines.upkeep import doctor
from pipelines.upkeep.doctor import examine
from tests.fakes import driver as fake_driver
from tests.fakes import planted
from tests.fakes.driver import FakeCard
from tests.fakes.planted import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


def gpu_lines(lake: Lake) -> list[str]:
    """The line that begins with GPU, and the indented lines below it."""
    lines = list(examine(lake.data, lake.project.experiments))
    start = next(i for i, line in enumerate(lines) if line.startswith("GPU"))
    below = [line for line in lines[start + 1 :] if line.startswith("  ") and not line.startswith("  tiny")]
    return [lines[start], *below]


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_card_report", lambda: pytest.fail("a process was started that imports torch"))


def test_without_a_card_one_line_says_so_and_nothing_is_started(
    lake: Lake, no_child: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_lines(lake) == ["GPU        none: profile gpu needs a CUDA device"]


@pytest.mark.parametrize("visible", ["", "-1", "3"])
def test_cards_that_are_all_hidden_are_named_with_what_hides_them(
    lake: Lake, no_child: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard("Tesla T4"), FakeCard("NVIDIA L4", "GPU-2"))
    monkeypatch.setenv(cuda_devices.VISIBLE, visible)
    (line,) = gpu_lines(lake)
    assert (
        "none visible of Tesla T4, NVIDIA L4" in line and f"CUDA_VISIBLE_DEVICES={visible} " in line and "unset" in line
    )


def test_a_driver_that_fails_is_quoted(
    lake: Lake, no_child: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard(), failure="Driver/library version mismatch")
    assert gpu_lines(lake) == ["GPU        none: nvidia-smi says: Driver/library version mismatch"]


def test_a_card_is_examined_by_a_process_of_its_own(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The torch of this machine cannot use the card, whatever its build."""
    fake_driver.install(tmp_path, monkeypatch, FakeCard("Tesla T4"))
    first, torch, driver, problem = gpu_lines(lake)
    assert first == "GPU        Tesla T4" and "built" in torch and "535.129.03" in driver
    assert problem.split()[0] == "problem" and "Tesla T4" in problem and "CUDA_VISIBLE_DEVICES=" in problem


def test_a_process_that_cannot_say_anything_is_told(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_driver.install(tmp_path, monkeypatch, FakeCard("Tesla T4"))
    monkeypatch.setattr(doctor, "CARD_REPORT", "pipelines.no_such_module")
    lines: list[Any] = gpu_lines(lake)
    assert "ended with exit code 1" in lines[-1] and "No module named pipelines.no_such_module" in lines[-1]
