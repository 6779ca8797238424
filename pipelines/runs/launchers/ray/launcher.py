"""Cells as Ray jobs. job.json in the attempt's folder names the job, so that a later run watches it
instead of starting a second one."""

import json
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.lake.files import read_json, write_json
from pipelines.runs.command import CellCommand, Ending, Placement, RunningCommand
from pipelines.runs.launchers import pipes
from pipelines.runs.launchers.driver import ClusterLauncher, job_name, predicted_gb
from pipelines.runs.launchers.node import ENDED, ORDER, STOP, ending_in, order
from pipelines.runs.launchers.ray import code
from pipelines.runs.launchers.ray.jobs import Job, JobServer
from pipelines.runs.launchers.ray.parcel import Inbox, pack
from pipelines.runs.launchers.ray.store import Store, StoreError
from pipelines.runs.spec import RunSpec, spec_in
from pipelines.settings.launchers import Ray

LOOK_SECONDS = 0.5
# After this time without an answer of the job server, the cell counts as unreachable.
SILENCE_SECONDS = 30.0
# Time for ended.json to arrive here after Ray reports the end.
LATE_SECONDS = 5.0
# Time for a cell to save its work, then for Ray to end it, finally by force.
STOP_SECONDS, FORCE_SECONDS = 6.0, 3.0
SAY_SECONDS = 60.0
Json = dict[str, Any]


class RayLauncher(ClusterLauncher):
    """Starts a cell's command as a job of the cluster, on a node with the required resources, by
    the settings in `Ray`."""

    settings: Ray

    def machine(self, placement: Placement) -> str:
        gpus = self.settings.gpus
        cards = "cards as there are" if gpus is None else f"{gpus:g} cards"
        return f"ray: {self.settings.cpus:g} cores, {cards}{placement.in_words()}"

    def describe(self) -> str:
        address = self.settings.address
        return f"Ray {JobServer(address).version()} at {address}"

    @staticmethod
    def is_under_way(folder: Path) -> bool:
        return is_under_way(folder)

    @staticmethod
    def end(folder: Path) -> None:
        end(folder)

    def start(self, command: CellCommand) -> "RayCommand":
        """Raises UnavailableError, within seconds, if server or storage is unreachable."""
        folder, settings = command.folder, self.settings
        name = job_name(folder)
        server = JobServer(settings.address)
        store = Store(settings.storage) if settings.storage else None
        has_order = (folder / ORDER).exists()
        if not (has_order and (folder / ENDED).exists()):
            server.version()
            if not has_order or server.job(name) is None:
                self._submit(command, name, server, store)
            else:
                self.say(f"{name} is under way on {settings.address}: found again, not started twice")
        carrier = pipes.Carrier(command.env, folder / pipes.FILE)
        return RayCommand(name, folder, server, Inbox(store, name, folder) if store else None, carrier, self.say)

    def _submit(self, command: CellCommand, name: str, server: JobServer, store: Store | None) -> None:
        folder = command.folder
        spec = spec_in(folder)
        resources = self._asked(spec, folder, server)
        record = {
            **order(command, spec, threads=None if resources["num_gpus"] else max(1, int(self.settings.cpus))),
            "job": name, "address": self.settings.address, "storage": self.settings.storage, "asked": resources,
            "folder": str(folder.relative_to(spec.root)),
        }  # fmt: skip
        place = shlex.quote(str(folder))
        if store:
            store.check()
            node_spec, inputs = pack(spec.to_json(), store, folder)
            node_order = {**record, "spec": node_spec, "inputs": inputs}
            record["passing"] = [one["sha256"] for one in inputs if one["passing"]]
            store.write(f"jobs/{name}/{ORDER}", json.dumps(node_order).encode())
            place = f"{shlex.quote(store.url)} {name}"
        write_json(folder / ORDER, record)
        package = server.keep_package(*code.package())
        python = shlex.quote(self.settings.python)
        server.submit(name, f"exec {python} -m pipelines.runs.launchers.ray.job {place}", resources, package)

    def _asked(self, spec: RunSpec, folder: Path, server: JobServer) -> Json:
        """The resources to request: CPUs, GPUs, and bytes of memory without a GPU."""
        settings, devices = self.settings, spec.devices
        gpus = settings.gpus
        if gpus is None:
            gpus = devices if any(node.get("GPU") for node in server.nodes()) else 0
        memory = settings.memory_gb
        if memory is None and not gpus:
            memory = predicted_gb(spec, folder)
        return {
            "num_cpus": settings.cpus * (1 if gpus else devices),
            "num_gpus": gpus or None,
            "memory": round(memory * 1e9) if memory else None,
        }


