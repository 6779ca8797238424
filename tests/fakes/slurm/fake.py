#!/usr/bin/env python3
"""Slurm's commands for quick tests: a job is a local process, and its state a file under
$FAKE_SLURM.

sbatch, squeue, scancel, sacct and sinfo are links to this file; put its folder first on PATH. They
know the options that the launcher uses, and refuse others. $FAKE_SLURM/scene.json, read again at
every step, holds any of:

    controller  "down": nothing answers; "late": sbatch's answer is lost, though the job is accepted
    refuse      the error message of sbatch, which then takes no job
    squeue      the error message of squeue in place of an answer
    pending     the reason why jobs wait
    node        "lost": jobs end as NODE_FAIL, and their processes are killed
    gres        the resources of the partition, such as gpu:2
    forget      the controller forgets jobs that have ended, so that only sacct knows them
    accounting  false: sacct is disabled

When $FAKE_SLURM is removed, its jobs end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(os.environ["FAKE_SLURM"])
NODE, PARTITION = "node1", "main"
# The variables of its caller that a job with --export=NONE keeps.
LOGIN = ("HOME", "USER", "SHELL", "PATH")
# Seconds from SIGTERM to SIGKILL.
KILL_WAIT = 10.0
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
LOST = "Unable to contact slurm controller (connect failure)"
Job = dict[str, Any]


def scene() -> dict[str, Any]:
    try:
        return json.loads((ROOT / "scene.json").read_text())
    except FileNotFoundError:
        return {}


def refuse(words: str, code: int = 1) -> NoReturn:
    print(words, file=sys.stderr)
    sys.exit(code)


def save(job: Job) -> None:
    partial = ROOT / f".{job['id']}"
    partial.write_text(json.dumps(job))
    partial.rename(ROOT / f"{job['id']}.job")


def jobs() -> list[Job]:
    return [json.loads(path.read_text()) for path in sorted(ROOT.glob("*.job"), key=lambda path: int(path.stem))]


def parsed(*options: str, words: str = "") -> argparse.Namespace:
    """Parse the command line. Every option takes a value, except those that end with "!"."""
    parser = argparse.ArgumentParser(prog=Path(sys.argv[0]).name, allow_abbrev=False)
    for option in options:
        if option.endswith("!"):
            parser.add_argument(f"--{option[:-1]}", action="store_true")
        else:
            parser.add_argument(f"--{option}")
    if words:
        parser.add_argument(words, nargs="?")
    return parser.parse_args()


def sbatch() -> None:
    names = "job-name nodes ntasks cpus-per-task mem gres time partition account qos constraint chdir output open-mode export"
    options = parsed("version!", "parsable!", "no-requeue!", *names.split(), words="script")
    if options.version:
        print("slurm-wlm 22.05.8")
        return
    if scene().get("controller") == "down":
        refuse(f"sbatch: error: Batch job submission failed: {LOST}")
    if words := scene().get("refuse"):
        refuse(f"sbatch: error: {words}")
    # Only one job at a time is submitted to the fake.
    job_id = len(jobs()) + 1
    (ROOT / str(job_id)).mkdir()
    # A copy of the script, as Slurm keeps one.
    script = ROOT / str(job_id) / "slurm_script"
    script.write_text(Path(options.script).read_text(encoding="utf-8"))
    script.chmod(0o700)
    save({"id": job_id, "state": "PENDING", "reason": "None", "node": "", "status": 0, **vars(options)})
    subprocess.Popen(
        [sys.executable, Path(__file__).resolve(), str(job_id)], start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    if scene().get("controller") == "late":
        refuse("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    print(job_id)


def squeue() -> None:
    options = parsed("noheader!", "me!", "states", "Format", "jobs", "name")
    if scene().get("controller") == "down":
        refuse(f"slurm_load_jobs error: {LOST}")
    if words := scene().get("squeue"):
        refuse(words)
    known = [job for job in jobs() if not (scene().get("forget") and job["state"] in OVER)]
    chosen = [job for job in known if str(job["id"]) == options.jobs or job["job_name"] == options.name]
    if options.jobs and not chosen:
        refuse("slurm_load_jobs error: Invalid job id specified")
    for job in chosen:
        print("".join(f"{job[name]}|" for name in ("id", "state", "reason", "node", "status")))


def sacct() -> None:
    options = parsed("noheader!", "parsable2!", "allocations!", "format", "jobs")
    if scene().get("accounting") is False:
        refuse("Slurm accounting storage is disabled")
    for job in jobs():
        if str(job["id"]) == options.jobs:
            state = "CANCELLED by 0" if job["state"] == "CANCELLED" else job["state"]
            print(f"{state}|{job['node']}|{job['status'] >> 8}:{job['status'] & 0x7F}")


def scancel() -> None:
    options = parsed(words="job")
    if scene().get("controller") == "down":
        refuse(f"scancel: error: Kill job error on job id {options.job}: {LOST}", 8)
    (ROOT / options.job / "cancel").touch()


def sinfo() -> None:
    parsed("noheader!", "format")
    if scene().get("controller") == "down":
        refuse(f"slurm_load_partitions: {LOST}")
    print(f"{PARTITION}*|{scene().get('gres', '(null)')}|1|idle|4|16000")


class Supervisor:
    """Plays slurmctld and slurmstepd for one job."""

    def __init__(self, job_id: str) -> None:
        self.job: Job = json.loads((ROOT / f"{job_id}.job").read_text())
        self.folder = ROOT / job_id
        self.child: subprocess.Popen[bytes] | None = None

    def note(self, state: str, reason: str = "None", **more: Any) -> None:
        self.job |= {"state": state, "reason": reason, **more}
        save(self.job)

    def supervise(self) -> None:
        try:
            while not (self.folder / "cancel").exists() and (reason := scene().get("pending")):
                if reason != self.job["reason"]:
                    self.note("PENDING", reason)
                self.step()
            if (self.folder / "cancel").exists():
                self.note("CANCELLED")
            else:
                self.run()
        finally:
            if self.child:
                with suppress(ProcessLookupError):
                    os.killpg(self.child.pid, signal.SIGKILL)

    def step(self) -> None:
        time.sleep(0.05)
        if not self.folder.exists():
            raise SystemExit("the test has ended")

    def run(self) -> None:
        own = {name: value for name, value in os.environ.items() if name in LOGIN}
        env = {**(own if self.job["export"] == "NONE" else os.environ), "SLURM_JOB_ID": str(self.job["id"])}
        with Path(self.job["output"]).open("ab" if self.job["open_mode"] == "append" else "wb") as output:
            script, cwd = str(self.folder / "slurm_script"), self.job["chdir"]
            self.child = subprocess.Popen([script], cwd=cwd, env=env, stdout=output, stderr=output, process_group=0)
            self.note("RUNNING", node=NODE)
            cancelled_at = 0.0
            while (code := self.child.poll()) is None:
                if scene().get("node") == "lost":
                    self.note("NODE_FAIL", "NodeDown")
                    return
                if not cancelled_at and (self.folder / "cancel").exists():
                    cancelled_at = time.monotonic()
                    self.note("COMPLETING")
                    # Only the script is ended, as under cgroups.
                    self.child.terminate()
                if cancelled_at and time.monotonic() - cancelled_at > KILL_WAIT:
                    os.killpg(self.child.pid, signal.SIGKILL)
                self.step()
        self.note_end(code, cancelled=bool(cancelled_at))

    def note_end(self, code: int, *, cancelled: bool) -> None:
        status = -code if code < 0 else code << 8
        reason = "None" if code == 0 else "JobLaunchFailure" if code < 0 else "NonZeroExitCode"
        self.note("CANCELLED" if cancelled else "FAILED" if code else "COMPLETED", reason, status=status)


if __name__ == "__main__":
    command = Path(sys.argv[0]).name
    if command == "fake.py":
        Supervisor(sys.argv[1]).supervise()
    else:
        {"sbatch": sbatch, "squeue": squeue, "scancel": scancel, "sacct": sacct, "sinfo": sinfo}[command]()
