"""One cell over two processes of one thread each (torchrun, gloo), against one process of two
threads.

Both use the same two processors. So the benchmark shows the cost of dividing a cell and the memory
saved, not a gain in speed. The losses must equal those of one process.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import project
from pipelines.project import Project
from pipelines.runs.cells import CellKey
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train

DIVIDED = (("full", "ddp"), ("full", "fsdp"), ("lora-r8", "ddp"), ("lora-r8", "fsdp"))


def measure() -> Iterator[dict[str, Any]]:
    with TemporaryDirectory(prefix="featherweight-devices-") as folder:
        stage = project.make(Path(folder), train=32, held_out=10)
        alone = {method: _train(stage, method, threads=2) for method in ("full", "lora-r8")}
        for method, sharding in DIVIDED:
            one, both = alone[method], _train(_over_two(stage, sharding), method, threads=1)
            yield {
                "benchmark": "devices",
                "method": method,
                "sharding": sharding,
                "tokens_per_second": both["tokens_per_second"],
                "over_one_process": both["tokens_per_second"] / one["tokens_per_second"],
                "start_up_seconds": both["start_up"],
                "start_up_over_one_process_seconds": both["start_up"] - one["start_up"],
                "peak_memory_gb_each": both["peak_memory_gb"],
                "peak_memory_gb_of_one_process": one["peak_memory_gb"],
                "other_cpu_pct": max(both["other_cpu_pct"], one["other_cpu_pct"]),
                "eval_loss_differs_by": abs(both["loss"] - one["loss"]),
            }


def _over_two(stage: Project, sharding: str) -> Project:
    update = {"launcher": "torchrun", "devices": 2, "sharding": sharding}
    profile = stage.experiments.profile(stage.profile).model_copy(update=update)
    profiles = {**stage.experiments.profiles, stage.profile: profile}
    return replace(stage, experiments=stage.experiments.model_copy(update={"profiles": profiles}))


def _train(stage: Project, method: str, *, threads: int) -> dict[str, Any]:
    """The attempt's measurements, its last loss on held-out records, and its seconds outside the
    optimizer steps."""
    hooks = RunHooks(env={"OMP_NUM_THREADS": str(threads)}, say=lambda _: None)
    attempt, _ = train(stage.resolve(), CellKey(project.PACKAGED, method, 1), force=True, hooks=hooks)
    if attempt.status != "ok":
        raise RuntimeError(f"{method} ended as {attempt.status}: {attempt.result.status_detail}")
    last = attempt.curve()[-1]
    steps = last["elapsed_seconds"]
    return {**attempt.result.measured, "loss": last["eval_loss"], "start_up": attempt.result.seconds - steps}
