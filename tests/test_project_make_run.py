"""`make run`: the whole graph through Dagster with a tiny model; repeated, twice at once, and
killed half-way."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import duckdb
import psutil
import pytest

from assets import run
from pipelines.lake.paths import PROJECT
from pipelines.runs import cells
from tests.project import TinyProject

QUERY = "SELECT method, status, eval_bits_per_byte, base_bits_per_byte FROM comparison"


def start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "assets.run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        start_new_session=True,
    )


def attempts(project: TinyProject) -> list[str]:
    return [attempt.run_id for attempt in cells.all_attempts(project.data)]


def processes_of(project: TinyProject) -> list[str]:
    """Command lines of processes whose environment names the project's data folder."""
    commands = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get("FEATHERWEIGHT_DATA") == str(project.data.root)
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                commands.append(" ".join(process.cmdline()))
    return commands


@pytest.fixture
def small(project: TinyProject) -> TinyProject:
    project.change(profiles={"local": {"methods": ["base", "lora-r8"]}})
    return project


def test_run_fills_the_table_and_a_second_one_reuses_it(small: TinyProject) -> None:
    first = start()
    out, err = first.communicate(timeout=600)
    assert first.returncode == 0, err[-3000:]
    assert "lora-r8" in out and "bits/byte" in out
    with duckdb.connect(str(small.data.warehouse), read_only=True) as reader:
        rows = reader.execute(QUERY).fetchall()
        assert [(row[0], row[1]) for row in rows] == [("base", "ok"), ("lora-r8", "ok")]
        before = attempts(small)
        again = start()
        _, err = again.communicate(timeout=600)
        assert again.returncode == 0, err[-3000:]
        assert err.count("reused: it is current") == 2
        assert attempts(small) == before
        # A reader that stayed open was not disturbed.
        assert reader.execute(QUERY).fetchall() == rows
    with dg.DagsterInstance.from_config(str(small.data.root / "dagster")) as instance:
        runs = instance.get_runs()
        assert {run.job_name for run in runs} == {"data", "training", "publish"}
        assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in runs)
        # A job's page and Timeline query these.
        for job in ("data", "training", "publish"):
            of_page = dg.RunsFilter(job_name=job, tags={".dagster/repository": "__repository__@featherweight"})
            shown = instance.get_runs(of_page)
            assert len(shown) == sum(run.job_name == job for run in runs)
            origins = [run.remote_job_origin for run in shown if run.remote_job_origin]
            named = {
                (origin.job_name, origin.location_name, origin.repository_origin.repository_name) for origin in origins
            }
            assert len(origins) == len(shown) and named == {(job, "featherweight", "__repository__")}
    report = small.data.report.read_text(encoding="utf-8")
    assert "lora-r8" in report and "http://" not in report.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_run_goes_on_after_kill_9_and_leaves_no_process(small: TinyProject) -> None:
    small.change(profiles={"local": {"training": {"epochs": 5000, "eval_every_steps": 1000}}})
    killed = start()
    deadline = time.monotonic() + 6000
    while not any(len(attempt.curve()) > 3 for attempt in cells.all_attempts(small.data)):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    killed.kill()
    killed.communicate()
    deadline = time.monotonic() + 6000
    while left := processes_of(small):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    small.change(profiles={"local": {"training": {"epochs": 1}}})
    again = start()
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err[-3000:]
    assert "killed process" in err
    statuses = [attempt.status for attempt in cells.attempts(small.data, small.key("lora-r8"))]
    assert statuses in (["killed", "ok"], ["lost", "ok"])


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "exit_code", "status"), [("child", 3, "killed"), ("step", 1, "lost")])
def test_kill_9_of_a_child_or_its_step_costs_that_cell_only(
    small: TinyProject, victim: str, exit_code: int, status: str
) -> None:
    small.change(profiles={"local": {"methods": ["lora-r8", "base"], "training": {"epochs": 5000}}})
    running = start()
    deadline = time.monotonic() + 6000
    while not (children := [p for p in psutil.process_iter(["cmdline"]) if is_training(p, small)]):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    (child,) = children
    (child if victim == "child" else child.parent() or child).kill()
    out, err = running.communicate(timeout=600)
    assert running.returncode == exit_code, err[-3000:]
    assert not processes_of(small)
    with duckdb.connect(str(small.data.warehouse), read_only=True) as reader:
        assert [row[:2] for row in reader.execute(QUERY).fetchall()] == [("lora-r8", status), ("base", "ok")]
    assert status in out


def is_training(process: psutil.Process, project: TinyProject) -> bool:
    """Whether `process` is a lora-r8 child of `project` that has taken some steps."""
    folder = str(project.key("lora-r8").folder(project.data))
    attempt = cells.latest(project.data, project.key("lora-r8"))
    return folder in " ".join(process.info["cmdline"] or []) and attempt is not None and len(attempt.curve()) > 3


