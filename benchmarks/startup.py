"""Time from the start of a training process to its first forward pass, and the time of a whole
cell.

The reference is a process that only imports AutoModelForCausalLM and loads the same weights; the
two run in turns. Ours also reads, tokenizes and checks its examples, and adds the adapter or
quantizes. Both are measured by the clock and by processor time, which other work on the machine
hardly affects (`OMP_NUM_THREADS=1` on a shared machine).

For a cell of the local profile's size it then shows the phases of its row, and the processor time
of the training and the evaluating process.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks import project
from benchmarks.peers import peer_environment
from pipelines.evaluate.cell import evaluate
from pipelines.lake.files import read_json
from pipelines.project import Project
from pipelines.runs.cells import CellKey
from pipelines.runs.process import spawn, stop_group
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train

ROUNDS = 5
METHODS = ("full", "lora-r8", "qlora-r8")
PHASES = (
    "import_seconds", "load_seconds", "quantize_seconds", "probe_seconds", "train_seconds", "other_seconds",
    "evaluation_load_seconds", "loss_seconds", "answer_seconds", "serving_seconds",
)  # fmt: skip
BARE = (
    "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
    "AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\nprint('loaded', flush=True)\n"
)


def measure() -> Iterator[dict[str, Any]]:
    yield from _starts()
    with TemporaryDirectory(prefix="featherweight-cell-") as folder:
        stage = project.make(Path(folder), train=32, held_out=10)
        for method in METHODS:
            yield {"benchmark": "cell", "method": method, **_whole_cell(stage, method)}


def _whole_cell(stage: Project, method: str) -> dict[str, Any]:
    """Processor seconds of a complete cell's two processes, and wall seconds of their phases."""
    resolved, key, quietly = stage.resolve(), CellKey(project.PACKAGED, method, 1), RunHooks(say=lambda _: None)
    began = _children_cpu_seconds()
    attempt, _ = train(resolved, key, hooks=quietly)
    trained = _children_cpu_seconds()
    evaluation, _ = evaluate(resolved, key, hooks=quietly)
    if not evaluation.ok:
        raise RuntimeError(f"{method} ended as {evaluation.result.status}: {evaluation.result.status_detail}")
    measured = {**attempt.result.measured, **evaluation.result.measured}
    return {
        "training_cpu_seconds": trained - began,
        "evaluation_cpu_seconds": _children_cpu_seconds() - trained,
        **{phase: measured.get(phase) for phase in PHASES},
        "eval_bits_per_byte": measured["eval_bits_per_byte"],
    }


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _starts() -> Iterator[dict[str, Any]]:
    with TemporaryDirectory(prefix="featherweight-startup-") as folder:
        stage = project.make(Path(folder), train=8, held_out=3)
        attempts = {method: _attempt(stage, method) for method in METHODS}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("bare", *METHODS)}
        for _ in range(ROUNDS):
            seconds["bare"].append(_bare(stage.data.models / project.PACKAGED))
            for method, attempt in attempts.items():
                seconds[method].append(_ours(attempt))
        wall, cpu = ({name: median(run[i] for run in runs) for name, runs in seconds.items()} for i in (0, 1))
        for method in METHODS:
            yield {
                "benchmark": "startup",
                "method": method,
                "seconds": wall[method],
                "bare_seconds": wall["bare"],
                "over_bare": wall[method] / wall["bare"],
                "cpu_seconds": cpu[method],
                "bare_cpu_seconds": cpu["bare"],
                "cpu_over_bare": cpu[method] / cpu["bare"],
            }


def _attempt(stage: Project, method: str) -> Path:
    """The folder of a finished attempt, whose spec `_ours` starts again."""
    key = CellKey(project.PACKAGED, method, 1)
    attempt, _ = train(stage.resolve(), key, hooks=RunHooks(say=lambda _: None))
    if attempt.status != "ok":
        raise RuntimeError(f"{method} ended as {attempt.status}: {attempt.result.status_detail}")
    return attempt.folder


def _ours(attempt: Path) -> tuple[float, float]:
    """Seconds until the child reports its probe, the first use of the model."""
    (attempt / "child.json").unlink()
    began = time.perf_counter()
    child = spawn(["-m", "pipelines.train.trainer.child", str(attempt)], log=attempt / "log.txt")
    try:
        while (read_json(attempt / "child.json") or {}).get("phase") != "probe":
            if child.poll() is not None:
                raise RuntimeError((attempt / "log.txt").read_text(encoding="utf-8")[-500:])
            time.sleep(0.01)
        return time.perf_counter() - began, _cpu_seconds(child.pid)
    finally:
        stop_group(child)


def _bare(folder: Path) -> tuple[float, float]:
    began = time.perf_counter()
    command = [sys.executable, "-c", BARE, str(folder.resolve())]
    with subprocess.Popen(
        command, env=peer_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        process.stdout.readline()
        seconds = time.perf_counter() - began, _cpu_seconds(process.pid)
        process.kill()
    return seconds


def _cpu_seconds(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system
