"""Cells on disk: cells/<model>/<method>/<seed>/<attempt>/ with spec.json, state.json, result.json,
curve.jsonl, model/.

An attempt is never overwritten. Its status is always read from disk: from the result; without one,
from the state of the parent while that lives; else it is `lost`.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.lake.files import read_jsonl
from pipelines.lake.paths import DataRoot
from pipelines.lake.run_ids import STAMP
from pipelines.runs.result import RunResult, result_in
from pipelines.runs.spec import RunSpec, spec_in
from pipelines.runs.status import Status


@dataclass(frozen=True, order=True)
class CellKey:
    model: str
    method: str
    seed: int

    def folder(self, data: DataRoot) -> Path:
        return data.cells / self.model / self.method / str(self.seed)

    def __str__(self) -> str:
        return f"{self.model} × {self.method} (seed {self.seed})"


@dataclass(frozen=True)
class Attempt:
    """One try at a cell. `run_id` is unique across all cells and sorts by time."""

    key: CellKey
    folder: Path

    @property
    def run_id(self) -> str:
        return self.folder.name

    @cached_property
    def spec(self) -> RunSpec:
        return spec_in(self.folder)

    @cached_property
    def result(self) -> RunResult:
        """The result; without one, the status and the measurements so far."""
        return result_in(self.folder)

    @property
    def status(self) -> Status:
        return self.result.status

    @property
    def retimes(self) -> str | None:
        """The good attempt whose speed this one measures again; None for an ordinary attempt."""
        return self.spec.more.get("retimes")

    @property
    def counts(self) -> bool:
        """Whether the attempt may represent its cell.

        A re-timing that did not end ok leaves that to the good attempt before it.
        """
        return self.retimes is None or self.status == "ok"

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    def curve(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "curve.jsonl")

    def evaluations(self) -> list["Evaluation"]:
        """The evaluations of this attempt, oldest first."""
        folder = self.folder / "evaluations"
        return [Evaluation(self, path) for path in sorted(folder.iterdir())] if folder.exists() else []


@dataclass(frozen=True)
class Evaluation:
    attempt: Attempt
    folder: Path

    @cached_property
    def spec(self) -> RunSpec:
        return spec_in(self.folder)

    @cached_property
    def result(self) -> RunResult:
        return result_in(self.folder)

    @property
    def ok(self) -> bool:
        return self.result.ok

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint from the result; without one, that from the spec."""
        return self.result.fingerprints.get("evaluation") or self.spec.fingerprints.get("evaluation")

    def answers(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "answers.jsonl")


def attempts(data: DataRoot, key: CellKey) -> list[Attempt]:
    """The attempts at a cell, oldest first."""
    folder = key.folder(data)
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
    return [Attempt(key, path) for path in folders]


def all_attempts(data: DataRoot) -> Iterator[Attempt]:
    """Every attempt ever, by cell, oldest first."""
    for folder in sorted(data.cells.glob("*/*/*")):
        if folder.is_dir() and folder.name.lstrip("-").isdigit():
            yield from attempts(data, CellKey(folder.parent.parent.name, folder.parent.name, int(folder.name)))


def latest(data: DataRoot, key: CellKey) -> Attempt | None:
    """The attempt that represents the cell: the newest that counts."""
    return newest_that_counts(attempts(data, key))


def newest_that_counts(candidates: Sequence[Attempt]) -> Attempt | None:
    """The newest attempt that counts; `candidates` are ordered oldest first."""
    return next((one for one in reversed(candidates) if one.counts), None)


def failed_retiming(data: DataRoot, key: CellKey) -> Attempt | None:
    """The newest attempt if it is a re-timing that ended, but not ok; else None."""
    newest = attempts(data, key)[-1:]
    return next((one for one in newest if not one.counts and one.status not in ("queued", "running")), None)


def start_time(attempt: Attempt) -> datetime:
    """The start time from the attempt's result, else from its id, else the epoch."""
    with suppress(ValueError):
        began = datetime.fromisoformat(str(attempt.result.started_at))
        return began if began.tzinfo else began.replace(tzinfo=UTC)
    with suppress(ValueError):
        return datetime.strptime(attempt.run_id.split("-")[0] + "000", STAMP).replace(tzinfo=UTC)
    return datetime.fromtimestamp(0, UTC)