@pytest.mark.slow
def test_a_loop_of_random_kills_ends_in_the_whole_table(small: TinyProject) -> None:
    small.change(profiles={"local": {"training": {"epochs": 6}}})
    chance = random.Random(11)
    for _ in range(8):
        killed = start()
        time.sleep(chance.uniform(1, 30))
        killed.kill()
        killed.communicate()
    deadline = time.monotonic() + 600
    while left := processes_of(small):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    last = start()
    _, err = last.communicate(timeout=600)
    assert last.returncode == 0, err[-3000:]
    with duckdb.connect(str(small.data.warehouse), read_only=True) as reader:
        assert reader.execute(QUERY).fetchall()[1][1] == "ok"


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_says_how_to_go_on(small: TinyProject) -> None:
    small.change(
        profiles={"local": {"methods": ["lora-r8", "base"], "training": {"epochs": 5000, "eval_every_steps": 1000}}}
    )
    running = start()
    deadline = time.monotonic() + 6000
    while not any(len(attempt.curve()) > 3 for attempt in cells.all_attempts(small.data)):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    # A terminal sends Ctrl-C to the whole group.
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=600)
    assert running.returncode == 130, err[-3000:]
    assert "the same command continues from there" in err and "Traceback" not in err
    assert not processes_of(small)
    assert [a.status for a in cells.attempts(small.data, small.key("lora-r8"))] == ["killed"]


@pytest.mark.slow
def test_a_cell_out_of_memory_ends_the_run_with_3_and_its_row(small: TinyProject) -> None:
    small.change(models={"smollm2-135m": {"overrides": {"lora-r8": {"memory_budget_gb": 0.2}}}})
    running = start()
    out, err = running.communicate(timeout=600)
    assert running.returncode == 3, err[-3000:]
    assert "out_of_memory" in out and "budget of 0.2 GB" in err


@pytest.mark.parametrize(
    ("cell", "publication", "after"), [(1.0, 0.0, [1, 2, 3]), (30.0, 3.0, [1, 3]), (600.0, 9.0, [1, 2, 3])]
)
def test_publications_between_cells_take_a_twentieth_of_the_time(
    small: TinyProject, monkeypatch: pytest.MonkeyPatch, cell: float, publication: float, after: list[int]
) -> None:
    """`run` publishes after the last cell, so `_run_cells` does not."""
    now, done, published = 0.0, 0, []

    class Clock:
        def __init__(self) -> None:
            self._began = now

        def total(self) -> float:
            return now - self._began

    def run_cell(*_: object) -> bool:
        nonlocal now, done
        now, done = now + cell, done + 1
        return True

    def execute(*_: object) -> bool:
        nonlocal now
        now += publication
        published.append(done)
        return True

    project = small.now()
    monkeypatch.setattr(run, "Stopwatch", Clock)
    monkeypatch.setattr(run, "_run_cell", run_cell)
    monkeypatch.setattr(run, "_execute", execute)
    monkeypatch.setattr(run, "_settled", lambda _project: [])
    monkeypatch.setattr(type(project), "grid", [("smollm2-135m", f"method-{number}") for number in range(4)])
    assert all(run._run_cells(project, object(), {})) and done == 4  # pyright: ignore[reportArgumentType]
    assert published == after


def test_what_the_fork_server_imports_is_there_and_loads_no_torch() -> None:
    look = "import importlib, sys\nfrom assets.definitions import PRELOADED\n"
    look += "for name in PRELOADED:\n    importlib.import_module(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.strip() == "False"


def test_a_broken_configuration_ends_the_run_with_2(small: TinyProject) -> None:
    small.experiments.write_text("models: [", encoding="utf-8")
    running = start()
    _, err = running.communicate(timeout=600)
    assert running.returncode == 2 and str(small.experiments) in err and "Traceback" not in err


def test_a_broken_corpus_ends_the_run_with_2_before_anything_starts(small: TinyProject) -> None:
    small.data.root.mkdir(parents=True)
    (small.data.root / "corpus.json").write_text('[{"instruction": "Which book?", "output": 7}]', encoding="utf-8")
    running = start()
    _, err = running.communicate(timeout=600)
    assert running.returncode == 2 and "record 0" in err and "got 7" in err and "Traceback" not in err
    assert not small.data.lake.exists()


def test_ui_on_a_used_port_says_which_to_take(small: TinyProject) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "assets.ui"],
            env={**os.environ, "PORT": str(port)},
            capture_output=True,
            text=True,
            cwd=PROJECT,
        )
    assert done.returncode == 2 and f"PORT={port + 1}" in done.stderr


def test_the_makefile_names_every_command_of_the_readme() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for target in ("run", "test", "test-slow", "ui", "table", "bench", "lint"):
        assert f"\n{target}:" in makefile
    assert Path(PROJECT / "requirements.lock").read_text(encoding="utf-8").count("torch==2.13.0\n") == 1
