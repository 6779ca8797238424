"""Nights in one process: schedule and sensors decide, and their runs are executed here with tiny
models."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from assets import nightly, training
from assets.definitions import defs
from assets.project import partition_of
from pipelines.compare import compare
from pipelines.lake.files import read_json
from pipelines.runs import cells
from tests.in_process import InProcess
from tests.project import MODEL, TinyProject

FIRST = datetime(2026, 11, 23, 2)


@dataclass
class Nights:
    """A project and its nights.

    `launcher` runs the cells' children; `ran` lists the jobs and partitions of the last night,
    in order. For the sensor that follows the lake, the time is `later`.
    """

    project: TinyProject
    instance: dg.DagsterInstance
    launcher: Any = field(default_factory=InProcess)
    number: int = 0
    ran: list[str] = field(default_factory=list)
    after_run: Callable[[], None] | None = None
    later: timedelta = timedelta()
    cursors: dict[str, str | None] = field(default_factory=dict)

    def night(self) -> list[str]:
        """Run one whole night; returns what ran: `data`, `METHOD` for each cell, `publish`."""
        self.number += 1
        self.ran = []
        self.execute(self.begin())
        self.carry_on()
        return self.ran

    def begin(self) -> Sequence[dg.RunRequest]:
        """The requests of the schedule's tick for this night."""
        with self._repository() as repository:
            moment = FIRST + timedelta(days=self.number)
            context = dg.build_schedule_context(
                self.instance, scheduled_execution_time=moment, repository_def=repository
            )
            return defs.resolve_schedule_def("nightly").evaluate_tick(context).run_requests or []

    def carry_on(self) -> None:
        """Tick the sensor and execute its requests until the night has ended."""
        for _ in range(10):
            requests = self.tick("night_goes_on")
            if not requests:
                return
            assert not self.tick("lake_has_changed"), "a night publishes only once, at its end"
            self.execute(requests)
        raise AssertionError("the night does not end")

    def tick(self, sensor: str) -> Sequence[dg.RunRequest]:
        with self._repository() as repository:
            context = dg.build_sensor_context(
                self.instance, cursor=self.cursors.get(sensor), repository_def=repository, sensor_name=sensor
            )
            decided = defs.resolve_sensor_def(sensor).evaluate_tick(context)
            self.cursors[sensor] = decided.cursor
            return decided.run_requests or []

    def execute(self, requests: Sequence[dg.RunRequest]) -> None:
        for request in requests:
            name = request.job_name or "data"
            partition = request.partition_key
            assert partition is None or isinstance(partition, dg.MultiPartitionKey | str)
            self.ran.append(str(partition).split("|")[0] if partition else name)
            job = defs.resolve_job_def(name)
            job.execute_in_process(
                instance=self.instance,
                run_config=request.run_config,
                partition_key=partition,
                tags={k: v for k, v in request.tags.items() if not k.startswith("dagster/partition")},
                raise_on_error=False,
            )
            if self.after_run:
                self.after_run()
                self.after_run = None

    def record(self) -> dict[str, Any]:
        """The newest night's record."""
        newest = max((self.project.data.lake / "nights").glob("*.json"))
        return read_json(newest) or {}

    def cell(self, method: str, *, model: str = MODEL, **config: Any) -> dg.ExecuteInProcessResult:
        """Materialize one cell, like a click, with the launchpad's `config`."""
        op_config = {"config": config}
        return defs.resolve_job_def("training").execute_in_process(
            instance=self.instance,
            partition_key=partition_of(model, method),
            run_config={"ops": {"trained_model": op_config, "evaluation": op_config}},
            raise_on_error=False,
        )

    def statuses(self, method: str) -> list[str]:
        return [attempt.status for attempt in cells.attempts(self.project.data, self.project.key(method))]

    @contextmanager
    def _repository(self) -> Iterator[dg.RepositoryDefinition]:
        yield defs.get_repository_def()


@contextmanager
def nights(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    home = project.data.root / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        made = Nights(project, instance)
        monkeypatch.setattr(training, "PipesLauncher", lambda _context, _inner: made.launcher)
        monkeypatch.setattr(training, "tie_to_parent", lambda: None)
        monkeypatch.setattr(nightly, "_now", lambda: datetime.now(UTC) + made.later)
        # Predictions would start a process of their own each time.
        monkeypatch.setattr(compare, "keep_predictions", lambda _stage: None)
        yield made
