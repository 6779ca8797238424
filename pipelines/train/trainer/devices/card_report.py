"""The report of `featherweight doctor` on a CUDA card.

As a module this prints one line per property of the card that matters to a cell, and a line
`problem` with the remedy for everything that is wrong. We have not run it on a card.
"""
# ruff: noqa: TID253

import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipelines.hardware import machine
from pipelines.hardware.cuda_devices import AMPERE
from pipelines.runs.process import die_with_parent
from pipelines.train.trainer.devices import card
from pipelines.train.trainer.measure.nvml import memory_access

Line = tuple[str, str]
PROBLEM = "problem"
UNMEASURED = "gpu_memory_access_pct stays empty"


def examine() -> Iterator[Line]:
    """(property, state), each of which requires the previous ones. It ends early if torch cannot
    use the card."""
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield "torch", f"{torch.__version__}, {build}"
    yield "driver", next(iter(machine.cuda_query("driver_version")), "unknown")
    if trouble := card.trouble():
        yield PROBLEM, trouble
        return
    for parts in (_devices, _bitsandbytes, _flash_attention, _nvml):
        try:
            yield from parts()
        # One failing part must not hide the others.
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            yield PROBLEM, f"{parts.__name__.strip('_')}: {type(error).__name__}: {first}"


def _devices() -> Iterator[Line]:
    for place in range(torch.cuda.device_count()):
        if problem := card.lacks_kernels(place):
            yield PROBLEM, problem
            continue
        # This raises if the card cannot compute.
        torch.ones(2, device=torch.device("cuda", place)).sum().item()
        free, total = torch.cuda.mem_get_info(place)
        capability = torch.cuda.get_device_capability(place)
        half = "bf16 yes" if capability >= AMPERE else "bf16 no (fp16 with loss scaling)"
        memory = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        name = f"{torch.cuda.get_device_name(place)}, capability {capability[0]}.{capability[1]}"
        yield f"device {place}", f"{name}, {half}, {memory}"


def _bitsandbytes() -> Iterator[Line]:
    from bitsandbytes import cextension

    loaded: Any = cextension.lib
    if isinstance(loaded, cextension.ErrorHandlerMockBNBNativeLibrary):
        reason = next(iter(loaded.error_msg.splitlines()), "it does not say why")
        failing = "quantized methods and 8-bit optimizers will fail; `python -m bitsandbytes` says more"
        yield (
            PROBLEM,
            f"bitsandbytes {version('bitsandbytes')} has no library for CUDA {torch.version.cuda} ({reason}): {failing}",
        )
        return
    name = Path(loaded._lib._name).name
    yield "bitsandbytes", f"{version('bitsandbytes')}, {name}"
    if "cuda" not in name:
        yield (
            PROBLEM,
            f"bitsandbytes has loaded {name}, which is not for a card: unset BNB_CUDA_VERSION, or reinstall it",
        )


def _flash_attention() -> Iterator[Line]:
    if find_spec("flash_attn") is None:
        yield "flash-attn", "not installed: attention runs by torch's own kernels"
    elif not card.has_flash_attention():
        yield "flash-attn", "installed, not used: it needs capability 8.0 or more"
    else:
        yield "flash-attn", _version("flash-attn")


def _nvml() -> Iterator[Line]:
    if find_spec("pynvml") is None:
        yield PROBLEM, f"nvidia-ml-py is not installed, so {UNMEASURED}: pip install nvidia-ml-py"
        return
    ask = memory_access(str(torch.cuda.get_device_properties(0).uuid))
    answers = "answers" if ask() is not None else f"does not answer for this device, so {UNMEASURED}"
    yield "NVML", f"nvidia-ml-py {_version('nvidia-ml-py')}, {answers}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def main() -> None:
    die_with_parent()
    # The lines report, with a remedy, what torch warns about.
    warnings.filterwarnings("ignore")
    for what, how in examine():
        print(f"{what:<13} {how}", flush=True)


if __name__ == "__main__":
    main()
