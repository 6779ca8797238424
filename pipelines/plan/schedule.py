"""Schedules cells on devices: list scheduling, the longest first (LPT, Graham 1969).

A device runs one cell at a time, and only cells that fit its memory. `lower_bound` is a bound on
the end that no plan can beat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A machine with `devices` equal devices of `memory_gb` each; the memory helps to keep
    larger devices free."""

    name: str
    devices: int
    memory_gb: float


@dataclass(frozen=True)
class Job:
    """A job with its `seconds` by the name of each machine that it fits. It holds `devices`
    devices of one machine."""

    name: str
    seconds: Mapping[str, float]
    devices: int = 1

    @property
    def least(self) -> float:
        return min(self.seconds.values())


@dataclass(frozen=True)
class Assignment:
    """A job with its place. Start and end are in seconds from now; `devices` are indices within
    the machine."""

    job: Job
    place: str
    devices: tuple[int, ...]
    start: float
    end: float


def schedule(jobs: Sequence[Job], places: Sequence[Place]) -> list[Assignment]:
    """A place and a time for each job, in the order of their start. Every job must fit at least one
    place.

    Two orders are tried: the longest first, and the jobs that fit the fewest devices first. The
    shorter plan is taken.
    """
    counts = {place.name: place.devices for place in places}
    choice = {job.name: sum(counts[name] for name in job.seconds) for job in jobs}
    longest = sorted(jobs, key=lambda job: (-job.least, job.name))
    pickiest = sorted(longest, key=lambda job: choice[job.name])
    plans = [_in_order(order, places) for order in (longest, pickiest)]
    best = min(plans, key=makespan)
    return sorted(
        best,
        key=lambda assignment: (
            assignment.start,
            -(assignment.end - assignment.start),
            assignment.place,
            assignment.devices,
        ),
    )


def makespan(assignments: Sequence[Assignment]) -> float:
    return max((assignment.end for assignment in assignments), default=0.0)


def _in_order(jobs: Sequence[Job], places: Sequence[Place]) -> list[Assignment]:
    """Place each job where it ends first; among equals, on the devices with the least memory."""
    free = {place.name: [0.0] * place.devices for place in places}
    sizes = {place.name: place.memory_gb for place in places}
    assignments = []
    for job in jobs:
        options = []
        for name, seconds in job.seconds.items():
            chosen = sorted(range(len(free[name])), key=lambda i, times=free[name]: (times[i], i))[: job.devices]
            start = free[name][chosen[-1]]
            options.append((start + seconds, sizes[name], name, start, tuple(sorted(chosen))))
        end, _, name, start, chosen = min(options)
        for device in chosen:
            free[name][device] = end
        assignments.append(Assignment(job, name, chosen, start, end))
    return assignments


@dataclass(frozen=True)
class Bound:
    """Lower bounds in seconds that no plan can beat.

    `longest` is the longest cell. `work` is all work divided by all devices. `memory` is the same
    for cells that fit only some devices, over those devices. `crowding` holds if there are more
    cells than devices: some device then gets two cells, or three with more than twice as many, and
    so on; its time is at least that of the shortest such cells.
    """

    longest: float
    work: float
    memory: float
    crowding: float

    @property
    def seconds(self) -> float:
        return max(self.longest, self.work, self.memory, self.crowding)


def lower_bound(jobs: Sequence[Job], places: Sequence[Place]) -> Bound:
    counts = {place.name: place.devices for place in places}
    everywhere = frozenset(counts)
    groups = {frozenset(job.seconds) for job in jobs}
    within = {group: [job for job in jobs if group.issuperset(job.seconds)] for group in {*groups, everywhere}}
    devices = {group: sum(counts[name] for name in group) for group in within}
    work = {
        group: sum(j.least * j.devices for j in group_jobs) / devices[group] for group, group_jobs in within.items()
    }
    return Bound(
        longest=max((job.least for job in jobs), default=0.0),
        work=work[everywhere],
        memory=max((seconds for group, seconds in work.items() if group != everywhere), default=0.0),
        crowding=max(_crowding([j.least for j in group_jobs], devices[group]) for group, group_jobs in within.items()),
    )


def _crowding(seconds: Sequence[float], devices: int) -> float:
    """Of the k × devices + 1 longest cells, k + 1 share a device; in the best case these are the
    shortest of them."""
    longest = sorted(seconds, reverse=True)
    return max(
        (sum(longest[k * devices - k : k * devices + 1]) for k in range(1, (len(longest) - 1) // devices + 1)),
        default=0.0,
    )
