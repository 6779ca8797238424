"""NVML's share of time in which a card's memory was read or written.

It is a small module of its own, so that tests can pass an object with NVML's interface. We have not
run it on a card.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def memory_access(uuid: str, nvml: Any = None) -> Callable[[], float | None]:
    """A function that returns the percentage over NVML's last sample period, for the card with
    PyTorch's `uuid`.

    It returns None without nvidia-ml-py, and from the first refusal of NVML on (a MIG slice, a lost
    driver). The UUID identifies the card, since NVML numbers all cards, but PyTorch only those that
    CUDA_VISIBLE_DEVICES leaves.
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
