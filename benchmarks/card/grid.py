"""The grid of profile gpu in its three shapes, 12 steps a cell, and TRL beside it.

One line a cell: predicted and measured memory, tokens per second, the share of the card's
arithmetic. Then TRL at its default and at other settings, on the same examples.
"""

import itertools
from collections.abc import Iterator, Sequence

from benchmarks.card import cells, ours, rates, trl
from benchmarks.card.bench import Bench
from benchmarks.card.cells import Cell
from benchmarks.card.checks import GRID_ONLY
from benchmarks.card.training import measured
from benchmarks.card.verdicts import Line
from pipelines.lake.paths import PROJECT
from pipelines.settings import experiments as configuration

LEAST_SECONDS, CELL_SECONDS = 25.0, 300.0


def names(only: str | None) -> list[tuple[str, str]]:
    """The cells that train, model by model. `only` selects by model, method or MODEL/METHOD.

    Raises:
        ValueError: an unknown name.
    """
    experiments = configuration.load(PROJECT / "experiments.yaml")
    profile = experiments.profile(cells.PROFILE)
    methods = [name for name in profile.methods if experiments.method(name).traits.trains]
    every = [(model, method) for model in profile.models for method in methods]
    if only is None:
        return every
    selected = _named(only, {*profile.models, *methods, *(f"{model}/{method}" for model, method in every)})
    models, ways = selected & set(profile.models), selected & set(methods)
    pairs = set(itertools.product(models or profile.models, ways or methods)) if models or ways else set()
    return [(model, method) for model, method in every if f"{model}/{method}" in selected or (model, method) in pairs]


def _named(only: str, known: set[str]) -> set[str]:
    selected = {name.strip() for name in only.split(",") if name.strip()}
    if not selected or selected - known:
        raise ValueError(
            f"{', '.join(selected - known) or only!r}: no model or method of profile {cells.PROFILE} that trains"
        )
    return selected


def check(bench: Bench) -> Iterator[Line]:
    """The process of the grid; its lines have the fields of `training.measured`."""
    only = bench.work / GRID_ONLY
    grid = [
        Cell(bench, *name, steps=bench.sized(cells.STEPS, 3))
        for name in names(only.read_text(encoding="utf-8") if only.exists() else None)
    ]
    yield from rates.measured(bench)
    yield {"detail": "base and base-few-shot train nothing: they are no cells of this grid"}
    predictions = ours.predictions([cell.question() for cell in grid])
    rows: list[Line] = []
    for place, (cell, predicted) in enumerate(zip(grid, predictions, strict=True)):
        if bench.left() < bench.sized(LEAST_SECONDS, 0.0):
            yield {"model": cell.model, "method": cell.method, "status": None, "detail": "not run: no time left for it"}
            continue
        result = cells.run(cell, bench.work / f"grid-{place}", limit=min(CELL_SECONDS, bench.left() - 2))
        rows.append(measured(cell, result, predicted))
        yield rows[-1]
    yield from _trl(grid, rows)
    yield _errors(rows)


def _trl(grid: Sequence[Cell], rows: Sequence[Line]) -> Iterator[Line]:
    """TRL for the cells with the compared method."""
    beside = [cell for cell in grid if cell.method == trl.METHOD]
    python = trl.python_with_trl()
    if beside and not python:
        yield {
            "by": "trl",
            "detail": "not run: TRL is not installed (`.venv/bin/python -m benchmarks train` makes .venv-peers/trl)",
        }
        return
    ours_by_model = {row["model"]: row.get("tokens_per_second") for row in rows if row["method"] == trl.METHOD}
    for cell in beside if python else ():
        lines = []
        for line in trl.compared(cell, python or ""):
            lines.append(line)
            yield {"model": cell.model, "method": cell.method, **line}
        yield {"model": cell.model, "method": cell.method, "by": "trl", **ratios(lines, ours_by_model.get(cell.model))}


def ratios(lines: Sequence[Line], mine: float | None) -> Line:
    """Our useful tokens a second over those of TRL's default (the first of `lines`) and of its best
    setting."""
    speeds = [line.get("tokens_per_second") for line in lines]
    positive = [speed for speed in speeds if speed]
    default = speeds[0] if speeds else None
    return {
        "over_default": mine / default if mine and default else None,
        "over_best": mine / max(positive) if mine and positive else None,
    }


def _errors(rows: Sequence[Line]) -> Line:
    """The largest error of the predictions against allocated memory, over all cells that ran."""
    errors = [abs(row["predicted_over_allocated"] - 1) for row in rows if row["predicted_over_allocated"]]
    return {
        "cells": len(rows),
        "ok": sum(row["status"] == "ok" for row in rows),
        "prediction_off_by_at_most": max(errors, default=None),
    }
