"""A measured time excludes the time in which the process is stopped; waiting and computing
count."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.compare.tables import all_tables
from pipelines.runs.command import CellCommand
from pipelines.runs.run import RunHooks
from pipelines.runs.worker import Worker
from pipelines.train.cell import train
from pipelines.train.trainer.child import train_cell
from tests.forked import NEEDED, ForkedCommand
from tests.in_process import clean_for
from tests.project import TinyProject

STOPPED_SECONDS = 2.0
CHILD = """
import sys, time
from pipelines.runs.clock import Stopwatch

began, clock = time.monotonic(), Stopwatch()
time.sleep(1.3)  # waits, as for a card
print(clock.stopped(), flush=True)
sys.stdin.readline()
print(clock.stopped(), clock.total(), time.monotonic() - began, clock.lap(), flush=True)
"""


def stop_for_a_while(process: psutil.Process) -> None:
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    time.sleep(STOPPED_SECONDS)
    process.resume()


def test_a_stopwatch_stands_still_while_its_process_is_stopped_but_not_while_it_waits() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout
        assert float(child.stdout.readline()) == 0
        stop_for_a_while(psutil.Process(child.pid))
        print(file=child.stdin, flush=True)
        stopped, total, passed, lap = map(float, child.stdout.readline().split())
    assert 1 < stopped < passed
    assert 1.3 < total <= passed - stopped and total <= lap


class Frozen(Worker):
    """A worker that is stopped from outside in the middle of its third step."""

    looks = 0

    def stop_if_asked(self) -> None:
        super().stop_if_asked()
        if self.report["phase"] == "train" and self.report["measured"].get("last_step") == 2 and not self.looks:
            self.looks += 1
            command = f"sleep {STOPPED_SECONDS}; kill -CONT {os.getpid()}"
            subprocess.Popen(["sh", "-c", command], start_new_session=True)
            os.kill(os.getpid(), signal.SIGSTOP)


def work(folder: Path) -> None:
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os._exit(Frozen(folder).run(train_cell))


class Freezing:
    """A launcher that stops its cell for a while by SIGSTOP."""

    def start(self, command: CellCommand) -> Any:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(NEEDED)
        process = context.Process(target=work, args=(command.folder,))
        process.start()
        return ForkedCommand([process])


@pytest.mark.slow
def test_train_seconds_are_without_those_in_which_the_cell_was_stopped(project: TinyProject) -> None:
    project.change(profiles={"local": {"training": {"epochs": 4, "examples_per_step": 4}}})
    clean_for(project)
    hooks = RunHooks(say=lambda _message: None, launcher=Freezing())
    attempt = train(project.resolved(), project.key("full"), hooks=hooks)[0]
    assert attempt.status == "ok", (attempt.folder / "log.txt").read_text()
    measured, seconds = attempt.result.measured, attempt.result.seconds
    assert measured["stopped_seconds"] > 1
    assert measured["stopped_seconds"] + measured["train_seconds"] < (seconds or 0)
    curve = attempt.curve()
    third = curve[3]["elapsed_seconds"] - curve[2]["elapsed_seconds"]
    assert third < measured["stopped_seconds"], "the step that was stopped took its own time alone"
    (run,) = all_tables(project.data, project.now().experiments, [])["training_runs"].to_pylist()
    assert run["stopped_seconds"] == measured["stopped_seconds"]
