"""Our LoRA dropout against torch's, at SmolLM2's shapes: seconds of a forward and backward pass,
and the share dropped."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.clock import best_seconds
from pipelines.train.trainer.cpu.dropout import CheapDropout

SHAPES = ((256, 576), (256, 1536))


def measure() -> Iterator[dict[str, Any]]:
    for shape in SHAPES:
        x = torch.randn(*shape, requires_grad=True)
        ours, theirs = CheapDropout(0.1), torch.nn.Dropout(0.1)

        def pass_through(layer: torch.nn.Module, x: torch.Tensor = x) -> None:
            layer(x).sum().backward()

        seconds = {layer: best_seconds(lambda layer=layer: pass_through(layer), rounds=50) for layer in (ours, theirs)}
        dropped = {layer: (layer(torch.ones(2000, 1000)) == 0).float().mean().item() for layer in (ours, theirs)}
        yield {
            "benchmark": "dropout",
            "shape": shape,
            "seconds": seconds[ours],
            "torch_seconds": seconds[theirs],
            "speedup": seconds[theirs] / seconds[ours],
            "dropped_share": dropped[ours],
            "torch_dropped_share": dropped[theirs],
        }
