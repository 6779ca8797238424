"""Optimizer steps as a share of this machine's matrix product rate, and the rest of a step's time.

Work is counted as usual: 4 operations per token and frozen weight (forward and the input's
gradient), 6 per trained weight, the head on the learned tokens only, and attention's two products
under a causal mask. Padding, norms and activations count as nothing.

The reference rates are the best of twenty products at the model's own shapes, measured before and
after: by PyTorch's `linear`, and by the choice of `pipelines.train.trainer.cpu.products`. Each
micro-batch counts with its best round.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers.pytorch_utils import Conv1D

from benchmarks import project
from benchmarks.clock import best_seconds
from pipelines.settings.methods import traits_of
from pipelines.train.trainer import batches, loading
from pipelines.train.trainer.cpu.products import product
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.losses import head_on_positions, step_loss
from pipelines.train.trainer.optimizers import make_optimizer
from pipelines.train.trainer.prompts import PromptFormat

EXAMPLES, ROUNDS = 16, 6
# Method and dropout
CELLS = (("full", None), ("lora-r8", 0.0), ("lora-r8", 0.1), ("qlora-r8", 0.1))
GROUPS = {
    "products": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "dropout": ("aten::random_", "aten::ge"),
    "unpacking 4 bits": ("bitsandbytes::",),
    "optimizer": ("Optimizer.step", "aten::_foreach", "aten::_fused_adamw", "aten::addcdiv_", "aten::lerp_", "aten::addcmul_"),
    "elementwise and copies": ("aten::",),
}  # fmt: skip
Line = dict[str, Any]


def measure() -> Iterator[Line]:
    loading.quiet()
    for method, dropout in CELLS:
        with TemporaryDirectory(prefix="featherweight-rate-") as folder:
            yield _measured(Path(folder), method, dropout)


def _measured(folder: Path, method: str, dropout: float | None) -> Line:
    stage = project.make(folder, train=EXAMPLES, held_out=3, examples_per_step=EXAMPLES)
    recipe = stage.recipe_of(project.PACKAGED, method)
    recipe |= {} if dropout is None else {"dropout": dropout}
    weights = stage.data.models / project.PACKAGED
    torch.manual_seed(1)
    model = loading.load_model(weights, recipe)
    shapes = shapes_of(model)
    model = loading.add_adapter(model, recipe) if traits_of(recipe).has_adapter else model
    form = PromptFormat.of(weights, recipe)
    examples = [example for record in stage.resolve().selected.train for example in form.tokenize(record)]
    groups = batches.micro_batches(examples, max_tokens=recipe["micro_batch_tokens"])
    rows = round(median(len(group) * len(group[0]) for group in groups))
    before = _rates(shapes, rows)
    seconds, loss = _step_seconds(model, recipe, groups)
    rates = {name: max(rate, before[name]) for name, rate in _rates(shapes, rows).items()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapters = None if traits_of(recipe).trains_all else trained
    work = operations(shapes, model.config, examples, adapters=adapters)
    tokens = sum(len(example) for example in examples)
    return {
        "benchmark": "rate",
        "method": method,
        "dropout": dropout,
        "tokens_per_second": tokens / seconds,
        "gflops": work / seconds / 1e9,
        "linear_gflops": rates["linear"] / 1e9,
        "product_gflops": rates["product"] / 1e9,
        "share_of_linear": work / seconds / rates["linear"],
        "share_of_product": work / seconds / rates["product"],
        "median_rows": rows,
        "first_loss": loss,
        "profile": _profile(model, recipe, groups),
    }


def shapes_of(model: nn.Module) -> list[tuple[int, int]]:
    """(out, in) of the layers' linear modules, before adapters, without the head and embeddings."""
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    return [_shape(m) for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]


def _shape(module: Any) -> tuple[int, int]:
    """(out, in)."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    return module.out_features, module.in_features


def operations(shapes: list[tuple[int, int]], config: Any, examples: list[Tokenized], *, adapters: int | None) -> float:
    """Floating-point operations to learn `examples` once with linear layers of `shapes`.

    `adapters`: the number of adapter parameters beside frozen weights; None where every weight
    trains.
    """
    tokens, learned = sum(len(e) for e in examples), sum(e.learned for e in examples)
    each = 6 if adapters is None else 4
    layers = each * tokens * sum(outs * ins for outs, ins in shapes)
    adapter_work = 6 * tokens * (adapters or 0)
    head = each * learned * config.vocab_size * config.hidden_size
    attention = 6 * sum(len(e) ** 2 for e in examples) * config.hidden_size * config.num_hidden_layers
    return layers + adapter_work + head + attention


def _rates(shapes: list[tuple[int, int]], rows: int) -> dict[str, float]:
    """Operations a second of the layers' products, forward and for the input's gradient, weighted
    by their frequency."""
    ways: dict[str, Callable[..., torch.Tensor]] = {"linear": functional.linear, "product": product}
    seconds: dict[str, float] = defaultdict(float)
    work = 0.0
    for outs, ins in set(shapes):
        count = shapes.count((outs, ins))
        x, weight, slope = torch.randn(rows, ins), torch.randn(outs, ins), torch.randn(rows, outs)
        work += 4 * rows * outs * ins * count
        for name, way in ways.items():
            seconds[name] += count * best_seconds(lambda way=way, x=x, w=weight: way(x, w), rounds=20)
            seconds[name] += count * best_seconds(lambda way=way, g=slope, w=weight: way(g, w.t()), rounds=20)
    return {name: work / spent for name, spent in seconds.items()}


def _step_seconds(model: Any, recipe: dict[str, Any], groups: list[list[Tokenized]]) -> tuple[float, float]:
    """Seconds of a step from the best round of every part, and the first step's loss."""
    optimizer = make_optimizer(model, recipe)
    parameters = [p for p in model.parameters() if p.requires_grad]
    learned = sum(e.learned for group in groups for e in group)
    model.train()
    best: dict[int, float] = defaultdict(lambda: float("inf"))
    first = 0.0
    with head_on_positions(model) as positions:
        for turn in range(ROUNDS):
            for place, group in enumerate(groups):
                began = time.perf_counter()
                loss = step_loss(model, group, positions, torch.device("cpu"), learned=learned)
                loss.backward()
                best[place] = min(best[place], time.perf_counter() - began)
                first += loss.item() if turn == 0 else 0
            began = time.perf_counter()
            torch.nn.utils.clip_grad_norm_(parameters, recipe["gradient_clip"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            best[-1] = min(best[-1], time.perf_counter() - began)
    return sum(best.values()), first


def _profile(model: Any, recipe: dict[str, Any], groups: list[list[Tokenized]]) -> dict[str, float]:
    """Shares of a step's time by kind of work. The rest is time that PyTorch and Python spend
    around the operators."""
    optimizer = make_optimizer(model, recipe)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, head_on_positions(model) as positions:
        for micro_batch in groups:
            step_loss(model, micro_batch, positions, torch.device("cpu"), learned=1000).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        kind = next((g for g, names in GROUPS.items() if event.key.startswith(names)), "around the operators")
        totals[kind] += event.self_cpu_time_total / 1e6
    total = sum(totals.values())
    return {name: round(seconds / total, 3) for name, seconds in sorted(totals.items(), key=lambda one: -one[1])}
