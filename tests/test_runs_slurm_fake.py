"""Cells on Slurm by fake commands (tests/fakes/slurm) that run each job as a local process.

tests/test_runs_slurm.py has a real node.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UnavailableError
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import DataRoot
from pipelines.runs import cells
from pipelines.runs.cells import Attempt
from pipelines.runs.command import Placement
from pipelines.runs.exits import classify_exit
from pipelines.runs.launchers import slurm
from pipelines.runs.launchers.pipes import Carrier
from pipelines.runs.predictions import answer_file
from pipelines.runs.spec import RunSpec
from pipelines.train.cell import train
from pipelines.upkeep.doctor import examine
from tests import slurm_cells as on
from tests.project import TinyProject
from tests.slurm_cells import Recorder, is_gone, on_slurm, order_of, wait_for

# Replaces python: the node's half and a cell of two seconds, without the seconds of importing
# torch.
STUB = """#!/bin/sh
folder=$3
sleep 2
echo '{"phase": "train", "status": "ok", "measured": {}}' > $folder/child.json
echo '{"exit_code": 0, "reason": null, "kernel_oom_kill": false, "peak_bytes": 0, "seconds": 1.0, "detail": null, "asked_bytes": 0,
       "device": "cpu: stub", "host": "node1"}' > $folder/ended.partial
