"""A cell's child without a separate process: it saves seconds per test, and a test can end it at a
chosen moment."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.clean import clean as cleaning
from pipelines.clean.read import raw_records
from pipelines.evaluate.child import evaluate_cell
from pipelines.extras.export.child import export_cell
from pipelines.extras.export.measure import measure_format
from pipelines.extras.tune.child import try_rate
from pipelines.runs.cells import Attempt
from pipelines.runs.command import CellCommand, RunningCommand
from pipelines.runs.run import RunHooks
from pipelines.runs.worker import Worker
from pipelines.train.cell import train
from pipelines.train.trainer.child import train_cell
from tests.project import TinyProject

WORK = {
    "pipelines.train.trainer.child": train_cell,
    "pipelines.extras.tune.child": try_rate,
    "pipelines.evaluate.child": evaluate_cell,
    "pipelines.extras.export.child": export_cell,
    "pipelines.extras.export.measure": measure_format,
}


class KilledError(BaseException):
    """Ends the child's work at once, as SIGKILL would: none of its handlers finishes."""


@dataclass
class Ended(RunningCommand):
    """A command that has already run."""

    exit_code: int

    def poll(self) -> int:
        return self.exit_code

    def stop(self, *, grace_seconds: float = 0) -> None:
        pass


class WatchedWorker(Worker):
    """A worker that calls `at_point` with each new point of the curve."""

    at_point: Callable[["WatchedWorker", dict[str, Any]], None]

    def point(self, row: dict[str, Any], *, quietly: bool = False) -> None:
        super().point(row, quietly=quietly)
        if not quietly:
            self.at_point(self, row)

    def ask_to_stop(self) -> None:
        self._asked_to_stop = True


class InProcess:
    """A launcher that runs the child here; `at_point(worker, row)` may raise KilledError or stop
    it."""

    def __init__(self, at_point: Callable[[WatchedWorker, dict[str, Any]], None] = lambda _worker, _row: None) -> None:
        self._at_point = at_point

    def start(self, command: CellCommand) -> Ended:
        (command.folder / "log.txt").touch()
        worker = WatchedWorker(command.folder)
        worker.at_point = self._at_point
        before = signal.getsignal(signal.SIGTERM)
        try:
            return Ended(worker.run(WORK[command.arguments[1]]))
        except KilledError:
            return Ended(-signal.SIGKILL)
        finally:
            signal.signal(signal.SIGTERM, before)


def kill_at(step: int) -> InProcess:
    """Kill the child when the point of `step` is on the curve."""

    def at_point(_worker: WatchedWorker, row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise KilledError

    return InProcess(at_point)


def stop_at(step: int) -> InProcess:
    """Send the child SIGTERM when the point of `step` is on the curve."""

    def at_point(worker: WatchedWorker, row: dict[str, Any]) -> None:
        if row["step"] == step:
            worker.ask_to_stop()

    return InProcess(at_point)


def trained(project: TinyProject, method: str, launcher: InProcess | None = None) -> Attempt:
    """The cell's newest attempt, trained here even if the cell was current."""
    hooks = RunHooks(say=lambda _message: None, launcher=launcher or InProcess())
    return train(project.resolved(), project.key(method), force=True, hooks=hooks)[0]


def clean_for(project: TinyProject) -> TinyProject:
    """Make the project's examples."""
    stage = project.now()
    cleaning.clean(stage.data, raw_records(stage.data, stage.experiments), stage.experiments.cleaning)
    return project
