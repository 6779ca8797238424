"""NVML's share of time in which a card's memory was read or written; a small path of its own, so that it can be tested with an
object of NVML's interface. It has not been run on a card by us."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def memory_access(uuid: str, nvml: Any = None) -> Callable[[], float | None]:
    """A function that answers with the percentage over NVML's last sample period of the card with PyTorch's `uuid`; always None
    without nvidia-ml-py, and from the moment on that NVML refuses (a MIG slice, a lost driver).

    The card is found by its UUID, since NVML counts all cards and PyTorch those that CUDA_VISIBLE_DEVICES leaves.
    """
    if nvml is None:
        if find_spec("pynvml") is None:
            return lambda: None
        import pynvml as nvml  # pyright: ignore[reportMissingImports]
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return lambda: None
    refused = False

    def ask() -> float | None:
        nonlocal refused
        if refused:
            return None
        try:
            return float(nvml.nvmlDeviceGetUtilizationRates(handle).memory)
        except nvml.NVMLError:
            refused = True
            return None

    return ask
