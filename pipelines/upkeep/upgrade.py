"""The notice after an upgrade: the rows from earlier code, and the time to renew them.

It appears once and runs nothing.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.errors import WorkError
from pipelines.evaluate.cell import CHILD as EVALUATES
from pipelines.lake.files import read_json, write_json
from pipelines.project import TRAINS, Project
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.code import code_fingerprint


@dataclass(frozen=True)
class Outdated:
    """The number of the profile's `rows` that are stale by code, and the hours that they took."""

    stale: int
    rows: int
    hours: float

    def in_words(self) -> str:
        length = f"{self.hours:.1f} hours" if self.hours >= 1 else f"{self.hours * 60:.0f} minutes"
        took = f"; making them again would take about {length}, as long as they took before" if self.hours else ""
        return (
            f"Featherweight's code has changed since this data root was last used: {self.stale} of {self.rows} rows are stale by "
            f"`code`. They stay and are shown so{took}. `featherweight train MODEL METHOD`, then `featherweight evaluate MODEL "
            "METHOD`, renew one; the night does it with nightly: {rerun_for: [code, data, recipe, machine, evaluation]}."
        )


def noticed(project: Project) -> Outdated | None:
    """The rows that an upgrade has made stale since the last check of this profile, or None.

    Also None if the lake cannot be written, because the notice would then appear again and again.
    """
    if not project.data.cells.exists() or not os.access(project.data.lake, os.W_OK):
        return None
    file, now = project.data.lake / "code.json", [code_fingerprint(TRAINS), code_fingerprint(EVALUATES)]
    try:
        codes = read_json(file) or {}
        if codes.get(project.profile) == now:
            return None
        result = outdated(project, now[1])
        write_json(file, {**codes, project.profile: now})
    except (WorkError, OSError):
        return None
    return result if result.stale else None


def outdated(project: Project, evaluates: str) -> Outdated:
    """The profile's rows that other code trained, or that code other than `evaluates` evaluated."""
    stale, rows, seconds = 0, 0, 0.0
    for model, method in project.grid:
        newest = [cells.latest(project.data, CellKey(model, method, seed)) for seed in project.settings.seeds]
        good = [attempt for attempt in newest if attempt and attempt.status == "ok"]
        older = [one for one in good if _is_older(one, project.code_of(method), evaluates)]
        rows, stale = rows + bool(good), stale + bool(older)
        seconds += sum(_seconds(older))
    return Outdated(stale, rows, seconds / 3600)


def _is_older(attempt: Attempt, trains: str, evaluates: str) -> bool:
    measured = [one for one in attempt.evaluations() if one.ok][-1:]
    codes = {one.result.fingerprints.get("evaluation_code") for one in measured}
    return attempt.result.fingerprints.get("code") != trains or bool(codes - {evaluates})


def _seconds(attempts: Iterable[Attempt]) -> Iterable[float]:
    for attempt in attempts:
        good = [one.result for one in attempt.evaluations() if one.ok][-1:]
        yield sum(result.seconds or 0.0 for result in (attempt.result, *good))
