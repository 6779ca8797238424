"""Time to plan a grid, and the plan's end relative to the lower bound of any plan. The grids are
synthetic, with a fixed seed: up to 1,000 cells on 64 devices."""

import random
import time
from collections.abc import Iterator
from typing import Any

from pipelines.plan.schedule import Job, Place, lower_bound, makespan, schedule

BOXES = 16
# Memory of each of a machine's four devices, by machine
SIZES_GB = (16, 24, 40, 80)


def places(*, alike: bool) -> list[Place]:
    """16 machines of four devices, with equal memory or of four sizes."""
    return [Place(f"box-{number}", 4, 80 if alike else SIZES_GB[number % len(SIZES_GB)]) for number in range(BOXES)]


def jobs(count: int, fleet: list[Place], *, seed: int) -> list[Job]:
    """Cells of a minute to some hours, most of them short. Half of them fit devices of every size,
    the others only larger ones."""
    rng = random.Random(seed)
    grid = []
    for number in range(count):
        gb, seconds = rng.choice([10, 15, 30, 70]), 60 * rng.lognormvariate(2.5, 1)
        grid.append(Job(f"cell-{number}", {place.name: seconds for place in fleet if place.memory_gb >= gb}))
    return grid


def measure() -> Iterator[dict[str, Any]]:
    for alike in (True, False):
        fleet = places(alike=alike)
        for count in (100, 1000):
            grid = jobs(count, fleet, seed=count)
            began = time.perf_counter()
            plan = schedule(grid, fleet)
            seconds = time.perf_counter() - began
            bound = lower_bound(grid, fleet)
            yield {
                "benchmark": "plan",
                "cells": count,
                "devices": sum(place.devices for place in fleet),
                "memory_binds": not alike,
                "seconds_to_plan": seconds,
                "makespan_over_lower_bound": makespan(plan) / bound.seconds,
                "every_cell_once": sorted(placement.job.name for placement in plan) == sorted(job.name for job in grid),
            }
