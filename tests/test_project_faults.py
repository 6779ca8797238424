"""After a kill, a cancel, a time-out or two starters at once: a true row, no process, nothing
lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.clean import clean as cleaning
from pipelines.clean.read import raw_records
from pipelines.compare.table import comparison_rows
from pipelines.runs import cells
from pipelines.runs.cells import Attempt
from tests.project import MODEL, TinyProject

FEATHERWEIGHT = [sys.executable, "-m", "pipelines.cli"]


@pytest.fixture
def long_project(project: TinyProject) -> TinyProject:
    """A project whose lora-r8 cell would train for minutes."""
    project.change(profiles={"local": {"training": {"epochs": 5000, "eval_every_steps": 1000}}})
    stage = project.now()
    cleaning.clean(stage.data, raw_records(stage.data, stage.experiments), stage.experiments.cleaning)
    return project


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start commands; those that still run at the end are killed."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen([*FEATHERWEIGHT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def newest(project: TinyProject) -> Attempt | None:
    return cells.latest(project.data, project.key("lora-r8"))


def is_training(project: TinyProject) -> bool:
    attempt = newest(project)
    return attempt is not None and len(attempt.curve()) > 3


def children_of(attempt: Attempt) -> list[psutil.Process]:
    """The attempt's own processes, found by their command line."""
    children = []
    for process in psutil.process_iter(["cmdline"]):
        if str(attempt.folder) in " ".join(process.info["cmdline"] or []):
            children.append(process)
    return children


def start_training(
    project: TinyProject, started: Callable[..., subprocess.Popen[str]]
) -> tuple[subprocess.Popen[str], Attempt]:
    process = started("train", MODEL, "lora-r8")
    until(lambda: is_training(project) or process.poll() is not None, "training to start")
    attempt = newest(project)
    assert process.poll() is None and attempt is not None
    return process, attempt


def test_a_killed_child_is_a_row_killed_with_what_it_had_measured(
    long_project: TinyProject, started: Callable[..., subprocess.Popen[str]]
) -> None:
    process, attempt = start_training(long_project, started)
    (child,) = children_of(attempt)
    child.kill()
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 3 and "SIGKILL" in stderr
    row = next(row for row in comparison_rows(long_project.resolved()) if row["method"] == "lora-r8")
    assert (row["status"], row["phase"]) == ("killed", "train")
    assert row["train_loss"] is not None and row["peak_memory_gb"] > 0 and row["eval_bits_per_byte"] is None


@pytest.mark.slow
def test_kill_9_of_the_parent_leaves_no_child_and_the_next_run_trains(
    long_project: TinyProject, started: Callable[..., subprocess.Popen[str]]
) -> None:
    process, attempt = start_training(long_project, started)
    process.kill()
    process.wait()
    until(lambda: not children_of(attempt), "the child to die with its parent")
    assert newest(long_project).status == "lost"  # pyright: ignore[reportOptionalMemberAccess]
    long_project.change(profiles={"local": {"training": {"epochs": 1}}})
    again = started("train", MODEL, "lora-r8")
    again.communicate(timeout=600)
    assert again.returncode == 0
    assert [a.status for a in cells.attempts(long_project.data, long_project.key("lora-r8"))] == ["lost", "ok"]


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_cancel_leaves_no_process_and_says_killed(
    sent: signal.Signals, long_project: TinyProject, started: Callable[..., subprocess.Popen[str]]
) -> None:
    process, attempt = start_training(long_project, started)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=600)
    assert not children_of(attempt)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert newest(long_project).status == "killed"  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.slow
def test_a_time_limit_is_a_row_timed_out(
    long_project: TinyProject, started: Callable[..., subprocess.Popen[str]]
) -> None:
    long_project.change(profiles={"local": {"training": {"time_limit_minutes": 0.2}}})
    process = started("train", MODEL, "lora-r8")
    process.communicate(timeout=600)
    assert process.returncode == 3
    row = next(row for row in comparison_rows(long_project.resolved()) if row["method"] == "lora-r8")
    assert row["status"] == "timed_out" and "time_limit_minutes" in row["status_detail"]


def test_a_second_starter_waits_and_names_the_first(
    long_project: TinyProject, started: Callable[..., subprocess.Popen[str]]
) -> None:
    first, attempt = start_training(long_project, started)
    second = started("train", MODEL, "full")
    assert second.stderr is not None
    line = second.stderr.readline()
    assert f"{MODEL} × lora-r8" in line and str(first.pid) in line
    assert [a.status for a in cells.attempts(long_project.data, long_project.key("full"))] == ["queued"]
    assert len(children_of(attempt)) == 1
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=600)
    until(lambda: cells.latest(long_project.data, long_project.key("full")).status == "running", "the second to start")  # pyright: ignore[reportOptionalMemberAccess]


def test_a_loss_that_is_no_number_is_diverged(
    project: TinyProject, started: Callable[..., subprocess.Popen[str]]
) -> None:
    project.change(
        methods={"full": {"learning_rate": 1e30, "gradient_clip": 1e30}},
        profiles={"local": {"training": {"epochs": 4}}},
    )
    stage = project.now()
    cleaning.clean(stage.data, raw_records(stage.data, stage.experiments), stage.experiments.cleaning)
    process = started("train", MODEL, "full")
    process.communicate(timeout=600)
    assert process.returncode == 3
    attempt = cells.latest(project.data, project.key("full"))
    assert attempt is not None and attempt.status == "diverged" and "learning_rate" in attempt.result.detail


def test_a_broken_model_folder_is_failed_with_its_error(
    project: TinyProject, started: Callable[..., subprocess.Popen[str]], tmp_path: Path, tiny_folder: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x00" * 64)
    project.change(models={MODEL: {"source": {"path": str(broken)}}})
    stage = project.now()
    cleaning.clean(stage.data, raw_records(stage.data, stage.experiments), stage.experiments.cleaning)
    process = started("train", MODEL, "full")
    _, stderr = process.communicate(timeout=600)
    attempt = cells.latest(project.data, project.key("full"))
    assert process.returncode == 3 and attempt is not None
    assert (attempt.status, attempt.result.phase) == ("failed", "load")
    assert "Traceback" not in stderr and "Traceback" in (attempt.folder / "log.txt").read_text(encoding="utf-8")


def test_keys_never_reach_a_child(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.runs.process import child_environment

    monkeypatch.setenv("OPENAI_API_KEY", "planted-secret")
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    assert "planted-secret" not in child_environment().values()
    assert os.environ["OPENAI_API_KEY"] == "planted-secret"


def test_a_childs_threads_yield_to_other_programs_unless_the_user_says_how_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipelines.runs.process import child_environment

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    # The default of libgomp is 300,000.
    assert 0 < int(child_environment()["GOMP_SPINCOUNT"]) < 10_000
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in child_environment()
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert child_environment()["GOMP_SPINCOUNT"] == "7"
