"""TRL's SFTTrainer in a process of its own, on the same weights, tokens, recipe and examples a
step.

It is used only if it is already installed, beside this project or in `.venv-peers/trl`.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import peers
from benchmarks.card.bench import Bench
from benchmarks.card.cells import Cell, run
from benchmarks.card.models import GEMMA
from benchmarks.card.verdicts import Line, finding
from pipelines.lake.paths import PROJECT
from pipelines.train.trainer.batches import learning_rate_share

EXTRAS = ("flash_attn", "liger_kernel")
METHOD, LEAST_SECONDS = "lora-r8", 15.0


def check(bench: Bench) -> Iterator[Line]:
    cell = Cell(bench, GEMMA, METHOD, steps=bench.sized(8, 2))
    if not (python := python_with_trl()):
        yield finding("ahead", "TRL is not installed: not run", None)
        return
    theirs = list(compared(cell, python, most=2))
    yield from theirs
    mine = run(cell, bench.work / "beside-trl", limit=bench.left() - 2)
    yield {"by": "this project", **mine}
    speeds = [line["tokens_per_second"] for line in theirs if line.get("tokens_per_second")]
    if not speeds or not mine.get("tokens_per_second"):
        yield finding("ahead", "not both sides ran", None)
        return
    ratio = mine["tokens_per_second"] / max(speeds)
    yield finding("ahead", f"{ratio:.2f} times TRL's best of {len(speeds)} settings", bench.judged(ratio > 1))


def python_with_trl() -> str | None:
    """An interpreter with TRL: that of the peers' environment if it exists, or this one."""
    peer = PROJECT / ".venv-peers" / "trl"
    if (peer / "stamp").exists():
        return str(peer / "bin" / "python")
    return sys.executable if find_spec("trl") else None


def extras_of(python: str) -> list[str]:
    """The packages of that interpreter that make TRL faster."""
    program = f"from importlib.util import find_spec; print(*filter(find_spec, {EXTRAS!r}))"
    process = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False, timeout=600)
    return process.stdout.split()


def settings(per_step: int, *, extras: Sequence[str], on_card: bool) -> list[Line]:
    """TRL's own default first, with steps of the same size; then settings that should be faster.

    These are packing without padding where flash attention is installed, Liger's kernels where they
    are installed, no checkpointing, rows of similar length together, and weights in bfloat16.
    """
    rows = min(8, per_step)
    default: Line = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": per_step // rows}
    alike = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
    if not on_card:
        return [default, {**default, **alike}]
    liger = {"use_liger_kernel": True} if "liger_kernel" in extras else {}
    half = {"dtype": "bfloat16"}
    packed: Line = {"packing": True, "model_init_kwargs": {**half, "attn_implementation": "flash_attention_2"}}
    best = [{**default, **packed, **liger}] if "flash_attn" in extras else []
    return [default, *best, {**default, **alike, "model_init_kwargs": half, **liger}]


def compared(cell: Cell, python: str, *, most: int | None = None) -> Iterator[Line]:
    """A line for each of at most `most` settings, while time is left."""
    per_step, on_card = cell.recipe["examples_per_step"], not cell.bench.dry
    for chosen in settings(per_step, extras=extras_of(python), on_card=on_card)[:most]:
        if cell.bench.left() < LEAST_SECONDS:
            yield {"by": "trl", "settings": chosen, "detail": "not run: no time left for it"}
            continue
        yield {"by": "trl", "settings": chosen, **_run(cell, python, chosen)}


def _run(cell: Cell, python: str, chosen: Line) -> Line:
    plain = [{"input_ids": example.input_ids, "labels": example.labels} for example in cell.examples]
    share = cell.recipe["warmup_share"]
    request = {
        "weights": str(cell.weights), "recipe": cell.recipe, "seed": 1, "settings": chosen, "on_card": not cell.bench.dry,
        "rate_shares": [learning_rate_share(step, total=cell.steps, warmup_share=share) for step in range(cell.steps)],
        "train": plain, "eval": plain[:8],
    }  # fmt: skip
    try:
        process = subprocess.run(
            [python, str(Path(peers.__file__).with_name("peer_trl.py"))], input=json.dumps(request),
            env=peers.peer_environment(), capture_output=True, text=True, check=False, timeout=cell.bench.left() - 2,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"detail": "killed: it took too long"}
    answer = next((line for line in process.stdout.splitlines() if line.startswith("RESULT ")), None)
    if answer is None:
        return {"detail": f"exit code {process.returncode}: {process.stderr[-300:]}"}
    result = json.loads(answer.removeprefix("RESULT "))
    return {**result, "tokens_per_second": sum(map(len, cell.examples)) / result["seconds"]}
