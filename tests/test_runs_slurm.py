"""Cells on a real Slurm node on loopback. All slow.

The tests in tests/test_runs_slurm_fake.py need no node.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.runs import cells
from pipelines.runs.cells import Attempt
from pipelines.runs.launchers import slurm
from pipelines.train.cell import train
from pipelines.upkeep.doctor import examine
from tests import slurm_cells as on
from tests.project import TinyProject
from tests.slurm_cells import Recorder, is_gone, job_of, last_step, on_slurm, order_of, wait_for
from tests.slurm_node import SlurmNode, missing, slurm_node

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "Slurm is installed")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmNode]:
    with slurm_node(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def node(shared: SlurmNode, monkeypatch: pytest.MonkeyPatch) -> SlurmNode:
    return used(shared, monkeypatch)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmNode]:
    """A node that the test may break."""
    with slurm_node(tmp_path / "slurm") as made:
        yield used(made, monkeypatch)


def used(node: SlurmNode, monkeypatch: pytest.MonkeyPatch) -> SlurmNode:
    monkeypatch.setenv("SLURM_CONF", str(node.conf))
    # The only test on this node, so nobody else asks it.
    monkeypatch.setattr(slurm, "ASK_SECONDS", 1.0)
    return node


def test_a_cell_trains_as_it_does_locally_and_no_key_goes_along(
    project: TinyProject, node: SlurmNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    on.a_cell_trains_as_it_does_locally(project, monkeypatch)


def test_a_cell_of_two_processes_is_one_job_that_asks_for_both(project: TinyProject, node: SlurmNode) -> None:
    on_slurm(project)
    project.change(profiles={"local": {"devices": 2, "sharding": "ddp"}})
    attempt, _ = train(project.resolved(), project.key("lora-r8"), hooks=Recorder().hooks)
    assert attempt.status == "ok", attempt.result.detail
    assert order_of(attempt)["asked"]["cpus"] == 2
    assert str(attempt.result.device).endswith("× 2, ddp")


def test_a_cancel_keeps_a_checkpoint_and_leaves_no_process(project: TinyProject, node: SlurmNode) -> None:
    on.a_cancel_keeps_a_checkpoint_and_leaves_no_process(project)


def test_a_waiting_job_says_why_and_a_cancel_ends_it(project: TinyProject, node: SlurmNode) -> None:
    on.a_waiting_job_says_why_and_a_cancel_ends_it(
        on_slurm(project, options=["--hold"]), "reason: JobHeldUser (it is held"
    )


def test_a_job_that_nobody_watches_is_found_again(project: TinyProject, node: SlurmNode) -> None:
    on.a_job_that_nobody_watches_is_found_again(on_slurm(project))


def test_a_python_that_is_not_there_is_a_row_that_says_so(project: TinyProject, node: SlurmNode) -> None:
    on.a_python_that_is_not_there_is_a_row_that_says_so(project)


def test_a_cell_over_its_memory_is_out_of_memory(project: TinyProject, node: SlurmNode) -> None:
    attempt, _ = train(on_slurm(project, memory_gb=0.2).resolved(), project.key("lora-r8"), hooks=Recorder().hooks)
    print(attempt.result.detail)
    assert attempt.status == "out_of_memory"


def test_a_job_that_is_cancelled_from_outside_is_a_row_with_a_way_on(project: TinyProject, node: SlurmNode) -> None:
    def cancel(attempt: Attempt) -> None:
        if last_step(attempt.folder) >= 2:
            slurm.run("scancel", order_of(attempt)["id"])

    recorder = Recorder(cancel)
    attempt, _ = train(on_slurm(project, training=on.LONG).resolved(), project.key("lora-r8"), hooks=recorder.hooks)
    print(attempt.result.detail)
    assert attempt.status == "killed" and "the next run goes on after step" in attempt.result.detail
    assert (job := job_of(attempt)) and job.state == "CANCELLED"


def test_what_slurm_refuses_is_a_row_with_its_words(project: TinyProject, node: SlurmNode) -> None:
    attempt, _ = train(on_slurm(project, memory_gb=1000).resolved(), project.key("base"), hooks=Recorder().hooks)
    print(attempt.result.detail)
    assert attempt.status == "unavailable" and "Requested node configuration is not available" in attempt.result.detail
    attempt, _ = train(on_slurm(project, partition="big").resolved(), project.key("base"), hooks=Recorder().hooks)
    assert attempt.status == "unavailable" and "Invalid partition name specified" in attempt.result.detail


def test_the_doctor_says_how_slurm_stands(project: TinyProject, node: SlurmNode) -> None:
    lines = list(examine(project.data, on_slurm(project).now().experiments))
    line = next(one for one in lines if one.startswith("profile local"))
    assert f"partition main: 1 idle with {os.cpu_count()} CPU, 4000 MB" in line


def test_a_node_that_is_lost_costs_the_steps_since_the_last_checkpoint(project: TinyProject, own: SlurmNode) -> None:
    """A cluster of one node has no other: the second attempt waits for it, and a cancel ends the
    test."""
    lost: list[str] = []

    def lose(attempt: Attempt) -> None:
        if not lost and last_step(attempt.folder) >= 2:
            own.kill("slurmd")
            lost.append(attempt.run_id)
        if attempt.spec.after and order_of(attempt).get("id"):
            raise KeyboardInterrupt

    recorder = Recorder(lose)
    with pytest.raises(KeyboardInterrupt):
        train(on_slurm(project, training=on.LONG).resolved(), project.key("lora-r8"), hooks=recorder.hooks)
    first, second = cells.attempts(project.data, project.key("lora-r8"))
    print(first.result.detail)
    assert first.status == "killed" and "NODE_FAIL" in first.result.detail
    assert (second.spec.resume or {})["run_id"] == first.run_id
    assert any("once more on another node" in line for line in recorder.lines)
    # slurmd is dead, but the cell was alive until it was told to end.
    wait_for(lambda: is_gone(first.folder))


def test_a_controller_that_dies_costs_nothing_while_the_cell_runs(project: TinyProject, own: SlurmNode) -> None:
    def kill(attempt: Attempt) -> None:
        if (own.folder / "slurmctld.pid").exists() and (attempt.folder / "child.json").exists():
            own.kill("slurmctld")
            (own.folder / "slurmctld.pid").unlink()

    attempt, _ = train(on_slurm(project).resolved(), project.key("lora-r8"), hooks=Recorder(kill).hooks)
    assert attempt.status == "ok", attempt.result.detail
    began = time.monotonic()
    attempt, _ = train(project.resolved(), project.key("full"), hooks=Recorder().hooks)
    print(f"controller down: {time.monotonic() - began:.0f} s: {attempt.result.detail}", file=sys.stderr)
    assert attempt.status == "unavailable" and "does not answer" in attempt.result.detail
    wait_for(lambda: is_gone(attempt.folder))
