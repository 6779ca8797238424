"""The work around the matrix products of a decoder layer: the adapter, the norm, the gated unit.

PEFT and transformers compute them in many small kernels, several of them in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm

from benchmarks.card import models, ours
from benchmarks.card.bench import Bench
from benchmarks.card.cells import Cell
from benchmarks.card.models import GEMMA
from benchmarks.card.verdicts import Line, finding

RANK, DROPOUT = 8, 0.1
ALIKE, FASTER, NORM = 0.99, 0.7, 0.5


def check(bench: Bench) -> Iterator[Line]:
    config = models.config_of(bench, GEMMA)
    rows = bench.sized(8192, 32)
    wide, heads, keys = config.hidden_size, config.num_attention_heads * config.head_dim, config.head_dim
    # (out, in) by layer
    shapes = {
        "q_proj": (heads, wide), "k_proj": (keys, wide), "v_proj": (keys, wide), "o_proj": (wide, heads),
        "gate_proj": (config.intermediate_size, wide), "up_proj": (config.intermediate_size, wide),
        "down_proj": (wide, config.intermediate_size),
    }  # fmt: skip
    sums, cosine = {"autocast": 0.0, "half": 0.0, "one function": 0.0}, 1.0
    for name, shape in shapes.items():
        seconds, alike = _adapter(bench, rows, *shape)
        cosine = min(cosine, alike)
        sums = {way: spent + seconds[way] for way, spent in sums.items()}
        yield {"layer": name, "rows": rows, "out_in": shape, "seconds": seconds, "cosine": alike}
    yield finding("same gradients", f"cosine at least {cosine:.4f}", cosine >= ALIKE)
    ratio = sums["one function"] / sums["autocast"]
    yield finding("one function", f"{ratio:.2f} of the time of PEFT under autocast", bench.judged(ratio <= FASTER))
    yield from _norm(bench, rows, config)
    yield _gated(bench, rows, config)
    yield _ours(bench)


def _adapter(bench: Bench, rows: int, outs: int, ins: int) -> tuple[dict[str, float], float]:
    """Seconds of a forward and backward pass of one adapted layer for each implementation.

    Also the least cosine between the gradients of one function and those of PEFT's layer in the
    same precision, without dropout.
    """
    from peft import LoraConfig, inject_adapter_in_model

    holder = nn.Sequential(nn.Linear(ins, outs, bias=False, device=bench.device, dtype=bench.half))
    options: Any = {"r": RANK, "lora_alpha": 4 * RANK, "lora_dropout": DROPOUT, "target_modules": ["0"]}
    layer: Any = inject_adapter_in_model(LoraConfig(**options), holder)[0]  # pyright: ignore[reportIndexIssue]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(up, std=0.02)
    down.data, up.data = down.data.float(), up.data.float()
    x = torch.randn(rows, ins, device=bench.device, dtype=bench.half, requires_grad=True)

    def passed(forward: Callable[[], torch.Tensor], *, autocast: bool) -> list[torch.Tensor]:
        x.grad = down.grad = up.grad = None
        with torch.autocast(bench.device.type, bench.half) if autocast else nullcontext():
            output = forward()
        output.backward(torch.ones_like(output))
        return [of.float() for one in (x, down, up) if (of := one.grad) is not None]

    def one(drop: float) -> torch.Tensor:
        output: Any = OneFunction.apply(x, layer.base_layer.weight, down, up, layer.scaling["default"], drop)
        return output

    seconds = {
        "autocast": bench.seconds_of(lambda: passed(lambda: layer(x), autocast=True)),
        "half": bench.seconds_of(lambda: passed(lambda: layer(x), autocast=False)),
        "one function": bench.seconds_of(lambda: passed(lambda: one(DROPOUT), autocast=False)),
    }
    # Without dropout. Each call makes new gradients, so the two lists share no tensors
    layer.eval()
    pairs = zip(passed(lambda: layer(x), autocast=True), passed(lambda: one(0.0), autocast=False), strict=True)
    alike = min(functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in pairs)
    return seconds, alike


class OneFunction(torch.autograd.Function):
    """y = x Wᵀ + s drop(x) Aᵀ Bᵀ in the type of x throughout: one mask, sums in place. A candidate
    for the trainer."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float, drop: float) -> torch.Tensor:  # noqa: E501  # fmt: skip
        dropped, mask = torch.native_dropout(x, drop, True) if drop else (x, None)
        down, up = down.to(x.dtype), up.to(x.dtype)
        low = dropped @ down.t()
        ctx.save_for_backward(x, mask, low, weight, down, up)
        ctx.scale, ctx.drop = scale, drop
        return functional.linear(x, weight).addmm_(low, up.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mask, low, weight, down, up = ctx.saved_tensors
        gradient, keep_scale = gradients[0], 1 / (1 - ctx.drop)
        low_gradient = (gradient @ up).mul_(ctx.scale)
        dropped = x if mask is None else x * mask * keep_scale
        x_gradient = low_gradient @ down
        x_gradient = x_gradient if mask is None else x_gradient.mul_(mask).mul_(keep_scale)
        x_gradient.addmm_(gradient, weight)
        up_gradient = (gradient.t() @ low).float().mul_(ctx.scale)
        return x_gradient, None, (low_gradient.t() @ dropped).float(), up_gradient, None, None


def _norm(bench: Bench, rows: int, config: Any) -> Iterator[Line]:
    width = config.hidden_size
    plain = GemmaRMSNorm(width, eps=config.rms_norm_eps).to(bench.device, bench.half)
    x = torch.randn(rows, width, device=bench.device, dtype=bench.half, requires_grad=True)

    def fused() -> torch.Tensor:
        return functional.rms_norm(x, (width,), 1 + plain.weight, config.rms_norm_eps)

    seconds = {
        "plain": bench.seconds_of(lambda: plain(x).sum().backward()),
        "fused": bench.seconds_of(lambda: fused().sum().backward()),
    }
    difference = (plain(x) - fused()).abs().max().item()
    yield {"norm": "rms", "rows": rows, "width": width, "seconds": seconds, "largest_difference": difference}
    ratio = seconds["fused"] / seconds["plain"]
    yield finding("norm", f"{ratio:.2f} of the plain one's time", bench.judged(ratio <= NORM))


def _gated(bench: Bench, rows: int, config: Any) -> Line:
    """The gated unit by transformers, and with Liger's kernel between its three products where
    Liger is installed."""
    unit = GemmaMLP(config).to(bench.device, bench.half).requires_grad_(False)
    x = torch.randn(rows, config.hidden_size, device=bench.device, dtype=bench.half, requires_grad=True)
    seconds = {"transformers": bench.seconds_of(lambda: unit(x).sum().backward())}
    if bench.dry or find_spec("liger_kernel") is None:
        return {
            "unit": "gated",
            "rows": rows,
            "seconds": seconds,
            "detail": "liger-kernel: not run (not installed, or no card)",
        }
    from liger_kernel.ops.geglu import LigerGELUMulFunction  # pyright: ignore[reportMissingImports]

    def by_liger() -> None:
        unit.down_proj(LigerGELUMulFunction.apply(unit.gate_proj(x), unit.up_proj(x))).sum().backward()

    return {"unit": "gated", "rows": rows, "seconds": seconds | {"liger": bench.seconds_of(by_liger)}}


def _ours(bench: Bench) -> Line:
    """A decoder layer as the trainer computes it, including adapters: a step over one micro-batch
    of a model with one layer."""
    cell = Cell(bench, GEMMA, "lora-r8", steps=1, layers=1)
    model = ours.loaded(cell.weights, cell.recipe)
    batch = ours.micro_batches(cell.examples, max_tokens=cell.recipe["micro_batch_tokens"])[0]
    with ours.steps(model, cell.recipe, bench.device) as step:
        seconds = bench.seconds_of(lambda: step([batch]), rounds=3)
    return {"trainer": "a step of one layer with its head", "rows": len(batch) * len(batch[0]), "seconds": seconds}
