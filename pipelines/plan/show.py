"""A plan as a table, or as plain values for JSON."""

from dataclasses import asdict
from typing import Any

from pipelines.compare.show import fitting, tabulate
from pipelines.lake.schema import real, text, whole
from pipelines.plan.plan import Line, Plan

COLUMNS = (
    whole("order", "Place of the cell in the plan.", heading="#"),
    text("cell", "Model and method."),
    whole("seeds", "Number of seeds that are due."),
    real("memory", "Predicted peak memory on one device.", "GB", 2, heading="GB"),
    text("time", "Predicted time of all seeds, as hours:minutes:seconds."),
    text("where", "Machine and devices that train it."),
    text("start", "Time from the start of the plan to the start of the cell."),
    text("end", "Time from the start of the plan to the end of the cell."),
    real("usd", "Price of all devices that it holds.", "USD", 2),
    text("source", "What the predicted time comes from.", heading="time from"),
    text("because", "Why the cell is due."),
)
# The columns that a narrow terminal shows, the most important first.
BY_IMPORTANCE = (
    ("order", "cell", "memory", "time"),
    ("because",),
    ("where",),
    ("start", "end"),
    ("usd",),
    ("seeds",),
    ("source",),
)


def render(plan: Plan, room: int | None = None) -> str:
    """A table for the terminal with a summary below it, in lines of `room` cells."""
    rows = [_row(number, line) for number, line in enumerate(plan.lines, 1)]
    columns, left_out = fitting(rows, COLUMNS, room, BY_IMPORTANCE, "`--json`") if room else (COLUMNS, [])
    return tabulate(rows, columns, [*left_out, *_notes(plan)], "text", room)


def as_plain(plan: Plan) -> dict[str, Any]:
    """The plan as plain values for JSON, in seconds, GB and dollars."""
    return {
        "makespan_seconds": plan.makespan,
        "lower_bound_seconds": plan.bound.seconds,
        "lower_bound": asdict(plan.bound),
        "devices": plan.devices,
        "device_hours": _device_hours(plan),
        "usd": plan.usd,
        "usd_if_held": plan.usd_if_held,
        "cells": [{"order": number, **asdict(line)} for number, line in enumerate(plan.lines, 1)],
        "without_a_place": [asdict(left) for left in plan.left],
    }


def _device_hours(plan: Plan) -> float:
    return sum(line.seconds * len(line.devices) for line in plan.lines) / 3600


def _row(number: int, line: Line) -> dict[str, Any]:
    devices = ",".join(str(device) for device in line.devices)
    return {
        "order": number,
        "cell": f"{line.model} × {line.method}",
        "seeds": len(line.seeds),
        "memory": line.memory_gb,
        "time": duration(line.seconds),
        "where": f"{line.machine}:{devices}",
        "start": duration(line.start),
        "end": duration(line.end),
        "usd": line.usd,
        "source": line.source,
        "because": line.because,
    }


def duration(seconds: float) -> str:
    """`0:00:42` or `31:07:00`: hours, minutes, seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.lines:
        bound, over = plan.bound, plan.makespan / plan.bound.seconds if plan.bound.seconds else 1.0
        notes.append(
            f"{len(plan.lines)} cells on {plan.devices} device(s): ends after {duration(plan.makespan)}, {over:.2f} × the least "
            f"possible, {duration(bound.seconds)} (longest cell {duration(bound.longest)}; work / devices {duration(bound.work)}; "
            f"what only some devices fit {duration(bound.memory)}; more cells than devices {duration(bound.crowding)})"
        )
        money = "" if plan.usd is None else f", {plan.usd:.2f} dollars"
        held = (
            "" if plan.usd_if_held is None else f" ({plan.usd_if_held:.2f} if every device is paid for until the end)"
        )
        notes.append(f"{_device_hours(plan):.2f} device hours{money}{held}")
    elif not plan.left:
        notes.append("nothing is due")
    notes += [
        f"tight: {line.model} × {line.method} fits {line.machine} within the prediction's error"
        for line in plan.lines
        if line.tight
    ]
    notes += [f"no place for {left.model} × {left.method}: {left.reason}" for left in plan.left]
    return notes
