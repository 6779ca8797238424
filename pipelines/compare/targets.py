"""How fast each method reaches the same held-out loss: examples and seconds to a target along its
curve.

The curve is measured on a sample of the held-out records, the same sample for every cell with the
same data.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipelines.compare.outside import of_profile
from pipelines.project import Project
from pipelines.runs import cells
from pipelines.runs.cells import CellKey

Row = dict[str, Any]
# Examples, seconds of training, loss on the sample.
Points = list[tuple[int, float, float]]
# Rows with equal values in these columns share a target.
SAME = ("model", "weights_fingerprint", "data_fingerprint", "eval_set", "device")


def add_targets(project: Project, rows: Sequence[Row]) -> None:
    """Add to each trained row its target loss, and the examples and seconds it took to reach it.

    The target is `target_loss` of the settings. Without one it is the worst final loss among the
    comparable rows of the profile that learned something, so each of these reaches it. Examples and
    seconds stay None if a seed never reached the target.
    """
    points_by_row = {id(row): points for row in rows if row["status"] == "ok" and (points := _curves(project, row))}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if id(row) in points_by_row:
            groups.setdefault(tuple(row[name] for name in SAME), []).append(row)
    for group in groups.values():
        common = common_target([points for row in of_profile(group) for points in points_by_row[id(row)]])
        for row in group:
            target = project.experiments.training_for(project.profile, row["model"], row["method"]).target_loss
            row["target_loss"] = common if target is None else target
            if row["target_loss"] is not None:
                _add(row, points_by_row[id(row)], row["target_loss"])


def _add(row: Row, curves: Sequence[Points], target: float) -> None:
    reached = [reach(points, target) for points in curves]
    there = [one for one in reached if one]
    if len(there) == len(reached):
        row["examples_to_target"] = math.ceil(sum(examples for examples, _ in there) / len(there))
        row["seconds_to_target"] = sum(seconds for _, seconds in there) / len(there)


def _curves(project: Project, row: Row) -> list[Points]:
    """The evaluated points of each seed's newest attempt, if that ended ok."""
    if project.experiments.model(row["model"]).origin.source.random:
        return []
    keys = [CellKey(row["model"], row["method"], seed) for seed in project.settings.seeds]
    attempts = [attempt for key in keys if (attempt := cells.latest(project.data, key)) and attempt.status == "ok"]
    return [points for attempt in attempts if (points := evaluated(attempt.curve()))]


def evaluated(curve: Sequence[Mapping[str, Any]]) -> Points:
    """The points of a curve that have a loss on held-out records."""
    return [(p["examples"], p["elapsed_seconds"], p["eval_loss"]) for p in curve if p.get("eval_loss") is not None]


def common_target(curves: Sequence[Points]) -> float | None:
    """The worst final loss among the curves that end lower than they began."""
    return max((points[-1][2] for points in curves if points[-1][2] < points[0][2]), default=None)


def reach(points: Points, target: float) -> tuple[float, float] | None:
    """(examples, seconds) at which the loss first reached `target`, interpolated linearly
    between evaluations."""
    if points[0][2] <= target:
        return points[0][:2]
    for (examples, seconds, loss), (more, later, lower) in pairwise(points):
        if lower <= target:
            part = (loss - target) / (loss - lower)
            return examples + part * (more - examples), seconds + part * (later - seconds)
    return None
