"""A grid through Ray on two workers of one core each, against the ideal for two; and the overhead
of a Ray cell around its own processes, over a local cell that runs alone.

The ideal is a lower bound for any schedule of the same cells by the local launcher, each on one
core while the other core runs another cell. Cells for the ideal run side by side, because two cells
share the machine's memory and last-level cache. For `over_ideal_alone` the cells had the machine to
themselves. All runs must end in the same losses.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import project
from pipelines.evaluate.cell import evaluate
from pipelines.plan.plan import longest_first
from pipelines.plan.schedule import Job, Place, lower_bound
from pipelines.project import Project
from pipelines.runs.cells import CellKey
from pipelines.runs.launchers.local import LocalLauncher
from pipelines.runs.run import RunHooks
from pipelines.settings.launchers import Ray
from pipelines.train.cell import train
from tests.ray_cluster import ray_cluster

METHODS = ("base", "full", "lora-r8", "lora-r128", "qlora-r8")
ONE_CORE = {"OMP_NUM_THREADS": "1"}
Run = dict[str, Any]


def measure() -> Iterator[Run]:
    with TemporaryDirectory(prefix="featherweight-ray-") as folder:
        stages = [
            project.make(Path(folder) / name, train=32, held_out=10) for name in ("alone", "left", "right", "ray")
        ]
        order = [method for _, method in longest_first(stages[0], [(project.PACKAGED, method) for method in METHODS])]
        rest = [method for method in order if method != "base"]
        local = RunHooks(env=ONE_CORE, say=lambda _: None, launcher=LocalLauncher())
        alone = {method: _cell(stages[0], method, local) for method in order}
        # A data root runs one local cell at a time, so two cells need two roots, each with the base
        # that every cell waits for
        for stage in stages[1:3]:
            _cell(stage, "base", local)
        side_by_side, wall_beside = _two_at_a_time(stages[1:3], rest, local)
        with ray_cluster(nodes=2, cpus=1, memory_gb=8) as cluster:
            remote = _on(stages[3], cluster.address)
            plain = RunHooks(say=lambda _: None)
            # The cluster's first job waits for its agents; all cells share this base
            first = _cell(remote, "base", plain)
            together, wall = _two_at_a_time([remote, remote], rest, plain)
    over = {method: together[method]["around"] - alone[method]["around"] for method in rest}
    yield {
        "benchmark": "ray",
        "cells": len(rest),
        "seconds": wall,
        "ideal_for_two_seconds": _ideal(side_by_side, rest),
        "over_ideal": wall / _ideal(side_by_side, rest),
        "local_two_at_a_time_seconds": wall_beside,
        "over_ideal_alone": wall / _ideal(alone, rest),
        "one_after_another_seconds": sum(alone[method]["wall"] for method in rest),
        "slower_beside_another": sum(side_by_side[m]["own"] for m in rest) / sum(alone[m]["own"] for m in rest),
        "startup_over_local_seconds": sum(over.values()) / len(over),
        "startup_over_local_most_seconds": max(over.values()),
        "first_cell_over_local_seconds": first["around"] - alone["base"]["around"],
        "same_losses": all(
            abs(run[m]["loss"] - alone[m]["loss"]) < 1e-4 for run in (side_by_side, together) for m in rest
        ),
    }


def _two_at_a_time(stages: list[Project], methods: list[str], hooks: RunHooks) -> tuple[dict[str, Run], float]:
    """Each method's cell, on whichever stage is free; and the seconds of all together."""
    free: Queue[Project] = Queue()
    for stage in stages:
        free.put(stage)

    def run(method: str) -> Run:
        stage = free.get()
        try:
            return _cell(stage, method, hooks)
        finally:
            free.put(stage)

    began = time.monotonic()
    with ThreadPoolExecutor(len(stages)) as pool:
        runs = dict(zip(methods, pool.map(run, methods), strict=True))
    return runs, time.monotonic() - began


def _ideal(cells: dict[str, Run], methods: list[str]) -> float:
    """The least seconds in which two workers can run these cells."""
    jobs = [Job(method, {"two": cells[method]["wall"]}) for method in methods]
    return lower_bound(jobs, [Place("two", 2, 8)]).seconds


def _on(stage: Project, address: str) -> Project:
    """The stage with its cells on the cluster."""
    settings = Ray(address=address, python=sys.executable, gpus=0)
    profile = stage.experiments.profile(stage.profile).model_copy(update={"launcher": "ray", "ray": settings})
    profiles = {**stage.experiments.profiles, stage.profile: profile}
    return replace(stage, experiments=stage.experiments.model_copy(update={"profiles": profiles}))


def _cell(stage: Project, method: str, hooks: RunHooks) -> Run:
    """Train and evaluate. `wall`: all seconds; `own`: those in the cell's two processes; `around`:
    the rest."""
    key = CellKey(project.PACKAGED, method, 1)
    began = time.monotonic()
    attempt, _ = train(stage.resolve(), key, hooks=hooks)
    evaluation, _ = evaluate(stage.resolve(), key, hooks=hooks)
    wall = time.monotonic() - began
    if attempt.status != "ok" or not evaluation.ok:
        raise RuntimeError(f"{key}: {attempt.result.status_detail} {evaluation.result.status_detail}")
    own = (attempt.result.seconds or 0.0) + (evaluation.result.seconds or 0.0)
    loss = evaluation.result.measured["eval_bits_per_byte"]
    return {"wall": wall, "own": own, "around": wall - own, "loss": loss}
