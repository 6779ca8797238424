"""Which attention kernel PyTorch chooses, and the cost of a batch with a new shape.

cuDNN's attention builds a plan for every new shape. Micro-batches by token budget have a new shape
nearly every time.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import psutil
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend

from benchmarks.card import bench as this
from benchmarks.card import rates
from benchmarks.card.bench import Bench
from benchmarks.card.verdicts import Line, finding
from pipelines.hardware.cuda_devices import AMPERE

# Ratios of a new shape's time to a repeated one's
CHEAP, DEAR = 2.0, 5.0


def check(bench: Bench) -> Iterator[Line]:
    yield {
        "environment": this.device(bench),
        "packages": this.packages(),
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_sdp": _cudnn_allowed(),
        "cores": os.cpu_count(),
        "host_gb": psutil.virtual_memory().total / 1e9,
    }
    yield from rates.measured(bench)
    cases = [_choice(bench, *case) for case in product((64, 128, 256), (0.0, 0.1), (False, True), (False, True))]
    yield {"kernels": cases}
    yield _cudnn_is_first(bench, cases)
    unmasked = [one for one in cases if not one["mask"]]
    math_cases = [one for one in unmasked if one["kernel"] == "MATH"]
    modern = bench.dry or torch.cuda.get_device_capability() >= AMPERE
    yield finding(
        "no math",
        f"{len(math_cases)} of {len(unmasked)} cases fall to math",
        bench.judged(not math_cases) if modern else None,
    )
    yield from _new_shapes(bench)


def _cudnn_allowed() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


@contextmanager
def _cudnn(allowed: bool) -> Iterator[None]:
    before = _cudnn_allowed()
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _inputs(bench: Bench, rows: int, length: int, dim: int, *, shared: bool) -> list[torch.Tensor]:
    """Query, key and value; with `shared` one head of keys and values for all query heads."""
    heads = bench.sized(8, 2)
    return [
        torch.randn(rows, count, length, dim, device=bench.device, dtype=bench.half, requires_grad=True)
        for count in (heads, 1 if shared else heads, 1 if shared else heads)
    ]


def _choice(bench: Bench, dim: int, dropout: float, masked: bool, shared: bool) -> Line:
    length = bench.sized(512, 16)
    q, k, v = _inputs(bench, 4, length, dim, shared=shared)
    mask = torch.ones(4, 1, length, length, dtype=torch.bool, device=bench.device).tril() if masked else None
    with _cudnn(True):
        number = torch._fused_sdp_choice(q, k, v, mask, dropout, not masked, enable_gqa=shared)  # pyright: ignore[reportPrivateImportUsage]
    backend: Any = SDPBackend
    return {
        "head_size": dim, "dropout": dropout, "mask": masked, "shared_keys": shared, "kernel": backend(number).name,
    }  # fmt: skip


def _cudnn_is_first(bench: Bench, choices: list[Line]) -> Line:
    cases = [one for one in choices if one["head_size"] <= 128 and not one["dropout"]]
    by_cudnn = sum(one["kernel"] == "CUDNN_ATTENTION" for one in cases)
    seen = f"{by_cudnn} of {len(cases)} such cases go to cuDNN"
    return finding("cudnn first", seen, by_cudnn == len(cases) if _prefers_cudnn(bench) else None)


def _prefers_cudnn(bench: Bench) -> bool:
    """Whether PyTorch prefers cuDNN's attention on this card."""
    return not bench.dry and torch.cuda.get_device_capability() >= (9, 0)


def _new_shapes(bench: Bench) -> Iterator[Line]:
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for allowed, dim in product((True, False), (64, 128)):
        if bench.left() < bench.sized(8, 0):
            break
        with _cudnn(allowed) if not bench.dry else nullcontext():
            repeated, new = _times(bench, dim, first=bench.sized(300, 8) + (7 if allowed else 0))
        ratios[allowed].append(new / repeated)
        yield {"cudnn": allowed, "head_size": dim, "repeated_shape_seconds": repeated, "new_shape_seconds": new}
    if not ratios[False]:
        return
    seen = f"with cuDNN {min(ratios[True]):.1f} times and more, without at most {max(ratios[False]):.1f} times"
    agrees = min(ratios[True]) >= DEAR and max(ratios[False]) <= CHEAP
    yield finding("new shapes", seen, agrees if _prefers_cudnn(bench) else None)


def _times(bench: Bench, dim: int, *, first: int) -> tuple[float, float]:
    """Mean seconds of a forward and backward pass with a repeated shape, and with a new shape each
    time.

    Means of twenty; lengths begin at `first` and grow by sixteen.
    """
    count, step = bench.sized(20, 3), bench.sized(16, 2)

    def once(length: int) -> float:
        q, k, v = _inputs(bench, 4, length, dim, shared=False)
        bench.wait()
        began = time.perf_counter()
        output: Any = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        output.sum().backward()
        bench.wait()
        return time.perf_counter() - began

    longest = first + count * step
    for _ in range(2):
        once(longest)
    repeated = sum(once(longest) for _ in range(count)) / count
    new = sum(once(first + place * step) for place in range(count)) / count
    return repeated, new