mv $folder/ended.partial $folder/ended.json
"""
FAKES = Path(__file__).parent / "fakes" / "slurm"


class FakeSlurm:
    def __init__(self, root: Path) -> None:
        self.root = root

    def scene(self, **scene: Any) -> None:
        write_json(self.root / "scene.json", scene)

    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.root.glob("*.job"))]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    made = FakeSlurm(tmp_path / "slurm")
    made.root.mkdir()
    monkeypatch.setenv("PATH", f"{FAKES}{os.pathsep}{on.venv_path()}")
    monkeypatch.setenv("FAKE_SLURM", str(made.root))
    for name, seconds in (("LOOK", 0.1), ("ASK", 0.2), ("LATE", 0.5), ("WAIT", 0.1), ("SILENCE", 0.5)):
        monkeypatch.setattr(slurm, f"{name}_SECONDS", seconds)
    yield made
    shutil.rmtree(made.root)
    wait_for(lambda: is_gone(tmp_path))


@pytest.fixture
def stub(tmp_path: Path) -> str:
    path = tmp_path / "stub"
    path.write_text(STUB)
    path.chmod(0o700)
    return str(path)


def test_a_cell_trains_as_it_does_locally_and_no_key_goes_along(
    project: TinyProject, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    on.a_cell_trains_as_it_does_locally(project, monkeypatch)
    (job,) = fake.jobs()
    assert job["export"] == "NONE" and job["no_requeue"] and job["open_mode"] == "append"


@pytest.mark.slow
def test_a_cancel_keeps_a_checkpoint_and_leaves_no_process(project: TinyProject, fake: FakeSlurm) -> None:
    on.a_cancel_keeps_a_checkpoint_and_leaves_no_process(project)


def test_a_waiting_job_says_why_and_a_cancel_ends_it(project: TinyProject, fake: FakeSlurm) -> None:
    fake.scene(pending="PartitionTimeLimit")
    on.a_waiting_job_says_why_and_a_cancel_ends_it(
        on_slurm(project), "reason: PartitionTimeLimit (the partition allows"
    )


def test_a_job_that_nobody_watches_is_found_again(project: TinyProject, fake: FakeSlurm, stub: str) -> None:
    on.a_job_that_nobody_watches_is_found_again(on_slurm(project, python=stub))


def test_a_node_that_is_lost_costs_one_attempt(project: TinyProject, fake: FakeSlurm, stub: str) -> None:
    def lose(attempt: Attempt) -> None:
        running = any(job["state"] == "RUNNING" for job in fake.jobs())
        fake.scene(**({"node": "lost"} if running and not attempt.spec.after else {}))

    recorder = Recorder(lose)
    finished, _ = train(on_slurm(project, python=stub).resolved(), project.key("base"), hooks=recorder.hooks)
    first, second = cells.attempts(project.data, project.key("base"))
    assert finished.run_id == second.run_id
    assert (first.status, second.status) == ("killed", "ok")
    assert "NODE_FAIL" in first.result.detail and "NODE_FAIL" in second.result.detail
    assert any("once more on another node" in line for line in recorder.lines)


def test_a_python_that_is_not_there_is_a_row_that_says_so(project: TinyProject, fake: FakeSlurm) -> None:
    on.a_python_that_is_not_there_is_a_row_that_says_so(project)


def outcome(project: TinyProject) -> tuple[str, str]:
    attempt, _ = train(project.resolved(), project.key("base"), hooks=Recorder().hooks)
    return attempt.status, attempt.result.detail


def test_what_slurm_refuses_is_a_row_with_its_words(project: TinyProject, fake: FakeSlurm) -> None:
    words = "Batch job submission failed: Requested node configuration is not available"
    fake.scene(refuse=words)
    status, detail = outcome(on_slurm(project, memory_gb=1000))
    assert status == "unavailable"
    assert words in detail and "1000.0 GB" in detail and "memory_gb" in detail
    attempt = cells.latest(project.data, project.key("base"))
    assert attempt and order_of(attempt)["over"] and attempt.result.device is None


def test_a_controller_that_is_down_or_no_slurm_at_all_is_a_row(
    project: TinyProject, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_slurm(project)
    fake.scene(controller="down")
    status, detail = outcome(project)
    assert status == "unavailable" and "Unable to contact slurm controller" in detail and "scontrol ping" in detail
    monkeypatch.setenv("PATH", "/nonexistent")
    status, detail = outcome(project)
    assert status == "unavailable" and detail.startswith("sbatch is not installed on this machine")


def test_a_job_whose_acceptance_was_lost_is_found_by_its_name(fake: FakeSlurm, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nexit 3\n")
    places = [f"--chdir={tmp_path}", f"--output={tmp_path}/log.txt", "--export=NONE", str(script)]
    fake.scene(controller="late")
    assert slurm.submit("one", places) == "1"
    fake.scene(controller="down")
    with pytest.raises(slurm.SilentError, match="does not answer"):
        slurm.submit("two", places)
    fake.scene()
    assert wait_for(lambda: (job := slurm.look_up("1")) and job.over and job) == slurm.Job(
        "1", "FAILED", "NonZeroExitCode", "node1", 3
    )
    fake.scene(forget=True)
    # The job as accounting reports it.
    assert slurm.look_up("1") == slurm.Job("1", "FAILED", "", "node1", 3)
    fake.scene(forget=True, accounting=False)
    assert slurm.look_up("1") is None
    assert slurm.find("two") is None
    fake.scene(squeue="squeue: error: Invalid user")
    # The refusal says nothing about the job.
    with pytest.raises(slurm.RefusedError, match="Invalid user"):
        slurm.look_up("1")


def test_it_asks_for_cards_where_there_are_any_and_else_for_the_predicted_memory(
    project: TinyProject, fake: FakeSlurm, tmp_path: Path
) -> None:
    def request(devices: int = 1, **settings: Any) -> slurm.Request:
        profile = on_slurm(project, **settings).now().experiments.profile("local")
        spec = RunSpec(root=str(tmp_path), fingerprints={"data": "d"}, devices=devices, time_limit_minutes=90.5)
        return slurm.SlurmLauncher(profile.slurm)._request(spec, tmp_path / "attempt")

    assert request(gpus=None) == slurm.Request(1, 0, None, 96)
    write_json(answer_file(DataRoot(tmp_path), {}, "d", 1, own_tokenizer=True), {"cpu": {"peak": 2e9}})
    resources = request(gpus=None, cpus=2, devices=2)
    # 2 × 2 GB × 1.1, and the node's half.
    assert (resources.cpus, resources.memory_mb) == (4, 4674)
    fake.scene(gres="gpu:a100:4")
    resources = request(gpus=None, devices=2)
    assert resources.options() == ["--cpus-per-task=2", "--gres=gpu:2", "--time=96"]
    assert resources.in_words() == "2 CPU, 2 GPU, 96 minutes"
    with pytest.raises(UnavailableError, match=r"no partition 'big'; set slurm\.partition to one of main"):
        request(gpus=None, partition="big")


ENDINGS = [
    ("NODE_FAIL", 0, "node_lost", "killed", "NODE_FAIL"),
    ("PREEMPTED", 0, "node_lost", "killed", "PREEMPTED"),
    ("CANCELLED", 0, "interrupted", "killed", "cancelled from outside"),
    ("FAILED", 130, "interrupted", "killed", "cancelled from outside"),
    ("TIMEOUT", 0, "time_limit", "timed_out", "Slurm's time limit for job 7"),
    ("OUT_OF_MEMORY", 0, None, "out_of_memory", "out-of-memory killer ended it at 2.10 GB"),
    ("FAILED", -9, None, "killed", "ended by SIGKILL from outside"),
    ("FAILED", -53, "refused", "unavailable", "must be a folder that every node sees"),
    ("FAILED", 71, "refused", "unavailable", "the last line"),
    ("FAILED", 1, "refused", "unavailable", "the last line"),
]


@pytest.mark.parametrize(("state", "code", "reason", "status", "message"), ENDINGS)
def test_an_ending_without_a_last_word_is_what_slurm_says(
    tmp_path: Path, state: str, code: int, reason: str | None, status: str, message: str
) -> None:
    (tmp_path / "log.txt").write_text("the last line\n")
    write_json(tmp_path / "job.json", {"id": "7", "asked": {"memory_mb": 2000}})
    command = slurm.SlurmCommand(tmp_path, "7", Carrier({}, tmp_path / "pipes"), print)
    command._job = slurm.Job("7", state, "None", "node1", code)
    ending = command._without_last_word()
    assert ending.reason == reason
    verdict, detail = classify_exit(ending, {}, RunSpec(), tmp_path)
    assert verdict == status and detail and message in detail
    if code == -9:
        (tmp_path / "log.txt").write_text(
            "slurmstepd: error: StepId=7.batch exceeded memory limit (9 > 8), being killed\n"
        )
        assert command._without_last_word().kernel_oom_kill


def test_a_silent_controller_costs_nothing_while_the_cell_writes(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.scene(controller="down")
    command = slurm.SlurmCommand(tmp_path, "7", Carrier({}, tmp_path / "pipes"), print)
    # Silent for longer than SILENCE_SECONDS.
    command._heard -= 1
    (tmp_path / "curve.jsonl").touch()
    assert command.poll() is None
    command._heard -= 1
    command._asked = command._looked = 0.0
    assert command.poll() == -1
    ending = command.ending()
    assert ending and ending.reason == "unreachable" and "Its job 7 may go on" in (ending.detail or "")


def test_a_job_that_somebody_gave_up_is_ended_once(fake: FakeSlurm, tmp_path: Path) -> None:
    assert not slurm.SlurmLauncher.is_under_way(tmp_path)
    slurm.SlurmLauncher.end(tmp_path)
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    name = ["--export=NONE", f"--chdir={tmp_path}", f"--output={tmp_path}/log.txt", str(script)]
    slurm.submit("one", name)
    # The driver died before it knew the job's id.
    write_json(tmp_path / "job.json", {"job": "one"})
    assert slurm.SlurmLauncher.is_under_way(tmp_path)
    slurm.SlurmLauncher.end(tmp_path)
    wait_for(lambda: fake.jobs()[0]["state"] == "CANCELLED")
    assert (read_json(tmp_path / "job.json") or {})["over"]
    assert not slurm.SlurmLauncher.is_under_way(tmp_path)


def test_the_doctor_says_how_slurm_stands(project: TinyProject, fake: FakeSlurm) -> None:
    fake.scene(gres="gpu:2")
    on_slurm(project, partition="main", cpus=4, options=["--constraint=a100", "--nice"])
    line = next(one for one in examine(project.data, project.now().experiments) if one.startswith("profile local"))
    assert "slurm: slurm-wlm 22.05.8, partition main: 1 idle with 4 CPU, 16000 MB, gpu:2" in line
    launcher = project.now().launcher()
    assert launcher.machine(Placement()) == "slurm: main --constraint=a100, 4 cores, 0 cards"
    assert launcher.at_once == 4
    fake.scene(controller="down")
    line = next(one for one in examine(project.data, project.now().experiments) if one.startswith("profile local"))
    assert "Slurm's controller does not answer" in line
