"""A cell that is stopped in the middle and resumed; host memory while its checkpoint is written;
and memory that bitsandbytes' paged optimizers leave behind."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.card import cells
from benchmarks.card.bench import Bench
from benchmarks.card.cells import Cell, outcome, run
from benchmarks.card.models import GPT2
from benchmarks.card.verdicts import Line, finding
from pipelines.lake.files import read_jsonl
from pipelines.runs import checkpoints

# Steps before the stop
STOP_AFTER = 2
NEAR, CHECKPOINT_GB = 0.01, 1.0
POLL_SECONDS = 0.02
# Their two 8-bit states take half a gigabyte
PAGED_ELEMENTS = 250_000_000


def check(bench: Bench) -> Iterator[Line]:
    if not bench.dry:
        yield from _paged(bench)
    # On a card 3.6 GB a checkpoint
    cell = Cell(bench, GPT2, "full", steps=bench.sized(6, 60), layers=bench.sized(12, 2))
    stopped, memory = _stopped(cell, bench.work / "stopped")
    yield {"model": cell.model, "method": cell.method, "run": "stopped", **outcome(stopped), **memory}
    saved = checkpoints.whole(stopped)
    if not saved:
        report = outcome(stopped)
        yield finding(
            "goes on", f"no checkpoint: {report['status']}, {report['detail']}, {cells.log_tail(stopped)}", False
        )
        return
    gained = memory["host_gb_at_end"] - memory["host_gb_before"]
    yield finding("streamed", f"{gained:.2f} GB more while it was written", bench.judged(gained < CHECKPOINT_GB))
    resumed = _gone_on(cell, saved[-1], bench.work / "gone-on")
    yield {"model": cell.model, "method": cell.method, "run": "gone on", **resumed}
    start = saved[-1].name
    yield finding(
        "goes on", f"from {start}: {resumed['status']}, {len(resumed['losses'])} steps", resumed["status"] == "ok"
    )
    uninterrupted = run(cell, bench.work / "whole", limit=bench.left() - 2)
    yield {"model": cell.model, "method": cell.method, "run": "whole", **uninterrupted}
    yield from _same(bench, uninterrupted, resumed)


def _same(bench: Bench, uninterrupted: Line, resumed: Line) -> Iterator[Line]:
    """Compare the losses of the uninterrupted run with those of the resumed run, whose curve
    includes the steps before the stop."""
    pairs = list(zip(uninterrupted["losses"], resumed["losses"], strict=False))
    if (
        uninterrupted["status"] != "ok"
        or resumed["status"] != "ok"
        or len(uninterrupted["losses"]) != len(resumed["losses"])
    ):
        seen = f"{len(uninterrupted['losses'])} and {len(resumed['losses'])} steps; {uninterrupted['status']}, {resumed['status']}"
        yield finding("same losses", seen, False)
        return
    difference = max(abs(a - b) / abs(a) for a, b in pairs)
    yield finding(
        "same losses", f"they differ by at most {difference:.2e} of the loss", difference <= bench.sized(NEAR, 0.0)
    )


def _stopped(cell: Cell, folder: Path) -> tuple[Path, dict[str, float]]:
    """Train `cell` and stop it with SIGTERM after STOP_AFTER steps; returns its folder, and its
    process's memory before the stop and the peak at the end."""
    cell.write(folder)
    process = cells.start(folder)
    deadline = time.monotonic() + cell.bench.left() / 2
    try:
        while _steps(folder) < STOP_AFTER and process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        before = _resident_gb(process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        most = before
        while process.poll() is None and time.monotonic() < deadline:
            most = max(most, _resident_gb(process))
            time.sleep(POLL_SECONDS)
        return folder, {"host_gb_before": before, "host_gb_at_end": most}
    finally:
        cells.end(process)


def _steps(folder: Path) -> int:
    return max((point["step"] for point in read_jsonl(folder / "curve.jsonl")), default=0)


def _resident_gb(process: subprocess.Popen[bytes]) -> float:
    """Private memory only, since mapped file pages come and go."""
    try:
        memory: Any = psutil.Process(process.pid).memory_info()
    except psutil.Error:
        return 0.0
    return (memory.rss - memory.shared) / 1e9


def _gone_on(cell: Cell, checkpoint: Path, folder: Path) -> Line:
    resume = {"run_id": "stopped", "checkpoint": str(checkpoint.relative_to(cell.bench.work)), "peaks": {}}
    cell.write(folder, resume=resume)
    process = cells.start(folder)
    try:
        process.wait(timeout=max(1.0, cell.bench.left() / 2))
    except subprocess.TimeoutExpired:
        pass
    finally:
        cells.end(process)
    return outcome(folder)


def _paged(bench: Bench) -> Iterator[Line]:
    """Managed memory still held after each of two paged optimizers is deleted, counted by driver
    and process."""
    from bitsandbytes.optim.adamw import PagedAdamW8bit

    parameter = torch.nn.Parameter(torch.zeros(PAGED_ELEMENTS, device=bench.device))
    parameter.grad = torch.ones_like(parameter)
    held: list[float] = []
    for _ in range(2):
        free, resident = torch.cuda.mem_get_info()[0], psutil.Process().memory_info().rss
        optimizer: Any = PagedAdamW8bit([parameter], lr=1e-3)
        optimizer.step()
        bench.wait()
        del optimizer
        bench.wait()
        held.append((free - torch.cuda.mem_get_info()[0] + psutil.Process().memory_info().rss - resident) / 1e9)
    states = 2 * PAGED_ELEMENTS / 1e9
    yield {"paged": "PagedAdamW8bit, made and dropped twice", "states_gb": states, "held_gb": held}
    seen = f"of {states:.1f} GB each, {held[0]:.1f} and {held[1]:.1f} GB are held after they are gone"
    yield finding("paged stays", seen, all(one > states / 2 for one in held))
    del parameter
    torch.cuda.empty_cache()
