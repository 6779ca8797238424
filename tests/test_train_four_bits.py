"""4 bits on a CPU: the same bits as bitsandbytes', and no file that stays mapped for unused
weights."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.backends.default import ops  # noqa: F401

from pipelines.train.trainer import loading
from pipelines.train.trainer.cpu import four_bits
from tests.test_train_methods import RECIPE
from tests.tiny import save_tiny

SHAPES = [(576, 576), (300, 333), (130, 128), (7, 9), (3, 64), (5, 100), (1, 1)]


def theirs(weight: torch.Tensor, blocksize: int, kind: str, storage: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernels that bitsandbytes registers for every device, even after this process has
    replaced them on a CPU."""
    everywhere = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    return torch.ops.bitsandbytes.quantize_4bit.default.redispatch(everywhere, weight, blocksize, kind, storage)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_packed_to_the_bits_of_bitsandbytes(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    bounds = torch.tensor(four_bits._bounds(kind)[0])
    weights = [torch.randn(shape).to(dtype) for shape in SHAPES]
    # Every tie between two codes is among the values.
    weights += [
        torch.zeros(4, 64, dtype=dtype),
        torch.cat([bounds, torch.ones(1)]).repeat(8).to(dtype),
    ]
    for weight in weights:
        for blocksize in (64, 4096):
            packed, absmax = four_bits.pack(weight, blocksize, kind, torch.uint8)
            expected, scales = theirs(weight, blocksize, kind, torch.uint8)
            assert torch.equal(packed, expected) and torch.equal(absmax, scales), (weight.shape, blocksize)
    stored = four_bits.pack(weights[0], 64, kind, torch.bfloat16)[0]
    assert torch.equal(stored.view(torch.int16), theirs(weights[0], 64, kind, torch.bfloat16)[0].view(torch.int16))


def test_a_loaded_model_lets_go_of_its_file(tmp_path: Path) -> None:
    """The file holds float32, which the embedding uses, too: a view of the file unless it is
    copied."""
    folder = save_tiny(tmp_path / "tiny")

    def mapped() -> bool:
        gc.collect()
        return str(folder) in Path("/proc/self/maps").read_text(encoding="utf-8")

    plain = loading.load_model(folder, {**RECIPE, "quantization": None})
    assert mapped()
    embedding = plain.get_input_embeddings().weight.detach().clone()
    del plain
    model = loading.load_model(folder, {**RECIPE, "quantization": "nf4", "double_quantization": True})
    assert not mapped()
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def test_ours_is_the_one_that_is_called_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    four_bits.prepare()
    calls = []
    monkeypatch.setattr(four_bits, "_bounds", lambda kind: calls.append(kind) or ([0.0], None))
    torch.ops.bitsandbytes.quantize_4bit(torch.ones(64), 64, "nf4", torch.uint8)
    assert calls == ["nf4"]
    theirs(torch.ones(64), 64, "nf4", torch.uint8)
    assert calls == ["nf4"]


def test_the_compiler_is_not_imported_for_it() -> None:
    look = "import sys, torch\nfrom pipelines.train.trainer.cpu import four_bits\nbefore = torch.compile\nfour_bits.prepare()\n"
    look += "assert torch.compile is before\nprint('torch._dynamo' in sys.modules, 'bitsandbytes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def packed(weight: torch.Tensor, kind: str = "nf4", blocksize: int = 64, *, nested: bool = False) -> Any:
    """`weight` in the form of a `Params4bit`."""
    from bitsandbytes.functional import quantize_4bit

    four_bits.prepare()
    made: Any
    made, state = quantize_4bit(weight, None, None, blocksize, nested, kind)
    made.quant_state = state
    return made


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_weights_are_unpacked_to_the_values_of_bitsandbytes(kind: str, nested: bool) -> None:
    """Also for odd shapes and for large blocks, for which its library has no exact function."""
    from bitsandbytes.functional import dequantize_4bit

    torch.manual_seed(1)
    for shape in SHAPES:
        for blocksize in (64, 4096):
            one = packed(torch.randn(shape), kind, blocksize, nested=nested)
            assert torch.equal(four_bits.unpack(one), dequantize_4bit(one, one.quant_state)), (shape, blocksize)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_unpacked_may_be_of_half_precision_and_lie_anywhere(kind: str, dtype: torch.dtype) -> None:
    from bitsandbytes.functional import dequantize_4bit

    one = packed(torch.randn(130, 128).to(dtype), kind)
    expected = dequantize_4bit(one, one.quant_state)
    for out in (torch.empty(130, 128, dtype=dtype), torch.empty(128, 130, dtype=dtype).t()):
        assert torch.equal(dequantize_4bit(one, one.quant_state, out=out), expected)


def test_weights_are_unpacked_into_one_memory_as_large_as_the_largest() -> None:
    scratch = four_bits.Scratch()
    largest = scratch.shaped((128, 256))
    assert scratch.shaped((32, 64)).data_ptr() == scratch.shaped((64, 64)).data_ptr() == largest.data_ptr()
    weights = [packed(torch.randn(shape)) for shape in ((64, 64), (128, 256), (32, 64))]
    four_bits.unpack(weights[1])
    assert len({four_bits.unpack(one).data_ptr() for one in weights}) == 1
    small = four_bits.unpack(weights[2])
    assert small.shape == (32, 64) and small.untyped_storage().nbytes() >= 4 * 128 * 256


def test_a_library_without_the_functions_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    one = packed(torch.randn(64, 64))
    expected = four_bits.unpack(one).clone()
    monkeypatch.setattr(four_bits, "_library", dict)
    assert torch.equal(four_bits.unpack(one), expected)
