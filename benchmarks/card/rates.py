"""Reference rates of this card's arithmetic: measured products of large matrices, and its maker's
figure."""

from collections.abc import Iterator

import torch

from benchmarks.card.bench import Bench, device
from benchmarks.card.verdicts import Line
from pipelines.lake.files import read_json, write_json

# In the folder that the checks of a run share
FILE = "rates.json"
# The makers' figures for dense bfloat16 (T4, V100: float16) with float32 sums. The first matching
# name counts
STATED_TFLOPS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70, "A10": 125,
    "T4": 65, "V100": 125,
}  # fmt: skip


def measured(bench: Bench) -> Iterator[Line]:
    """A line with both rates, unless this run has measured them already. A dry run saves nothing:
    no share of a CPU's rate may look like a card's."""
    if (bench.work / FILE).exists():
        return
    size = bench.sized(8192, 64)
    a, b = (torch.randn(size, size, device=bench.device, dtype=bench.half) for _ in range(2))
    tflops = 2 * size**3 / bench.seconds_of(lambda: a @ b, rounds=20) / 1e12
    rates = {"products_tflops": tflops, "stated_tflops": stated(device(bench)["name"])}
    if not bench.dry:
        del a, b
        torch.cuda.empty_cache()
        write_json(bench.work / FILE, rates)
    yield rates


def stated(name: str) -> float | None:
    """The maker's figure for a card, by name, in 10¹² operations a second; None for an unknown
    card."""
    return next((tflops for card, tflops in STATED_TFLOPS.items() if card in name), None)


def shares(bench: Bench, tflops: float) -> Line:
    """`tflops` as a share of both rates."""
    known = read_json(bench.work / FILE) or {}
    products, maker = known.get("products_tflops"), known.get("stated_tflops")
    return {"share_of_products": tflops / products if products else None, "mfu": tflops / maker if maker else None}