class RayCommand(RunningCommand):
    """A job that this process watches.

    The node's half enforces its limits; `poll` fetches its output so far.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        server: JobServer,
        inbox: Inbox | None,
        carrier: pipes.Carrier,
        say: Callable[[str], None],
    ) -> None:
        self._name, self._folder, self._server, self._inbox = name, folder, server, inbox
        self._carrier, self._say = carrier, say
        self._ending: Ending | None = None
        self._looked, self._heard, self._over_since = 0.0, time.monotonic(), 0.0
        self._began, self._status, self._said = time.monotonic(), "", -SAY_SECONDS
        self._store_said = ""

    def poll(self) -> int | None:
        now = time.monotonic()
        if self._ending is None and now - self._looked >= LOOK_SECONDS:
            self._look()
            self._looked = time.monotonic()
        return self._ending.exit_code if self._ending else None

    def ending(self) -> Ending | None:
        return self._ending

    def stop(self, *, grace_seconds: float = 0) -> None:
        """Stop the job; returns when it is over, or within 10 seconds if it does not react."""
        if self._ending is not None and self._ending.reason != "unreachable":
            return
        try:
            if grace_seconds and self._status == "RUNNING":
                self._tell_to_stop(grace_seconds)
                self._look_until(time.monotonic() + min(grace_seconds, STOP_SECONDS))
            if self._ending is None or self._ending.reason == "unreachable":
                self._server.stop(self._name)
                self._look_until(time.monotonic() + FORCE_SECONDS)
        except UnavailableError as error:
            self._say(f"{self._name} could not be told to stop: {error}")

    def _tell_to_stop(self, grace_seconds: float) -> None:
        if self._inbox:
            self._inbox.tell_to_stop(grace_seconds)
        else:
            write_json(self._folder / STOP, {"grace_seconds": grace_seconds})

    def _look_until(self, deadline: float) -> None:
        """Watch until the deadline.

        A pending job is not waited for, since it ends only at the moment of its start.
        """
        while self._ending is None and self._status != "PENDING" and time.monotonic() < deadline:
            self._look()
            time.sleep(0.1)

    def _look(self) -> None:
        self._take()
        if ending := ending_in(self._folder):
            self._finish(ending)
            return
        try:
            job = self._server.job(self._name)
            self._heard = time.monotonic()
        except UnavailableError as error:
            silent = time.monotonic() - self._heard
            if silent > SILENCE_SECONDS:
                detail = f"for {silent:.0f} s {error}. Its job {self._name} may go on there until a later run ends it"
                self._finish(Ending(-1, "unreachable", False, 0, self._seconds(), detail))
            return
        if job is None:
            self._finish(
                self._lost(f"{self._server.address} no longer knows job {self._name}: was the cluster restarted?")
            )
        elif not job.over:
            self._note(job)
        elif not self._over_since:
            self._over_since = time.monotonic()
        elif time.monotonic() - self._over_since > (LATE_SECONDS if job.status == "SUCCEEDED" else 2 * LOOK_SECONDS):
            self._finish(self._ending_of(job))

    def _take(self) -> None:
        """Fetch what the node has sent.

        A storage that does not answer is reported once and tried again.
        """
        try:
            if self._inbox:
                self._inbox.take()
            self._store_said = ""
        except StoreError as error:
            if not self._store_said:
                self._say(f"{error}; trying again")
            self._store_said = str(error)
        self._carrier.carry()

    def _note(self, job: Job) -> None:
        """Note in state.json and report whether the job is queued (and why) or running."""
        now = time.monotonic()
        if job.status == "PENDING" and now - self._began > 3 and now - self._said > SAY_SECONDS:
            self._said = now
            waiting = why_it_waits(read_json(self._folder / ORDER) or {}, self._server)
            self._say(waiting)
            self._state(status="queued", waiting=waiting)
        if job.status == "RUNNING" and self._status != "RUNNING":
            self._began = now
            self._state(status="running", waiting=None, node=job.node)
        self._status = job.status

    def _state(self, **changed: Any) -> None:
        write_json(self._folder / "state.json", {**(read_json(self._folder / "state.json") or {}), **changed})

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _lost(self, detail: str) -> Ending:
        return Ending(-1, "node_lost", False, 0, self._seconds(), detail)

    def _ending_of(self, job: Job) -> Ending:
        """The ending of a job without an ended.json, from Ray's report."""
        lines = job.message.strip().splitlines() or [""]
        if job.node_died:
            why = next((line.strip() for line in lines if "died" in line.lower()), lines[0])
            return self._lost(f"node {job.node or '?'} died while it ran there ({why[:200]})")
        if job.status == "STOPPED":
            detail = "its Ray job was stopped from outside"
            return Ending(-1, "interrupted", False, 0, self._seconds(), detail)
        if job.exit_code is not None and (job.exit_code < 0 or job.exit_code > 128):
            return Ending(
                -1, "interrupted", False, 0, self._seconds(), f"its Ray job ended with exit code {job.exit_code}"
            )
        # Ray appends the output of the job.
        last = " | ".join(lines[-3:]) if job.exit_code is not None else " ".join(lines)
        detail = f"Ray could not run it: {last[-800:]}"
        return Ending(job.exit_code or 1, "refused", False, 0, self._seconds(), detail)

    def _finish(self, ending: Ending) -> None:
        self._ending = ending
        if ending.reason == "unreachable":
            return
        order = read_json(self._folder / ORDER) or {}
        write_json(self._folder / ORDER, {**order, "over": True})
        if self._inbox and not self._store_said:
            try:
                self._inbox.clear(order.get("passing", ()))
            except StoreError as error:
                self._say(f"left behind in the storage: {error}")


