"""Cells as batch jobs of a Slurm cluster, through Slurm's own commands: sbatch, squeue, scancel,
sacct and sinfo.

The data root must be a folder that every node sees under the same path. The job runs
`pipelines.runs.launchers.node`. Its ended.json takes precedence over Slurm's report. job.json in
the attempt's folder names the job, so that a later run finds it instead of starting a second one.
"""

import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import PROJECT
from pipelines.runs.command import CellCommand, Ending, Placement, Reason, RunningCommand
from pipelines.runs.launchers import pipes
from pipelines.runs.launchers.driver import ClusterLauncher, job_name, predicted_gb
from pipelines.runs.launchers.node import ENDED, INTERRUPTED, NO_ORDER, ORDER, STOP, ending_in, order
from pipelines.runs.process import KEYS
from pipelines.runs.spec import CHILD, STATE, RunSpec, spec_in
from pipelines.settings.launchers import Slurm

# Slurm's own clients give up after 9 to 20 s if the controller does not answer.
COMMAND_SECONDS = 60.0
# Interval of looks into the attempt's folder.
LOOK_SECONDS = 0.5
# Interval of calls of squeue, each of which costs the controller something.
ASK_SECONDS = 5.0
# After this time without an answer of the controller or a change in the folder, the job is
# unreachable.
SILENCE_SECONDS = 30.0
# A network file system may show ended.json this much later than Slurm reports the end.
LATE_SECONDS = 10.0
# Time for the cell to save its work, then for scancel to end it.
STOP_SECONDS, CANCEL_SECONDS = 6.0, 4.0
# Time for an abandoned job to end.
GONE_SECONDS = 15.0
# A job that waits longer than the first is reported as waiting, and again at the interval of the
# second.
WAIT_SECONDS, SAY_SECONDS = 3.0, 60.0
# Memory of the process beside the child. Slurm ends a job that uses more memory than it requested.
NODE_HALF_GB = 0.5
# Slurm's time limit exceeds ours by this much, so that the node's half ends the cell first and
# cleanly.
SPARE_MINUTES = 5

