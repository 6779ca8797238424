"""A grid through Ray on two workers of one core each, against the ideal for two: the bound that no schedule of the same cells, run
by the local launcher one at a time on one core, can beat. And what a Ray cell costs around its own processes, over a local one.

Both end in the same losses. Two cells at a time share one machine's memory, and where its two processors are threads of one core,
that as well: `slower_beside_another`. So the ideal is also taken at the speed that the cells had there."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import project
from pipelines.cells import CellKey
from pipelines.evaluate.cell import evaluate
from pipelines.experiments import Ray
from pipelines.launcher import LocalLauncher
from pipelines.plan.plan import longest_first
from pipelines.plan.schedule import Job, Place, lower_bound
from pipelines.train.cell import Stage, Watch, train
from tests.ray_cluster import ray_cluster

METHODS = ("base", "full", "lora-r8", "lora-r128", "qlora-r8")
ONE_CORE = {"OMP_NUM_THREADS": "1"}
Run = dict[str, Any]


def measure() -> Iterator[Run]:
    with TemporaryDirectory(prefix="featherweight-ray-") as folder:
        local = project.make(Path(folder) / "local", train=32, held_out=10)
        order = [method for _, method in longest_first(local, [(project.PACKAGED, method) for method in METHODS])]
        watch = Watch(env=ONE_CORE, say=lambda _: None, launcher=LocalLauncher())
        alone = {method: _cell(local, method, watch) for method in order}
        with ray_cluster(nodes=2, cpus=1, memory_gb=8) as cluster:
            away = _on(project.make(Path(folder) / "ray", train=32, held_out=10), cluster.address)
            plain = Watch(say=lambda _: None)
            first = _cell(away, "base", plain)  # the cluster's first job waits for its agents, and the base serves all
            rest = [method for method in order if method != "base"]
            began = time.monotonic()
            with ThreadPoolExecutor(2) as pool:
                together = dict(zip(rest, pool.map(lambda method: _cell(away, method, plain), rest), strict=True))
            wall = time.monotonic() - began
    ideal = _ideal({method: alone[method]["wall"] for method in rest})
    beside = _ideal({method: together[method]["own"] + alone[method]["around"] for method in rest})
    over = {method: together[method]["around"] - alone[method]["around"] for method in rest}
    yield {
        "benchmark": "ray",
        "cells": len(rest),
        "seconds": wall,
        "ideal_for_two_seconds": ideal,
        "over_ideal": wall / ideal,
        "over_ideal_at_the_speed_beside_another": wall / beside,
        "one_after_another_seconds": sum(alone[method]["wall"] for method in rest),
        "slower_beside_another": sum(together[m]["own"] for m in rest) / sum(alone[m]["own"] for m in rest),
        "startup_over_local_seconds": sum(over.values()) / len(over),
        "startup_over_local_most_seconds": max(over.values()),
        "first_cell_over_local_seconds": first["around"] - alone["base"]["around"],
        "same_losses": all(abs(together[m]["loss"] - alone[m]["loss"]) < 1e-4 for m in rest),
    }


def _ideal(seconds: dict[str, float]) -> float:
    """What two workers need at least for cells of so many seconds."""
    return lower_bound([Job(name, {"two": taken}) for name, taken in seconds.items()], [Place("two", 2, 8)]).seconds


def _on(stage: Stage, address: str) -> Stage:
    """The stage with its cells on the cluster."""
    settings = Ray(address=address, python=sys.executable, gpus=0)
    profile = stage.experiments.profile(stage.profile).model_copy(update={"launcher": "ray", "ray": settings})
    profiles = {**stage.experiments.profiles, stage.profile: profile}
    return replace(stage, experiments=stage.experiments.model_copy(update={"profiles": profiles}))


def _cell(stage: Stage, method: str, watch: Watch) -> Run:
    """Train and evaluate; `wall` seconds in all, `own` in the cell's two processes, `around` outside them."""
    key = CellKey(project.PACKAGED, method, 1)
    began = time.monotonic()
    attempt, _ = train(stage, key, watch=watch)
    found, _ = evaluate(stage, key, watch=watch)
    wall = time.monotonic() - began
    if attempt.status != "ok" or not found.ok:
        raise RuntimeError(f"{key}: {attempt.result['status_detail']} {found.result['status_detail']}")
    own = attempt.result["seconds"] + found.result["seconds"]
    loss = found.result["measured"]["eval_bits_per_byte"]
    return {"wall": wall, "own": own, "around": wall - own, "loss": loss}
