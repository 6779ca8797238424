"""Correctness of results on a card: half precision against float32, padding against variable-length
attention, 4 bits packed here against the CPU's code."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional

from benchmarks.card import ours
from benchmarks.card.bench import Bench
from benchmarks.card.cells import Cell
from benchmarks.card.models import GEMMA
from benchmarks.card.verdicts import Line, finding

LOSS, POINTS, ATTENTION = 0.01, 0.98, 0.01
METHODS = ("full", "lora-r8")


def check(bench: Bench) -> Iterator[Line]:
    difference, cosine = 0.0, 1.0
    for method in METHODS:
        line = _precisions(bench, method)
        yield line
        difference, cosine = max(difference, line["loss_differs_by"]), min(cosine, line["least_cosine"])
    yield finding("loss", f"they differ by at most {difference:.3%}", difference <= LOSS)
    yield finding("gradients", f"the least cosine is {cosine:.4f}", cosine >= POINTS)
    if bench.dry:
        yield finding("variable length", "flash attention is for cards", None)
        yield finding("four bits", "there is no card to pack them on", None)
        return
    yield from _variable_length(bench)
    yield from _four_bits(bench)


def _precisions(bench: Bench, method: str) -> Line:
    """One micro-batch through a few layers in half precision, as a cell does it, and in float32."""
    few = bench.sized(6, 2)
    half = "fp16" if bench.half is torch.float16 else "bf16"
    results = {}
    for precision in ("fp32", half):
        changes = {"precision": precision, "gradient_checkpointing": False}
        cell = Cell(bench, GEMMA, method, steps=1, layers=few, changes=changes)
        model = ours.loaded(cell.weights, cell.recipe)
        torch.manual_seed(1)
        # With lora_B at zero, lora_A would have no gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        batch = ours.micro_batches(cell.examples, max_tokens=bench.sized(2048, 320))[0]
        results[precision] = ours.loss_and_gradients(model, cell.recipe, batch, bench.device)
        del model
    (loss, gradients), (half_loss, half_gradients) = results["fp32"], results[half]
    cosines = {
        name: functional.cosine_similarity(gradients[name].flatten(), one.flatten(), dim=0).item()
        for name, one in half_gradients.items()
        if gradients[name].norm() > 0
    }
    worst = min(cosines, key=lambda name: cosines[name])
    return {
        "method": method,
        "precision": half,
        "loss": loss,
        "half_loss": half_loss,
        "loss_differs_by": abs(half_loss / loss - 1),
        "least_cosine": cosines[worst],
        "least_at": worst,
        "parameters": len(cosines),
    }


def _variable_length(bench: Bench) -> Iterator[Line]:
    """Causal attention over rows of several lengths: padded to the longest, and concatenated
    without padding."""
    from torch.nn.attention.varlen import varlen_attn

    lengths, heads, dim = [700, 512, 130, 64, 33], 8, 256
    total, longest = sum(lengths), max(lengths)
    q, k, v = (torch.randn(total, count, dim, device=bench.device, dtype=bench.half) for count in (heads, 1, 1))
    starts = torch.tensor([0, *accumulate(lengths)], device=bench.device, dtype=torch.int32)

    def flat() -> torch.Tensor:
        output: Any = varlen_attn(q, k, v, starts, starts, longest, longest, window_size=(-1, 0), enable_gqa=True)
        return output

    def padded() -> torch.Tensor:
        q_rows, k_rows, v_rows = (
            torch.nn.utils.rnn.pad_sequence(list(one.split(lengths)), batch_first=True).transpose(1, 2)
            for one in (q, k, v)
        )
        return functional.scaled_dot_product_attention(
            q_rows, k_rows, v_rows, is_causal=True, enable_gqa=True
        ).transpose(1, 2)

    expected = torch.cat([row[:length] for row, length in zip(padded(), lengths, strict=True)])
    difference = ((flat().float() - expected.float()).norm() / expected.float().norm()).item()
    seconds = {"flat": bench.seconds_of(flat), "padded": bench.seconds_of(padded)}
    yield {"attention": "variable length", "lengths": lengths, "seconds": seconds, "differs_by": difference}
    yield finding("variable length", f"they differ by {difference:.3%}", difference <= ATTENTION)


def _four_bits(bench: Bench) -> Iterator[Line]:
    from bitsandbytes.functional import quantize_4bit

    size = bench.sized(2048, 128)
    weight = torch.randn(size, size, device=bench.device)
    on_card = quantize_4bit(weight, blocksize=64, quant_type="nf4", quant_storage=torch.uint8)[0].flatten().cpu()
    different = int((on_card != ours.packed(weight)).sum())
    yield {"four_bits": "nf4", "bytes": on_card.numel(), "different": different}
    yield finding("four bits", f"{different} of {on_card.numel()} bytes differ", different == 0)