# Variables of the driver that the job gets beside the environment of a login on the node. None of
# them holds a key.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HF_HOME", "HF_HUB_OFFLINE", "OMP_WAIT_POLICY")
# Messages of Slurm's commands when the controller does not answer.
SILENT = (
    "Unable to contact", "Socket timed out", "Connection refused", "connect failure", "configuration source",
    "cannot stat file", "Zero Bytes were transmitted", "Protocol authentication error",
)  # fmt: skip
# Job states.
LOST = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED")
CANCELLED = ("CANCELLED", "DEADLINE", "REVOKED")
OVER = (*LOST, *CANCELLED, "COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "LAUNCH_FAILED", "RECONFIG_FAIL")
# Messages that slurmstepd writes into the job's output.
OUT_OF_MEMORY = ("exceeded memory limit", "oom-kill event")
# Slurm's own "signal" for a job whose output file cannot be opened.
NO_OUTPUT = -53
# Reasons for which an accepted job waits forever, and what to change.
NEVER = {
    "PartitionTimeLimit": "the partition allows less time: lower training.time_limit_minutes",
    "PartitionConfig": "no node of the partition has so much: lower slurm.cpus, slurm.gpus or slurm.memory_gb",
    "JobHeldUser": "it is held: `scontrol release` lets it go",
}
# Options that choose the machine that measures a cell.
CHOOSE_NODES = ("--constraint", "--nodelist", "--prefer")
SHARE = "the data root must be a folder that every node sees under the same path"
Json = dict[str, Any]


class SlurmError(UnavailableError):
    """A command of Slurm is not installed, or the partition does not exist."""


class RefusedError(SlurmError):
    """Slurm refuses the request."""


class SilentError(SlurmError):
    """Slurm's controller does not answer. It may still have accepted the request."""


@dataclass(frozen=True)
class Job:
    """A job as Slurm reports it. `exit_code` is negative for a signal."""

    id: str
    state: str
    reason: str
    node: str
    exit_code: int

    @property
    def over(self) -> bool:
        return self.state in OVER


@dataclass(frozen=True)
class Request:
    """The resources that a job requests, and for how long; None for Slurm's default."""

    cpus: int
    gpus: int
    memory_mb: int | None
    minutes: int | None

    def options(self) -> list[str]:
        return [
            f"--cpus-per-task={self.cpus}",
            *([f"--gres=gpu:{self.gpus}"] if self.gpus else []),
            *([f"--mem={self.memory_mb}M"] if self.memory_mb else []),
            *([f"--time={self.minutes}"] if self.minutes else []),
        ]

    def in_words(self) -> str:
        return ", ".join(
            [
                f"{self.cpus} CPU",
                *([f"{self.gpus} GPU"] if self.gpus else []),
                *([f"{self.memory_mb * 2**20 / 1e9:.1f} GB"] if self.memory_mb else []),
                *([f"{self.minutes} minutes"] if self.minutes else []),
            ]
        )


def run(command: str, *arguments: str) -> str:
    """The output of a command of Slurm.

    Raises:
        SilentError: the controller does not answer.
        RefusedError: Slurm refuses.
        SlurmError: the command is not installed.
    """
    # A driver that is a job itself has SLURM_* variables, which would act as options of the new
    # job.
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(KEYS) and (not name.startswith("SLURM_") or name in ("SLURM_CONF", "SLURM_CLUSTERS"))
    }
    try:
        process = subprocess.run(
            [command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", env=env,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(
            f"{command} is not installed on this machine; launcher slurm needs Slurm's commands: run featherweight where "
            "`sinfo` works (a login node), or set another launcher in experiments.yaml"
        ) from None
    except subprocess.TimeoutExpired:
        raise SilentError(f"{command} did not answer within {COMMAND_SECONDS:g} s; {_advice()}") from None
    if process.returncode == 0:
        return process.stdout
    words = "; ".join(line.strip() for line in process.stderr.splitlines() if line.strip())
    words = words or f"{command} ended with exit code {process.returncode}"
    if any(phrase in words for phrase in SILENT):
        raise SilentError(f"Slurm's controller does not answer ({words}); {_advice()}")
    raise RefusedError(words)


def _advice() -> str:
    return "`scontrol ping` says whether it is up; SLURM_CONF names the cluster's slurm.conf"


def submit(name: str, arguments: Sequence[str]) -> str:
    """Submit a job with that name; returns its id."""
    try:
        return run("sbatch", "--parsable", f"--job-name={name}", *arguments).strip().split(";")[0]
    except SilentError as error:
        # A controller that answers too late may still have accepted the job.
        job = None if "connect failure" in str(error) else find(name)
        if job is None:
            raise
        return job.id


def find(name: str) -> Job | None:
    """The newest job of that name that the controller knows."""
    jobs = _jobs("--me", f"--name={name}")
    return max(jobs, key=lambda job: int(job.id), default=None)


def look_up(job_id: str) -> Job | None:
    """The job from the controller.

    It forgets jobs (MinJobAge, 5 minutes by default); then the job from accounting.
    """
    try:
        jobs = _jobs(f"--jobs={job_id}")
    except RefusedError as error:
        if "Invalid job id" not in str(error):
            raise
        jobs = []
    return jobs[0] if jobs else _accounted(job_id)


def _jobs(*which: str) -> list[Job]:
    fields = "JobID:|,State:|,Reason:|,NodeList:|,exit_code:|"
    lines = run("squeue", "--noheader", "--states=all", f"--Format={fields}", *which).splitlines()
    return [_job(*line.strip().split("|")[:5]) for line in lines if line.count("|") >= 5]


def _job(job_id: str, state: str, reason: str, node: str, status: str) -> Job:
    # In the encoding of wait().
    raw = int(status)
    return Job(job_id, state, reason, node, -(raw & 0x7F) or raw >> 8)


def _accounted(job_id: str) -> Job | None:
    """The job from accounting; None if it is unknown there, or accounting is disabled."""
    fields = "State,NodeList,ExitCode"
    try:
        output = run("sacct", "--noheader", "--parsable2", "--allocations", f"--format={fields}", f"--jobs={job_id}")
    except RefusedError:
        return None
    if not output.strip():
        return None
    state, node, exit_status = output.splitlines()[0].split("|")
    code, _, signal = exit_status.partition(":")
    # A state may have more words, such as "CANCELLED by 1000".
    return Job(job_id, state.split()[0], "", node, -int(signal or 0) or int(code))


@dataclass(frozen=True)
class Partition:
    """The nodes of a partition that have the same resources and state."""

    name: str
    gres: str
    nodes: str
    state: str
    cpus: str
    memory_mb: str

    def in_words(self) -> str:
        gpus = f", {self.gres}" if "gpu" in self.gres else ""
        return f"{self.nodes} {self.state} with {self.cpus} CPU, {self.memory_mb} MB{gpus}"


def partitions(name: str | None) -> list[Partition]:
    """The nodes of the partition with that name; None: of the default one.

    Raises:
        SlurmError: the partition does not exist.
    """
    lines = run("sinfo", "--noheader", "--format=%P|%G|%D|%T|%c|%m").splitlines()
    every = [Partition(*line.strip().split("|")) for line in lines if line.count("|") == 5]
    if name is None:
        return [one for one in every if one.name.endswith("*")] or every
    # Like sbatch, accept several names.
    names = name.split(",")
    if matches := [one for one in every if one.name.rstrip("*") in names]:
        return matches
    available = ", ".join(dict.fromkeys(one.name.rstrip("*") for one in every))
    raise SlurmError(f"Slurm has no partition {name!r}; set slurm.partition to one of {available}")


class SlurmLauncher(ClusterLauncher):
    """Starts a cell's command as a batch job with the resources in the settings `Slurm`."""

    settings: Slurm

    def machine(self, placement: Placement) -> str:
        settings = self.settings
        constraints = [option for option in settings.options if option.startswith(CHOOSE_NODES)]
        where = " ".join([settings.partition or "default partition", *constraints])
        cards = "cards as there are" if settings.gpus is None else f"{settings.gpus} cards"
        return f"slurm: {where}, {settings.cpus} cores, {cards}{placement.in_words()}"

    def describe(self) -> str:
        version = run("sbatch", "--version").strip()
        nodes = partitions(self.settings.partition)
        names = ", ".join(dict.fromkeys(one.name.rstrip("*") for one in nodes))
        return f"{version}, partition {names}: {'; '.join(one.in_words() for one in nodes)}"

    @staticmethod
    def is_under_way(folder: Path) -> bool:
        if (folder / ENDED).exists():
            return True
        try:
            job = _job_in(folder)
        except UnavailableError:
            return False
        return job is not None and (not job.over or job.state == "COMPLETED")

    @staticmethod
    def end(folder: Path) -> None:
        try:
            job = _job_in(folder)
            if job and not job.over:
                run("scancel", job.id)
            # The caller resumes from the last checkpoint, which the cell may be writing now.
            deadline = time.monotonic() + GONE_SECONDS
            while job and not job.over and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
                job = look_up(job.id)
        except UnavailableError:
            return
        _note_order(folder, over=True)

    def start(self, command: CellCommand) -> "SlurmCommand":
        """Raises UnavailableError if Slurm is missing, does not answer, or refuses."""
        folder, job_id = command.folder, ""
        if not (folder / ENDED).exists():
            if job := _job_in(folder):
                self.say(f"{job_name(folder)} is under way as Slurm's job {job.id}: found again, not started twice")
            job_id = job.id if job else self._submit(command)
            _note_order(folder, id=job_id)
        return SlurmCommand(folder, job_id, pipes.Carrier(command.env, folder / pipes.FILE), self.say)

    def _submit(self, command: CellCommand) -> str:
        """Write the order and submit the job; returns the id of the job."""
        folder, settings, spec = command.folder, self.settings, spec_in(command.folder)
        name, request = job_name(folder), self._request(spec, folder)
        record = order(command, spec, threads=None if request.gpus else settings.cpus)
        write_json(folder / ORDER, {**record, "job": name, "asked": asdict(request)})
        (folder / "log.txt").touch()
        script = folder / "job.sh"
        script.write_text(batch_script(settings.python or sys.executable, folder), encoding="utf-8")
        places = {"partition": settings.partition, "account": settings.account, "qos": settings.qos}
        arguments = [
            "--export=NONE", "--no-requeue", "--nodes=1", "--ntasks=1", f"--chdir={folder}",
            f"--output={str(folder / 'log.txt').replace('%', '%%')}", "--open-mode=append",
            *request.options(), *(f"--{option}={value}" for option, value in places.items() if value),
            *settings.options, str(script),
        ]  # fmt: skip
        try:
            return submit(name, arguments)
        except RefusedError as error:
            _note_order(folder, over=True)
            raise RefusedError(
                f"Slurm refuses {name}, which asks for {request.in_words()}: {error}; set partition, account, qos, cpus, "
                "gpus or memory_gb of the profile's slurm: in experiments.yaml to what the cluster has (`sinfo -Nl`)"
            ) from None

    def _request(self, spec: RunSpec, folder: Path) -> Request:
        settings, devices = self.settings, spec.devices
        gpus = settings.gpus
        if gpus is None:
            gpus = devices if any("gpu" in one.gres for one in partitions(settings.partition)) else 0
        memory = settings.memory_gb
        if memory is None and not gpus and (predicted := predicted_gb(spec, folder)):
            memory = predicted + NODE_HALF_GB
        minutes = spec.time_limit_minutes
        return Request(
            cpus=settings.cpus * (1 if gpus else devices),
            gpus=gpus,
            memory_mb=math.ceil(memory * 1e9 / 2**20) if memory else None,
            minutes=math.ceil(minutes) + SPARE_MINUTES if minutes else None,
        )


def batch_script(python: str, folder: Path) -> str:
    """The script of the job.

    It uses `exec`, because Slurm sends SIGTERM only to the script's own process.
    """
    variables = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    variables["PYTHONPATH"] = str(PROJECT)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    starts = f"exec {shlex.quote(python)} -m pipelines.runs.launchers.node {shlex.quote(str(folder))}"
    return "\n".join(["#!/bin/sh", *exports, starts, ""])


def _note_order(folder: Path, **changed: Any) -> None:
    if order := read_json(folder / ORDER):
        write_json(folder / ORDER, {**order, **changed})


def _job_in(folder: Path) -> Job | None:
    """The job of the run in `folder`, or None if there is none, or if a driver has seen it end.

    Found by its id, or by its name if the driver died before it knew the id.
    """
    order = read_json(folder / ORDER)
    if order is None or order.get("over"):
        return None
    return look_up(order["id"]) if order.get("id") else find(order["job"])


class SlurmCommand(RunningCommand):
    """A job that this process watches.

    The node's half enforces its limits; `poll` looks into the folder and asks squeue.
    """

    def __init__(self, folder: Path, job_id: str, carrier: pipes.Carrier, say: Callable[[str], None]) -> None:
        self._folder, self._id, self._carrier, self._say = folder, job_id, carrier, say
        self._ending: Ending | None = None
        self._job: Job | None = None
        self._looked = self._asked = self._over_since = 0.0
        self._began = self._heard = time.monotonic()
        self._said = -math.inf
        self._signs: list[float] = []

    def poll(self) -> int | None:
        if self._ending is None and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
            self._looked = time.monotonic()
        return self._ending.exit_code if self._ending else None

    def ending(self) -> Ending | None:
        return self._ending

    def stop(self, *, grace_seconds: float = 0) -> None:
        """Stop the job; returns after STOP_SECONDS + CANCEL_SECONDS at the latest."""
        if self._ending is not None and self._ending.reason != "unreachable":
            return
        try:
            # The cell has started, so there is work to save.
            if grace_seconds and (self._folder / CHILD).exists():
                write_json(self._folder / STOP, {"grace_seconds": grace_seconds})
                self._look_until(time.monotonic() + min(grace_seconds, STOP_SECONDS))
            if not self._over:
                run("scancel", self._id)
                self._look_until(time.monotonic() + CANCEL_SECONDS)
        except UnavailableError as error:
            self._say(f"Slurm's job {self._id} could not be told to stop: {error}")

    @property
    def _over(self) -> bool:
        known = self._ending is not None and self._ending.reason != "unreachable"
        return known or bool(self._over_since)

    @property
    def _is_lost(self) -> bool:
        return self._job is None or self._job.state in LOST

    def _look_until(self, deadline: float) -> None:
        while not self._over and time.monotonic() < deadline:
            self._look(asks_every=LOOK_SECONDS)
            time.sleep(0.1)

    def _look(self, *, asks_every: float | None = None) -> None:
        """Look for ended.json first, then ask Slurm."""
        self._carrier.carry()
        if ending := ending_in(self._folder):
            # We told the cell to end, because its node counts as lost.
            lost = bool(self._over_since) and self._is_lost and ending.reason == "interrupted"
            self._finish(self._without_last_word() if lost else ending)
            return
        if self._over_since:
            if time.monotonic() - self._over_since > LATE_SECONDS:
                self._finish(self._without_last_word())
            return
        self._notice_signs()
        if time.monotonic() - self._asked >= (ASK_SECONDS if asks_every is None else asks_every):
            self._ask()
            self._asked = time.monotonic()

    def _notice_signs(self) -> None:
        """Note whether the cell still writes files. If it does, it is alive even if the controller
        is silent.

        The restart of a controller takes minutes on large clusters.
        """
        files = (self._folder / name for name in (CHILD, "curve.jsonl", "log.txt"))
        signs = [path.stat().st_mtime for path in files if path.exists()]
        if signs != self._signs:
            self._signs, self._heard = signs, time.monotonic()

    def _ask(self) -> None:
        try:
            self._job = look_up(self._id)
        except UnavailableError as error:
            silent = time.monotonic() - self._heard
            if silent > SILENCE_SECONDS:
                detail = f"for {silent:.0f} s {error}. Its job {self._id} may go on there until a later run ends it"
                self._finish(self._ended("unreachable", detail))
            return
        self._heard = time.monotonic()
        if self._job is None or self._job.over:
            self._over_since = time.monotonic()
            if self._is_lost:
                # Slurm lost contact with the node, but the cell may still run and write into this
                # folder.
                write_json(self._folder / STOP, {"grace_seconds": 0})
        elif self._job.state in ("PENDING", "CONFIGURING"):
            self._note_waiting(self._job)
        else:
            self._note_running(self._job)

    def _note_waiting(self, job: Job) -> None:
        now = time.monotonic()
        if now - self._began > WAIT_SECONDS and now - self._said > SAY_SECONDS:
            self._said = now
            waiting = why_it_waits(job, read_json(self._folder / ORDER) or {})
            self._say(waiting)
            self._state(status="queued", waiting=waiting)

    def _note_running(self, job: Job) -> None:
        state = read_json(self._folder / STATE) or {}
        if state.get("status") != "running" or state.get("node") != job.node:
            self._began = time.monotonic()
            self._state(status="running", waiting=None, node=job.node)

    def _state(self, **changed: Any) -> None:
        write_json(self._folder / STATE, {**(read_json(self._folder / STATE) or {}), **changed})

    def _ended(self, reason: Reason | None, detail: str | None = None, *, exit_code: int = -1) -> Ending:
        return Ending(exit_code, reason, False, 0, time.monotonic() - self._began, detail)

    def _asked_mb(self) -> int:
        return (read_json(self._folder / ORDER) or {}).get("asked", {}).get("memory_mb") or 0

    def _without_last_word(self) -> Ending:
        """The ending of a job without an ended.json, from Slurm's report."""
        job, log = self._job, self._last_lines()
        if job is None:
            return self._ended("node_lost", f"Slurm no longer knows job {self._id}, and its node wrote no ending")
        if job.state in LOST:
            return self._ended(
                "node_lost", f"Slurm ended job {job.id} on {job.node or '?'}: {job.state} ({job.reason})"
            )
        if job.state in CANCELLED or job.exit_code == INTERRUPTED:
            return self._ended("interrupted", f"Slurm's job {job.id} was cancelled from outside ({job.state})")
        if job.state == "TIMEOUT":
            return self._ended("time_limit", f"Slurm's time limit for job {job.id} ended it")
        if job.state == "OUT_OF_MEMORY" or any(words in log for words in OUT_OF_MEMORY):
            # Slurm ends a job that reaches its requested memory, so that is a lower bound of its
            # peak.
            return Ending(-9, None, True, self._asked_mb() * 2**20, time.monotonic() - self._began)
        if job.exit_code == NO_OUTPUT:
            return self._ended("refused", f"{job.node} cannot write {self._folder}/log.txt: {SHARE}")
        has_started = (self._folder / CHILD).exists()
        if job.exit_code == NO_ORDER or (not has_started and 0 < job.exit_code < 128):
            detail = f"Slurm's job {job.id} could not run it on {job.node} (exit code {job.exit_code}): {log}"
            return self._ended("refused", detail, exit_code=job.exit_code)
        return self._ended(None, exit_code=job.exit_code)

    def _last_lines(self) -> str:
        try:
            lines = (self._folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return " | ".join(lines[-3:])[-800:]

    def _finish(self, ending: Ending) -> None:
        self._ending = ending
        if ending.reason != "unreachable":
            _note_order(self._folder, over=True)


def why_it_waits(job: Job, order: Json) -> str:
    """The job's request and Slurm's reason for the wait, with advice if it would wait forever."""
    asks = Request(**order["asked"]).in_words() if "asked" in order else "what its options say"
    reason = "it has not looked at it yet" if job.reason in ("None", "") else job.reason
    advice = f" ({NEVER[job.reason]})" if job.reason in NEVER else ""
    return f"waiting for Slurm: job {job.id} ({order.get('job')}) asks for {asks}; reason: {reason}{advice}"


LAUNCHER = SlurmLauncher