def why_it_waits(order: Mapping[str, Any], server: JobServer) -> str:
    """The job's request, and the resources of the cluster's nodes."""
    request = order.get("asked", {})
    wants = _resources(
        {"CPU": request.get("num_cpus"), "GPU": request.get("num_gpus"), "memory": request.get("memory")}
    )
    try:
        nodes = server.nodes()
    except (UnavailableError, KeyError, TypeError, ValueError):
        return f"waiting for the cluster: {order.get('job')} asks for {wants}"
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    fitting = [
        node for node in nodes if all(node.get(has, 0) >= (request.get(name) or 0) for has, name in names.items())
    ]
    have = "; ".join(_resources(node) for node in nodes) or "none"
    why = "every node that has so much is taken" if fitting else "no node has so much, so it waits until one joins"
    return f"waiting for the cluster: {order.get('job')} asks for {wants}; {why} (nodes: {have})"


def _resources(amounts: Mapping[str, Any]) -> str:
    parts = [f"{amounts[name]:g} {name}" for name in ("CPU", "GPU") if amounts.get(name)]
    parts += [f"{amounts['memory'] / 1e9:.1f} GB"] if amounts.get("memory") else []
    return ", ".join(parts) or "nothing"


def is_under_way(folder: Path) -> bool:
    """Whether the attempt or evaluation in `folder`, which nobody watches now, is still running as
    a job, or has ended with results to collect."""
    order = read_json(folder / ORDER)
    if order is None:
        return False
    if (folder / ENDED).exists():
        return True
    try:
        job = JobServer(order["address"]).job(order["job"])
    except UnavailableError:
        return False
    return job is not None and job.status in ("PENDING", "RUNNING", "SUCCEEDED")


def end(folder: Path) -> None:
    """End the job of an abandoned attempt, so that nothing runs twice.

    A cluster that is gone has ended it already.
    """
    order = read_json(folder / ORDER)
    if order is None or order.get("over"):
        return
    try:
        server = JobServer(order["address"])
        job = server.job(order["job"])
        if job and not job.over:
            server.stop(order["job"])
    except UnavailableError:
        return
    write_json(folder / ORDER, {**order, "over": True})
