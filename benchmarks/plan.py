"""How long it takes to plan a grid, and how near its end comes to the bound that no plan can beat: grids made up with a fixed seed,
of 1,000 cells on 64 devices."""

import random
import time
from collections.abc import Iterator
from typing import Any

from pipelines.plan.schedule import Job, Place, lower_bound, makespan, schedule

BOXES = 16
SIZES_GB = (16, 24, 40, 80)  # of a machine's four devices


def places(*, alike: bool) -> list[Place]:
    """16 machines of four devices, their memory alike or of four sizes."""
    return [Place(f"box-{number}", 4, 80 if alike else SIZES_GB[number % len(SIZES_GB)]) for number in range(BOXES)]


def jobs(count: int, fleet: list[Place], *, seed: int) -> list[Job]:
    """Cells of a minute to some hours, most of them short; half of them fit every device of four sizes, the others only larger
    ones."""
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
