"""Checkpoints and models are written piece by piece: the library's bytes, without the library's
copies on the host."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from pipelines.train.trainer import checkpoint, tensor_file
from pipelines.train.trainer.measure.memory import peak_resident_bytes, reset_peaks
from tests.tiny import tiny_model

MB = 2**20


class OnCard(torch.Tensor):
    """A tensor that claims to lie on a card, and is copied when the host reads it."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("cuda", 0)

    def to(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).clone()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def on_card(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(OnCard)


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Pieces of 1,000 bytes, in a buffer that no card needs to pin; yields the sizes of the
    buffers."""
    made: list[int] = []

    def plain(size: int) -> torch.Tensor:
        made.append(size)
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr(tensor_file, "PIECE_BYTES", 1000)
    monkeypatch.setattr(tensor_file, "_pinned", plain)
    yield made


def everything() -> dict[str, torch.Tensor]:
    """Tensors of every dtype of the format and of PyTorch, in shapes that a writer may get
    wrong."""
    torch.manual_seed(1)
    numbers = torch.randn(7, 300)
    made = {f"of.{dtype}": (50 * numbers).to(dtype) for dtype in tensor_file.KINDS}
    made["nothing"], made["one number"] = torch.empty(0, 3), torch.tensor(5.0)
    made['named "도"'] = numbers[:1].clone()
    return made


@pytest.mark.parametrize("place", [on_host, on_card])
def test_a_file_holds_the_bytes_that_the_library_writes(
    tmp_path: Path, small_pieces: list[int], place: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensors = everything()
    safetensors.torch.save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    given = {name: place(tensor) for name, tensor in tensors.items()}
    tensor_file.save_file(given, tmp_path / "ours", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert small_pieces == ([1000] if place is on_card else []), "one buffer, and none for what lies on the host"


def test_what_the_library_refuses_is_written_whole(tmp_path: Path, small_pieces: list[int]) -> None:
    shared = torch.arange(900.0)
    turned = torch.arange(600.0).view(20, 30).t()
    tensor_file.save_file({"a": shared, "b": shared, "c": shared[300:], "turned": turned}, tmp_path / "file")
    tensors = load_file(tmp_path / "file")
    assert tensors["a"].equal(shared) and tensors["b"].equal(shared) and tensors["c"].equal(shared[300:])
    assert tensors["turned"].equal(turned)


def test_a_saved_model_is_the_librarys_and_went_through_the_pieces(tmp_path: Path, small_pieces: list[int]) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "theirs")
    written: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "_pieces", lambda *given: written.append(given) or pieces(*given))
        with tensor_file.used_by_transformers():
            model.save_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "after")
    names = ("model.safetensors", "config.json")
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert len(written) == len(load_file(tmp_path / "ours" / "model.safetensors")) > 10


pieces = tensor_file._pieces


def growth(folder: Path, tensors: dict[str, torch.Tensor]) -> float:
    """The peak growth of this process, in MB, while a checkpoint of `tensors` is written."""
    before = psutil.Process().memory_info().rss
    reset_peaks()
    checkpoint_folder = checkpoint.write(folder, 1, tensors, {})
    grown = (peak_resident_bytes() - before) / MB
    size = (checkpoint_folder / checkpoint.TENSORS).stat().st_size
    assert size > sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return grown


@pytest.mark.parametrize(
    ("each", "count", "most"), [(8, 32, 40), pytest.param(64, 32, 200, marks=pytest.mark.slow)], ids=["256 MB", "2 GB"]
)
@pytest.mark.parametrize("place", [on_host, on_card])
def test_the_host_does_not_hold_the_checkpoint_of_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, each: int, count: int, most: int
) -> None:
    monkeypatch.setattr(tensor_file, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    tensor = torch.ones(each * MB // 4)
    tensors = {f"weights/{number}": place(tensor) for number in range(count)}
    assert growth(tmp_path, tensors) < most
