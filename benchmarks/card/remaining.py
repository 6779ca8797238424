"""Generation, the optimizer's step, and float16 for cards without bfloat16."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from benchmarks.card import ours
from benchmarks.card.bench import Bench
from benchmarks.card.cells import Cell, run
from benchmarks.card.models import GEMMA, GPT2
from benchmarks.card.verdicts import Line, finding

ALIKE, FASTER, NO_COPY, EXACT = 0.99, 0.75, 0.01, 0.01
# Initial scale of a loss scaler for float16
SCALE = 65536.0


def check(bench: Bench) -> Iterator[Line]:
    yield from _generation(bench)
    yield from _optimizers(bench)
    yield _float16(bench)
    cell = Cell(bench, GPT2, "lora-r8", steps=bench.sized(6, 2), changes={"precision": "fp16", "fp16": True})
    result = run(cell, bench.work / "float16", limit=bench.left() - 2)
    yield {"model": cell.model, "method": cell.method, "precision": "fp16", **result}
    yield finding(
        "float16 cell", f"{result['status']}: losses {result.get('losses')}", bench.judged(result["status"] == "ok")
    )


def _generation(bench: Bench) -> Iterator[Line]:
    cell = Cell(bench, GEMMA, "lora-r8", steps=1)
    model = ours.loaded(cell.weights, cell.recipe).eval()
    rows, prompt_length, new_tokens = bench.sized((32, 64, 256), (2, 8, 6))
    ids = torch.randint(4, 256, (rows, prompt_length), device=bench.device)
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "do_sample": False, "use_cache": True}
    model.config.use_cache = True
    with torch.no_grad():
        seconds = bench.seconds_of(
            lambda: model.generate(ids, **options, min_new_tokens=new_tokens, max_new_tokens=new_tokens), rounds=1
        )
        yield {"generated": f"{rows} × {new_tokens} tokens", "tokens_per_second": rows * new_tokens / seconds}
        few = model.generate(
            ids, **options, min_new_tokens=4, max_new_tokens=4, return_dict_in_generate=True, output_logits=True
        )
        one_pass = model(input_ids=few.sequences).logits[:, prompt_length - 1 : -1].float()
    decoded = torch.stack(few.logits, dim=1).float()
    alike = functional.cosine_similarity(decoded, one_pass, dim=-1).min().item()
    yield finding("decoding", f"cosine at least {alike:.4f}", alike >= ALIKE)


def _optimizers(bench: Bench) -> Iterator[Line]:
    """AdamW over float32 matrices of gemma-2b-it's size: fused, PyTorch's default on a card, and
    the trainer's own."""
    shape, count = bench.sized((16384, 2048), (16, 8)), bench.sized(_matrices(bench), 2)
    holder = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(shape, device=bench.device)) for _ in range(count)])
    for parameter in holder:
        parameter.grad = torch.ones_like(parameter)
    recipe = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.0}
    makers = {
        "fused": lambda: torch.optim.AdamW(holder.parameters(), lr=1e-4, fused=True),
        "foreach": lambda: torch.optim.AdamW(holder.parameters(), lr=1e-4, foreach=True),
        "trainer": lambda: ours.make_optimizer(holder, recipe),
    }
    size = sum(parameter.numel() * 4 for parameter in holder) / 1e9
    seconds, copies, is_fused = {}, {}, {}
    for name, make in makers.items():
        optimizer = make()
        seconds[name] = bench.seconds_of(optimizer.step, rounds=3)
        copies[name] = bench.peak_gb_of(optimizer.step)
        is_fused[name] = bool(optimizer.param_groups[0].get("fused"))
        del optimizer
    yield {"optimizer": "adamw", "weights_gb": size, "seconds": seconds, "temporary_gb": copies}
    ratio, copied = seconds["fused"] / seconds["foreach"], copies["fused"]
    agrees = ratio <= FASTER and copied is not None and copied <= NO_COPY * size
    words = "not measured" if copied is None else f"{copied:.2f} GB of copies for {size:.1f} GB of weights"
    yield finding("fused", f"{ratio:.2f} of the default's time, {words}", bench.judged(agrees))
    yield finding("own optimizer", f"fused: {is_fused['trainer']}", bench.judged(is_fused["trainer"]))


def _matrices(bench: Bench) -> int:
    """The number of matrices that fit, with gradients and both states, into half of the free
    memory."""
    if bench.dry:
        return 2
    return max(2, min(18, int(torch.cuda.mem_get_info()[0] / 2 / (16 * 16384 * 2048))))


def _float16(bench: Bench) -> Line:
    """The hidden states' gradient from the trainer's head in float16, with a scaled loss, against
    float32."""
    rows, width, words = bench.sized((2000, 1280, 50257), (500, 64, 512))
    torch.manual_seed(1)
    hidden = torch.randn(rows, width, device=bench.device)
    weight = 0.02 * torch.randn(words, width, device=bench.device)
    targets = torch.randint(words, (rows,), device=bench.device)

    def gradient(kind: torch.dtype, scale: float) -> torch.Tensor:
        inputs = hidden.to(kind, copy=True).requires_grad_()
        loss = ours.head_loss(inputs, weight.to(kind), targets)
        (loss * scale).backward()
        assert inputs.grad is not None
        return inputs.grad.float() / scale

    exact, half = gradient(torch.float32, 1.0), gradient(torch.float16, SCALE)
    finite = bool(half.isfinite().all())
    difference = ((half - exact).norm() / exact.norm()).item()
    seen = f"off by {difference:.2%}" if finite else "not finite"
    return finding("float16", seen, finite and difference <= EXACT)
