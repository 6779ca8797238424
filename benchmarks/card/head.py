"""The output head with its loss: the best size of its pieces on a card.

Each piece reads the whole head once or twice, so many small pieces cost as much as the model
itself.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional

from benchmarks.card import ours
from benchmarks.card.bench import Bench
from benchmarks.card.verdicts import Line, finding

SMALL, LARGE = 65, 2048
SAME, HALF, OWN = 0.02, 0.5, 1.25
# Share of free memory for logits and their gradient: three times four bytes each
ROOM = 0.6


def check(bench: Bench) -> Iterator[Line]:
    rows, width, words = bench.sized((4096, 2048, 256_000), (48, 16, 300))
    small, middle, large = bench.sized((SMALL, 512, LARGE), (5, 16, 32))
    hidden = torch.randn(rows, width, device=bench.device, dtype=bench.half)
    targets = torch.randint(words, (rows,), device=bench.device)
    seconds: dict[tuple[str, int | None], float] = {}
    difference = 0.0
    for trained in ("frozen", "full"):
        weight = 0.02 * torch.randn(words, width, device=bench.device)
        weight = weight.requires_grad_() if trained == "full" else weight.to(bench.half)
        expected: list[torch.Tensor] | None = None
        for size in (small, middle, large, rows, None):
            if not _fits(bench, size or 0, words):
                yield {"head": trained, "rows": size, "detail": "not run: its logits would not fit"}
                continue
            work = partial(_both_ways, bench, hidden, weight, targets, size)
            results = [one.float() for one in work()]
            expected = expected or results
            difference = max(difference, *(_distance(a, b) for a, b in zip(results, expected, strict=True)))
            seconds[trained, size] = bench.seconds_of(work, rounds=3)
            yield {
                "head": trained,
                "rows": size or "the trainer's choice",
                "seconds": seconds[trained, size],
                "peak_gb": bench.peak_gb_of(work),
            }
        yield from _others(bench, trained, hidden, weight, targets)
        del weight, expected
    yield finding("same loss", f"they differ by at most {difference:.2%}", difference <= SAME)
    yield from _findings(bench, seconds, small, large)
    yield _accumulated(bench, *bench.sized((LARGE, width, words), (32, width, words)))


def _fits(bench: Bench, rows: int, words: int) -> bool:
    return bench.dry or 12 * rows * words < ROOM * torch.cuda.mem_get_info()[0]


def _both_ways(
    bench: Bench, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, size: int | None
) -> list[torch.Tensor]:
    """The loss, its gradient with respect to the hidden states and, if it trains, to the head."""
    inputs = hidden.detach().requires_grad_()
    weight.grad = None
    with ours.pieces_of(size), torch.autocast(bench.device.type, bench.half):
        loss = ours.head_loss(inputs, weight, targets)
    loss.backward()
    assert inputs.grad is not None
    return [loss.detach(), inputs.grad, *([] if weight.grad is None else [weight.grad])]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The norm of the difference over the norm of `other`."""
    return ((one - other).norm() / other.norm()).item()


def _findings(bench: Bench, seconds: dict[tuple[str, int | None], float], small: int, large: int) -> Iterator[Line]:
    both = [name for name in ("frozen", "full") if (name, small) in seconds and (name, large) in seconds]
    if both:
        ratios = {name: seconds[name, large] / seconds[name, small] for name in both}
        words = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        agrees = all(ratio <= HALF for ratio in ratios.values())
        yield finding("large pieces", f"pieces of {large} rows over those of {small}: {words}", bench.judged(agrees))
    own = {
        name: seconds[name, None] / min(spent for (of, _), spent in seconds.items() if of == name)
        for name in ("frozen", "full")
        if (name, None) in seconds
    }
    words = ", ".join(f"{name} {ratio:.2f}" for name, ratio in own.items())
    yield finding("own choice", f"over the best: {words}", bench.judged(all(ratio <= OWN for ratio in own.values())))


def _others(
    bench: Bench, trained: str, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> Iterator[Line]:
    """Liger's fused head, where it is installed."""
    if bench.dry or find_spec("liger_kernel") is None:
        yield {"head": trained, "by": "liger", "detail": "not run: liger-kernel is for cards, and an extra of its own"}
        return
    from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
        liger_fused_linear_cross_entropy,
    )

    def work() -> None:
        inputs = hidden.detach().requires_grad_()
        weight.grad = None
        with torch.autocast(bench.device.type, bench.half):
            loss: Any = liger_fused_linear_cross_entropy(inputs, weight.to(bench.half), targets)
        (loss[0] if isinstance(loss, tuple) else loss).backward()

    yield {
        "head": trained,
        "by": "liger",
        "seconds": bench.seconds_of(work, rounds=3),
        "peak_gb": bench.peak_gb_of(work),
    }


def _accumulated(bench: Bench, rows: int, width: int, words: int) -> Line:
    """Time to add one piece's gradient of the head to a float32 sum: with one product that writes
    float32, and with a half-precision product and an addition."""
    slope = torch.randn(rows, words, device=bench.device, dtype=bench.half)
    hidden = torch.randn(rows, width, device=bench.device, dtype=bench.half)
    total = torch.zeros(words, width, device=bench.device)
    ways: dict[str, Callable[[], object]] = {
        "product_then_sum_seconds": lambda: total.add_(slope.t() @ hidden),
        "plain_product_seconds": lambda: functional.linear(slope.t(), hidden.t()),
    }
    # PyTorch has `out_dtype` only for CUDA
    if not bench.dry:
        ways["in_one_seconds"] = lambda: torch.addmm(total, slope.t(), hidden, out_dtype=torch.float32)
    return {"head": "sum of gradients", **{name: bench.seconds_of(way, rounds=3) for name, way in ways.items()}}
