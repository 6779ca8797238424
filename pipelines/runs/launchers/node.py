"""The node's half of a run on a cluster: `python -m pipelines.runs.launchers.node FOLDER`.

The driver writes an order into FOLDER/job.json. The run's own command runs here like on the
driver's machine, under its budget and its time limit. Its ending becomes the file ended.json. Every
node must see FOLDER under the same path.
"""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.hardware import machine
from pipelines.lake import disk
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import PROJECT
from pipelines.runs import trackers
from pipelines.runs.command import CellCommand, Ending
from pipelines.runs.fitting import run_fitted
from pipelines.runs.launchers import pipes
from pipelines.runs.launchers.chosen import launcher_on
from pipelines.runs.process import end_as_interrupt
from pipelines.runs.spec import RunSpec, spec_in
from pipelines.runs.worker import package_versions

ORDER, ENDED, STOP = "job.json", "ended.json", "stop.json"
# Exit codes that a launcher turns into messages.
NO_ORDER, VERSION_MISMATCH, INTERRUPTED = 71, 72, 130
Json = dict[str, Any]


class StopRequestedError(Exception):
    """The driver wants the run to end."""


class Signals:
    """The driver's request to stop.

    This class looks into a shared folder; the sending thread asks a storage.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / STOP
        self.stop_request: Json | None = None

    def look(self) -> None:
        """Raises StopRequestedError if the driver has requested the end."""
        self.stop_request = self.stop_request or read_json(self._file)
        if self.stop_request:
            raise StopRequestedError


def order(command: CellCommand, spec: RunSpec, *, threads: int | None) -> Json:
    """The order for a node to run `command` with that spec. `threads` None: no limit."""
    return {
        "module": command.arguments[1],
        "env": {key: value for key, value in command.env.items() if key == pipes.CONTEXT},
        "threads": threads, "report_to": list(spec.report_to),
        "memory_budget": round(spec.memory_budget_gb * 1e9) * spec.devices if spec.memory_budget_gb else None,
        "time_limit": spec.time_limit_minutes * 60 if spec.time_limit_minutes else None,
        "grace_seconds": command.grace_seconds, "devices": spec.devices, "sharding": spec.sharding, "versions": versions(),
    }  # fmt: skip


def in_shared_folder(folder: Path, advice: str, *, code: Path = PROJECT) -> int:
    """Run the order in `folder`; `advice` is for a node that finds none.

    Raises:
        UnavailableError: there is no order.
    """
    order = read_json(folder / ORDER)
    if order is None:
        raise UnavailableError(f"{socket.gethostname()} sees no {folder}/{ORDER}: {advice}")
    return run(order, folder, Signals(folder), code=code)


def run(order: Json, folder: Path, signals: Signals, *, code: Path = PROJECT) -> int:
    """Run the order's command in `folder` with the sources in `code`, and write ended.json.

    Returns the job's exit code.
    """
    if why := version_mismatch(order["versions"]):
        write_ended(folder, order, Ending(VERSION_MISMATCH, "refused", False, 0, 0.0, f"{socket.gethostname()}: {why}"))
        return VERSION_MISMATCH
    env = {**trackers.keys(order["report_to"]), **order["env"], **_threads_of(order), **_messages_to(order, folder)}
    os.chdir(folder)
    command = CellCommand(
        arguments=["-m", order["module"], str(folder)],
        folder=folder,
        env={**env, "PYTHONPATH": str(code)},
        memory_budget=order["memory_budget"] if machine.device_slug() == "cpu" else None,
        time_limit=order["time_limit"],
        grace_seconds=order["grace_seconds"],
        devices=order["devices"],
    )
    try:
        launcher = launcher_on(order["devices"])
        ending = run_fitted(launcher, command, spec_in(folder), on_tick=signals.look, say=lambda _: None)
    except StopRequestedError:
        ending = Ending(INTERRUPTED, "interrupted", False, 0, 0.0, "told to end by who started it")
    write_ended(folder, order, ending)
    return 0 if ending.exit_code in (0, 3) else max(1, abs(ending.exit_code) % 256)


def write_ended(folder: Path, order: Json, ending: Ending) -> None:
    where = {"device": machine.device_class(order["devices"], order["sharding"]), "host": socket.gethostname()}
    disk.release_space(folder)
    write_json(folder / ENDED, {**asdict(ending), **where})


def ending_in(folder: Path) -> Ending | None:
    """The ending of the run in `folder` that its node wrote, or None."""
    record = read_json(folder / ENDED)
    return Ending(**{name: record[name] for name in Ending.__dataclass_fields__}) if record else None


def device_in(folder: Path) -> str | None:
    """The device that the run in `folder` used."""
    return (read_json(folder / ENDED) or {}).get("device")


def versions() -> dict[str, str]:
    """The versions that must be equal on the driver and on a node: Python's minor one, and those of
    the computing packages."""
    packages = {name: version.split("+")[0] for name, version in package_versions().items()}
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **packages}


def version_mismatch(driver: Mapping[str, str]) -> str | None:
    """A message on the versions in which this node differs from the driver, or None."""
    here = versions()
    names = [name for name in {**driver, **here} if driver.get(name) != here.get(name)]
    if not names:
        return None
    has = ", ".join(f"{name} {here.get(name, 'not installed')}" for name in names)
    wants = ", ".join(f"{name} {driver.get(name, 'not installed')}" for name in names)
    where = Path(sys.executable)
    return f"{where} has {has}; the driver has {wants}: install the driver's requirements.lock there, or set its python"


def _threads_of(order: Json) -> dict[str, str]:
    """The variable that limits threads to the requested cores."""
    return {"OMP_NUM_THREADS": str(order["threads"])} if order["threads"] else {}


def _messages_to(order: Json, folder: Path) -> dict[str, str]:
    """The variables that make the child write Dagster messages into the attempt's folder, if a
    Dagster step listens."""
    return pipes.messages_into(folder / pipes.FILE) if pipes.CONTEXT in order["env"] else {}


def main() -> int:
    end_as_interrupt()
    try:
        return in_shared_folder(
            Path(sys.argv[1]), "the data root must be a folder that every node sees under the same path"
        )
    except UnavailableError as error:
        print(error, file=sys.stderr, flush=True)
        return NO_ORDER
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
