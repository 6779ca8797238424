"""Tests of cells on Slurm that hold both for the fake commands and for a real node."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.lake.files import read_json
from pipelines.runs import cells
from pipelines.runs.cells import Attempt
from pipelines.runs.checkpoints import whole
from pipelines.runs.launchers import slurm
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from tests.in_process import clean_for, trained
from tests.project import TinyProject

SECRET = "planted-0123456789abcdef"
# Long enough to be interrupted: some minutes without interruption.
LONG = {"epochs": 4000, "checkpoint_every_steps": 2, "eval_every_steps": 10000}
SAME = ("train_loss", "train_examples", "trained_tokens", "trainable_params", "steps")


def on_slurm(project: TinyProject, *, training: dict[str, Any] | None = None, **settings: Any) -> TinyProject:
    """The project with its cells on Slurm; arguments are settings of `slurm:` and, as `training`,
    of the profile."""
    profile = {"launcher": "slurm", "slurm": {"gpus": 0, **settings}, "training": training or {}}
    project.change(profiles={"local": profile})
    return clean_for(project)


class Recorder:
    """Hooks that record messages and call `act` with the attempt at each tick."""

    def __init__(self, act: Callable[[Attempt], None] = lambda _attempt: None) -> None:
        self.lines: list[str] = []
        self.hooks = RunHooks(say=self.lines.append, on_tick=act)


def wait_for(what: Callable[[], Any]) -> Any:
    """The first true result of `what()`; fails long after it is due."""
    deadline = time.monotonic() + 600
    while not (value := what()):
        assert time.monotonic() < deadline, "waited for ten minutes"
        time.sleep(0.05)
    return value


def last_step(folder: Path) -> int:
    folders = whole(folder)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def order_of(attempt: Attempt) -> dict[str, Any]:
    return read_json(attempt.folder / "job.json") or {}


def job_of(attempt: Attempt) -> slurm.Job | None:
    return slurm.look_up(order_of(attempt)["id"])


def is_gone(folder: Path) -> bool:
    """Whether no process works in the folder any more."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and str(folder) in " ".join(process.cmdline()):
                return False
    return True


def a_cell_trains_as_it_does_locally(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET + "-2")
    monkeypatch.setenv("FEATHERWEIGHT_ALERT_WEBHOOK", "https://hooks.example/" + SECRET)
    # As if the driver itself were a job.
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4000")
    recorder = Recorder()
    attempt, _ = train(on_slurm(project).resolved(), project.key("lora-r8"), force=True, hooks=recorder.hooks)
    assert (attempt.status, attempt.result.detail) == ("ok", ""), attempt.result.detail
    project.change(profiles={"local": {"launcher": "local", "slurm": None}})
    here = trained(project, "lora-r8")
    measured, before = attempt.result.measured, here.result.measured
    assert {name: measured[name] for name in SAME} == {name: before[name] for name in SAME}
    for name in ("train_loss", "eval_loss"):
        assert [row[name] for row in attempt.curve()] == [row[name] for row in here.curve()]
    assert (attempt.result.launcher, attempt.result.device) == ("slurm", here.result.device)
    assert attempt.result.fingerprints["machine"] == "slurm: default partition, 1 cores, 0 cards"
    assert order_of(attempt)["over"] and order_of(attempt)["threads"] == 1
    # The job's script and log are among these files.
    for path in attempt.folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in "".join(recorder.lines)


def a_cancel_keeps_a_checkpoint_and_leaves_no_process(project: TinyProject) -> None:
    def cancel(attempt: Attempt) -> None:
        if last_step(attempt.folder) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(on_slurm(project, training=LONG).resolved(), project.key("lora-r8"), hooks=Recorder(cancel).hooks)
    attempt = cells.latest(project.data, project.key("lora-r8"))
    assert attempt and attempt.status == "killed"
    assert "the next run goes on after step" in attempt.result.detail
    wait_for(lambda: is_gone(attempt.folder))
    wait_for(lambda: (job := job_of(attempt)) is None or job.over)
    assert not slurm.SlurmLauncher.is_under_way(attempt.folder) or (attempt.folder / "ended.json").exists()


def a_waiting_job_says_why_and_a_cancel_ends_it(project: TinyProject, why: str) -> None:
    def cancel(attempt: Attempt) -> None:
        if "waiting" in (read_json(attempt.folder / "state.json") or {}):
            assert attempt.status == "queued"
            raise KeyboardInterrupt

    recorder = Recorder(cancel)
    with pytest.raises(KeyboardInterrupt):
        train(project.resolved(), project.key("base"), hooks=recorder.hooks)
    assert any("asks for 1 CPU" in line and why in line for line in recorder.lines), recorder.lines
    attempt = cells.latest(project.data, project.key("base"))
    assert attempt and attempt.status == "killed"
    job = job_of(attempt)
    assert job and job.state == "CANCELLED"


def drive(project: TinyProject, method: str) -> None:
    """Start a driver in a separate process."""
    train(project.resolved(), project.key(method), hooks=Recorder().hooks)


def a_job_that_nobody_watches_is_found_again(project: TinyProject) -> None:
    driver = multiprocessing.get_context("fork").Process(target=drive, args=(project, "base"))
    driver.start()
    latest: Callable[[], Any] = lambda: cells.latest(project.data, project.key("base"))  # noqa: E731
    wait_for(lambda: (candidate := latest()) and order_of(candidate).get("id"))
    assert driver.pid
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    assert latest().status == "lost" and not (latest().folder / "ended.json").exists()
    recorder = Recorder()
    attempt, reused = train(project.resolved(), project.key("base"), hooks=recorder.hooks)
    assert (attempt.status, reused) == ("ok", False)
    assert [one.run_id for one in cells.attempts(project.data, project.key("base"))] == [attempt.run_id]
    assert any("found again, not started twice" in line for line in recorder.lines)
    named = slurm._jobs("--me", f"--name=featherweight-{attempt.run_id}")
    assert len(named) == 1


def a_python_that_is_not_there_is_a_row_that_says_so(project: TinyProject) -> None:
    on_slurm(project, python="/no/such/python")
    attempt, _ = train(project.resolved(), project.key("base"), hooks=Recorder().hooks)
    assert attempt.status == "unavailable"
    assert "exit code 127" in attempt.result.detail and "/no/such/python" in attempt.result.detail


def venv_path() -> str:
    """PATH with this interpreter's folder first, so that `python3` starts at once."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
