"""Run launcher for a single machine: Dagster's default, plus detection of dead run processes.

Dagster's default launcher has no such check. After a reboot a run would stay "started" forever and
keep its pool slot. dagster.yaml selects this launcher; the daemon's run monitoring calls it.
"""

from typing import Any

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from assets.instance import owner_of
from pipelines.hardware.machine import is_alive, process_is_alive

# Maximum time between a run's start and the event with its process id.
START_SECONDS = 120


class WatchedRunLauncher(DefaultRunLauncher):
    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the process that executes `run` is alive on this machine."""
        if owner := owner_of(run):
            pid, alive = owner["pid"], is_alive(owner)
        elif process := _process_of(self._instance, run):
            pid, alive = process[0], process_is_alive(*process, within=START_SECONDS)
        else:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if alive:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, f"process {pid} is gone: killed, or the machine was restarted")


def _process_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[int, float] | None:
    """Process id and start of the process that executes the run, from Dagster's event."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event: Any = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event and event.engine_event_data else None
        if pid is not None and "Started process for run" in (event.message or ""):
            return int(pid.value), entry.timestamp
    return None
