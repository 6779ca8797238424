"""One optimizer step under PyTorch's profiler: time by kernel, whether the card waits for Python,
and how often Python waits for the card."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.profiler_util import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from benchmarks.card import ours
from benchmarks.card.bench import Bench
from benchmarks.card.cells import Cell
from benchmarks.card.models import GEMMA, GPT2
from benchmarks.card.verdicts import Line, finding
from pipelines.train.trainer.examples import Tokenized

# Substrings of kernel names (on a CPU: operators); the first matching group counts
GROUPS = {
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "matrix products": ("gemm", "gemv", "cutlass", "nvjet", "xmma", "cublas", "::mm", "::addmm", "::bmm", "::linear"),
    "4 bits": ("dequantize", "quantize", "bitsandbytes"),
    "optimizer": ("adam", "multi_tensor_apply", "_foreach", "lerp", "addcdiv", "addcmul"),
    "dropout": ("dropout", "bernoulli", "random"),
    "norms": ("layer_norm", "rms_norm", "reduce_kernel", "::mean"),
    "softmax and loss": ("softmax", "logsumexp"),
    "copies": ("memcpy", "memset", "copy", "::to", "cat"),
    "elementwise": ("elementwise", "vectorized", "::mul", "::add", "::sub"),
}
LEAD, BUSY, LAUNCHED, WAITS = 0.5, 0.8, 0.6, 4


def check(bench: Bench) -> Iterator[Line]:
    steps: dict[str, Line] = {}
    for name in (GEMMA, GPT2):
        steps[name] = _step(bench, name)
        yield {"model": name, "method": "lora-r8", **steps[name]}
    lead = steps[GEMMA]["groups"].get("matrix products", 0.0)
    yield finding("products lead", f"{lead:.0%} of the kernels' time", bench.judged(lead >= LEAD))
    busy = {name: line["busy_share"] for name, line in steps.items()}
    words = ", ".join(f"{name} {share:.0%}" for name, share in busy.items() if share is not None)
    agrees = None not in busy.values() and busy[GPT2] < LAUNCHED and busy[GEMMA] > BUSY
    yield finding("bound by launches", words or "no kernels of a card", bench.judged(agrees))
    waits = {name: line["waits"] / line["micro_batches"] for name, line in steps.items() if line["waits"] is not None}
    words = ", ".join(f"{name} {count:.1f} a micro-batch" for name, count in waits.items())
    yield finding("few waits", words or "not counted on a CPU", bench.judged(all(n <= WAITS for n in waits.values())))


def _step(bench: Bench, name: str) -> Line:
    cell = Cell(bench, name, "lora-r8", steps=1)
    model = ours.loaded(cell.weights, cell.recipe)
    groups = ours.micro_batches(cell.examples, max_tokens=cell.recipe["micro_batch_tokens"])
    with ours.steps(model, cell.recipe, bench.device) as step:
        # The first steps build plans and Adam's states
        for _ in range(2):
            step(groups)
        waits = _waits(bench, step, groups)
        seconds = bench.seconds_of(lambda: step(groups), rounds=2)
        seconds_by_group, kernels = _profiled(bench, step, groups)
    total = sum(seconds_by_group.values())
    tokens = sum(map(len, cell.examples))
    line = {
        "micro_batches": len(groups),
        "padded_share": 1 - tokens / sum(len(group) * len(group[0]) for group in groups),
        "step_seconds": seconds,
        "kernels": kernels,
        "busy_share": None if bench.dry else total / seconds,
        "groups": {group: part / total for group, part in sorted(seconds_by_group.items(), key=lambda one: -one[1])},
        "waits": waits,
        # The trainer's own setting
        "cudnn_sdp": torch.backends.cuda.cudnn_sdp_enabled(),
    }
    del model
    return line


def _waits(bench: Bench, step: Any, groups: list[list[Tokenized]]) -> int | None:
    """How often the step makes Python wait for the card, counted by PyTorch's debug mode; None on a
    CPU."""
    if bench.dry:
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(groups)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def _profiled(bench: Bench, step: Any, groups: list[list[Tokenized]]) -> tuple[dict[str, float], int]:
    """Seconds of a step by kind of kernel, and the number of launched kernels (on a CPU:
    operators)."""
    activities = [ProfilerActivity.CPU] if bench.dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        step(groups)
        bench.wait()
    return by_group([(event.key, _seconds(bench, event), event.count) for event in profiler.key_averages()])


def _seconds(bench: Bench, event: Any) -> float:
    """The own time of an operator or kernel. On a card only kernels count, not the operators that
    launch them."""
    if bench.dry:
        return event.self_cpu_time_total / 1e6
    on_card = event.device_type == DeviceType.CUDA
    return event.self_device_time_total / 1e6 if on_card else 0.0


def by_group(events: list[tuple[str, float, int]]) -> tuple[dict[str, float], int]:
    """Seconds by group of `events` (name, seconds, count), and the number of events that took any
    time."""
    totals: dict[str, float] = defaultdict(float)
    count = 0
    for name, seconds, times in events:
        if not seconds:
            continue
        lower = name.lower()
        totals[next((group for group, parts in GROUPS.items() if any(p in lower for p in parts)), "other")] += seconds
        count += times
    return dict(totals), count
