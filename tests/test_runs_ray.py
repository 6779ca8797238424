"""Cells on a real Ray cluster of two nodes on loopback, with a shared folder and with an S3
protocol server. All slow."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from moto.server import ThreadedMotoServer

from pipelines.compare.compare import published_rows
from pipelines.lake.files import read_json
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.checkpoints import whole
from pipelines.runs.command import CellCommand
from pipelines.runs.launchers.ray.jobs import JobServer
from pipelines.runs.launchers.ray.launcher import FORCE_SECONDS, STOP_SECONDS
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from tests.in_process import clean_for
from tests.project import MODEL, TinyProject
from tests.ray_cluster import RayCluster, ray_cluster, wait_for

pytestmark = pytest.mark.slow
KEY = "planted-0123456789abcdef"
BUCKET = "cells"
# Long enough to be interrupted: some minutes without interruption.
LONG = {"epochs": 4000, "checkpoint_every_steps": 5, "eval_every_steps": 10000}


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment variables of the storage's users."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": KEY + "-id", "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(env)
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield env
    finally:
        server.stop()
        for name in env:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


@pytest.fixture(scope="module")
def cluster(s3: dict[str, str]) -> Iterator[RayCluster]:
    with ray_cluster(env={"OMP_NUM_THREADS": "1", **s3}) as made:
        yield made


@pytest.fixture
def on_ray(project: TinyProject, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TinyProject]:
    """The project with its cells on the cluster; arguments are settings of `ray:` and, as
    `training`, of the profile."""

    def made(*, training: dict[str, Any] | None = None, **ray: Any) -> TinyProject:
        settings = {"address": cluster.address, "python": sys.executable, "gpus": 0, **ray}
        project.change(profiles={"local": {"launcher": "ray", "ray": settings, "training": training or {}}})
        return clean_for(project)

    return made


class Recorder:
    """Hooks that record messages and call `act` with the attempt at each tick."""

    def __init__(self, act: Callable[[Attempt], None] = lambda _attempt: None) -> None:
        self.lines: list[str] = []
        self.hooks = RunHooks(say=self.lines.append, on_tick=act)


def last_step(folder: Path) -> int:
    written = whole(folder)
    return int(written[-1].name.removeprefix("step-")) if written else 0


def node_of(attempt: Attempt) -> str | None:
    return (read_json(attempt.folder / "state.json") or {}).get("node")


def test_through_s3_a_cell_trains_is_evaluated_and_no_key_stays_anywhere(
    on_ray: Callable[..., TinyProject], s3: dict[str, str], cluster: RayCluster
) -> None:
    from pipelines.evaluate.cell import evaluate

    project = on_ray(storage=f"s3://{BUCKET}/tiny")
    stage, recorder = project.now(), Recorder()
    attempt, _ = train(stage.resolve(), project.key("lora-r8"), hooks=recorder.hooks)
    assert (attempt.status, attempt.result.detail) == ("ok", "")
    assert attempt.result.device and attempt.result.launcher == "ray"
    assert attempt.curve()[-1]["step"] == attempt.result.measured["steps"]
    assert (attempt.model_folder / "adapter_model.safetensors").exists()
    evaluation, _ = evaluate(stage.resolve(), project.key("lora-r8"), hooks=recorder.hooks)
    assert evaluation.ok and evaluation.answers() and evaluation.result.device == attempt.result.device
    objects = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="tiny/")["Contents"]
    # The job's files are removed; its inputs stay.
    assert not [one["Key"] for one in objects if "/jobs/" in one["Key"]]
    jobs = JobServer(cluster.address)
    printed = (
        jobs._ask("GET", f"/api/jobs/featherweight-{attempt.run_id}/logs").text + jobs._ask("GET", "/api/jobs/").text
    )
    assert KEY not in printed + "".join(recorder.lines)
    for path in stage.data.root.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    for one in objects:
        assert KEY.encode() not in boto3.client("s3").get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()


@pytest.mark.parametrize("storage", [None, f"s3://{BUCKET}/lost"])
def test_a_node_that_dies_mid_cell_costs_the_steps_since_the_last_checkpoint(
    on_ray: Callable[..., TinyProject], cluster: RayCluster, storage: str | None
) -> None:
    project = on_ray(storage=storage, training={**LONG, "epochs": 60})
    killed: list[str] = []

    def kill(attempt: Attempt) -> None:
        node = node_of(attempt)
        if not killed and node and last_step(attempt.folder) >= 5:
            killed.append(node)
            cluster.tell("kill", node)
            cluster.tell("add")

    recorder = Recorder(kill)
    finished, _ = train(project.resolved(), project.key("lora-r8"), hooks=recorder.hooks)
    first, second = cells.attempts(project.data, project.key("lora-r8"))
    assert killed and finished.run_id == second.run_id
    assert (first.status, second.status) == ("killed", "ok")
    assert f"node {killed[0]} died" in first.result.detail
    assert f"node {killed[0]} died" in second.result.detail
    assert (second.spec.resume or {})["run_id"] == first.run_id
    assert int((second.spec.resume or {})["checkpoint"].rsplit("-", 1)[1]) >= 5
    assert "going on after step" in (second.folder / "log.txt").read_text()
    steps = [row["step"] for row in second.curve()]
    assert steps == sorted(set(steps)) and steps[-1] == second.result.measured["steps"]
    assert any("once more on another node" in line for line in recorder.lines)


def test_no_capacity_waits_and_says_why_and_a_cancel_then_leaves_nothing(
    on_ray: Callable[..., TinyProject], cluster: RayCluster
) -> None:
    project = on_ray(cpus=3)

    def cancel(attempt: Attempt) -> None:
        if "waiting" in (read_json(attempt.folder / "state.json") or {}):
            assert attempt.status == "queued"
            raise KeyboardInterrupt

    recorder = Recorder(cancel)
    with pytest.raises(KeyboardInterrupt):
        train(project.resolved(), project.key("base"), hooks=recorder.hooks)
    assert any("asks for 3 CPU; no node has so much" in line and "1 CPU" in line for line in recorder.lines)
    attempt = cells.latest(project.data, project.key("base"))
    assert attempt and attempt.status == "killed"
    # The job starts only to see that it was stopped.
    cluster.tell("add", {"num_cpus": 3})
    jobs = JobServer(cluster.address)
    name = f"featherweight-{attempt.run_id}"
    wait_for(lambda: (job := jobs.job(name)) is not None and job.status == "STOPPED")


def test_a_cancel_stops_the_job_within_ten_seconds_and_keeps_a_checkpoint(
    on_ray: Callable[..., TinyProject], cluster: RayCluster
) -> None:
    project = on_ray(training=LONG)
    began: list[float] = []

    def cancel(attempt: Attempt) -> None:
        if last_step(attempt.folder) >= 5:
            began.append(time.monotonic())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(project.resolved(), project.key("lora-r8"), hooks=Recorder(cancel).hooks)
    took = time.monotonic() - began[0]
    attempt = cells.latest(project.data, project.key("lora-r8"))
    assert attempt
    job = JobServer(cluster.address).job(f"featherweight-{attempt.run_id}")
    print(f"cancelled within {took:.1f} s")
    assert attempt.status == "killed" and "the next run goes on after step" in attempt.result.detail
    # The design promises only how long we wait ourselves; a busy machine may take any time
    # besides.
    assert STOP_SECONDS + FORCE_SECONDS < 10
    assert job is None or job.over


DRIVER = """
import sys
from pipelines.cli import main
sys.exit(main(["train", sys.argv[1], sys.argv[2]]))
"""


@pytest.mark.parametrize("storage", [None, f"s3://{BUCKET}/again"])
def test_a_driver_that_is_killed_finds_its_job_again(
    on_ray: Callable[..., TinyProject], cluster: RayCluster, storage: str | None
) -> None:
    project = on_ray(storage=storage, training={**LONG, "epochs": 60})
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, MODEL, "lora-r8"], start_new_session=True)
    try:
        latest: Callable[[], Any] = lambda: cells.latest(project.data, project.key("lora-r8"))  # noqa: E731
        wait_for(lambda: (attempt := latest()) and last_step(attempt.folder) >= 5)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert latest().status == "lost"
    recorder = Recorder()
    finished, reused = train(project.resolved(), project.key("lora-r8"), hooks=recorder.hooks)
    assert (finished.status, reused) == ("ok", False)
    assert [attempt.run_id for attempt in cells.attempts(project.data, project.key("lora-r8"))] == [finished.run_id]
    assert any("found again, not started twice" in line for line in recorder.lines)
    steps = [row["step"] for row in finished.curve()]
    assert steps == sorted(set(steps))
    mine = [
        line for line in JobServer(cluster.address)._ask("GET", "/api/jobs/").json() if finished.run_id in str(line)
    ]
    assert len(mine) == 1


def test_a_cell_of_two_processes_is_one_job_that_asks_for_both(
    on_ray: Callable[..., TinyProject], cluster: RayCluster
) -> None:
    project = on_ray(storage=f"s3://{BUCKET}/ranks")
    cluster.tell("add", {"num_cpus": 2})
    project.change(profiles={"local": {"devices": 2, "sharding": "ddp"}})
    attempt, _ = train(project.resolved(), project.key("lora-r8"), hooks=Recorder().hooks)
    assert (attempt.status, attempt.result.detail) == ("ok", "")
    assert (read_json(attempt.folder / "job.json") or {})["asked"]["num_cpus"] == 2
    assert str(attempt.result.device).endswith("× 2, ddp")
    assert attempt.result.fingerprints["machine"] == "ray: 1 cores, 0 cards × 2, ddp"


def test_no_bucket_and_no_shared_folder_are_rows_that_say_so(
    on_ray: Callable[..., TinyProject], cluster: RayCluster, tmp_path: Path
) -> None:
    project = on_ray(storage="s3://no-such-bucket/x")
    began = time.monotonic()
    attempt, _ = train(project.resolved(), project.key("base"))
    print(f"no bucket: {time.monotonic() - began:.1f} s: {attempt.result.detail}")
    assert attempt.status == "unavailable" and "storage s3://no-such-bucket/x" in attempt.result.detail
    project = on_ray(storage=None)

    class Hidden:
        """The launcher of a project whose data root the nodes do not see: the job's folder is
        renamed before it starts."""

        def start(self, command: CellCommand) -> Any:
            from pipelines.runs.launchers.ray.launcher import RayLauncher

            ray = project.now().experiments.profile("local").ray
            assert ray
            running = RayLauncher(ray).start(command)
            (command.folder / "job.json").rename(command.folder / "not-seen.json")
            return running

    attempt, _ = train(project.resolved(), CellKey(MODEL, "base", 2), hooks=RunHooks(launcher=Hidden()))
    assert attempt.status == "unavailable"
    assert "must be a folder that every node sees" in attempt.result.detail
    project.change(profiles={"local": {"ray": {"python": "/no/such/python"}}})
    attempt, _ = train(project.resolved(), CellKey(MODEL, "base", 3))
    assert attempt.status == "unavailable" and "/no/such/python" in attempt.result.detail


def test_a_head_that_dies_is_a_row_and_what_was_done_is_kept(
    project: TinyProject, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_cluster(nodes=1, env={"OMP_NUM_THREADS": "1", **s3}) as own:
        settings = {"address": own.address, "python": sys.executable, "gpus": 0, "storage": f"s3://{BUCKET}/head"}
        project.change(profiles={"local": {"launcher": "ray", "ray": settings, "training": LONG}})
        clean_for(project)
        killed: list[float] = []

        def kill(attempt: Attempt) -> None:
            # A checkpoint has arrived from the node.
            if not killed and whole(attempt.folder):
                own.tell("kill head")
                killed.append(time.monotonic())

        attempt, _ = train(project.resolved(), project.key("lora-r8"), hooks=Recorder(kill).hooks)
        print(f"head dead: row after {time.monotonic() - killed[0]:.0f} s: {attempt.result.detail}")
    assert attempt.status == "killed"
    assert "no Ray job server answers" in attempt.result.detail
    assert "the next run goes on after step" in attempt.result.detail


def run_graph(project: TinyProject, profile: dict[str, Any]) -> list[dict[str, Any]]:
    """`make run` with one thread per cell; returns the published rows."""
    project.change(profiles={"local": profile})
    done = subprocess.run(
        [sys.executable, "-m", "assets.run"],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr[-1500:])
    return sorted(published_rows(project.data), key=lambda row: row["method"])


def spans(project: TinyProject) -> list[tuple[str, str, str]]:
    """Start, end and method of every attempt, in order."""
    results = [attempt.result for attempt in cells.all_attempts(project.data)]
    return sorted((str(one.started_at), str(one.finished_at), str(one.method)) for one in results)


def test_the_graph_runs_two_cells_at_a_time_and_dagster_hears_them(
    on_ray: Callable[..., TinyProject], cluster: RayCluster
) -> None:
    project = on_ray(at_once=2, storage=f"s3://{BUCKET}/graph", training={"epochs": 20})
    rows = run_graph(project, {"methods": ["base", "full", "lora-r8"]})
    assert [(row["status"], row["launcher"]) for row in rows] == [("ok", "ray")] * 3
    # The second cell began before the first ended.
    assert any(one[1] > other[0] for one, other in pairwise(spans(project)))
    orders = [read_json(attempt.folder / "job.json") or {} for attempt in cells.all_attempts(project.data)]
    # The orders ask for the predicted memory.
    assert all(one["asked"]["memory"] > 10**8 for one in orders)
    with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as instance:
        lines = [
            entry.user_message
            for run in instance.get_runs(dg.RunsFilter(job_name="training"))
            for entry in instance.all_logs(run.run_id)
        ]
    assert sum("step 1/40" in line for line in lines) == 2


def same(one: float | None, other: float | None, share: float) -> bool:
    return one == other or one == pytest.approx(other, rel=share, abs=1e-6)


@pytest.mark.skipif(not (PROJECT / "data" / "models" / MODEL).exists(), reason="needs the packaged weights")
@pytest.mark.timeout(3000)
def test_the_whole_profile_ends_in_the_same_table_as_locally(
    tmp_path: Path, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packaged weights on the local profile's settings, one thread per cell: five cells, two at
    a time, through S3."""
    tables, seconds = {}, {}
    here = {"launcher": "local", "training": {}}
    there = {
        "address": cluster.address,
        "python": sys.executable,
        "storage": f"s3://{BUCKET}/grid",
        "at_once": 2,
        "gpus": 0,
    }
    for name, profile in (("local", here), ("ray", {"launcher": "ray", "ray": there})):
        folder = tmp_path / name
        (folder / "data" / "models").mkdir(parents=True)
        (folder / "data" / "models" / MODEL).symlink_to(PROJECT / "data" / "models" / MODEL)
        (folder / "experiments.yaml").write_text((PROJECT / "experiments.yaml").read_text(encoding="utf-8"))
        project = TinyProject(DataRoot(folder / "data"), folder / "experiments.yaml")
        project.change(sources={"local_generator": False})
        monkeypatch.setenv("FEATHERWEIGHT_DATA", str(project.data.root))
        monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(project.experiments))
        monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
        monkeypatch.setenv("DAGSTER_HOME", str(folder / "dagster"))
        began = time.monotonic()
        tables[name] = run_graph(project, profile)
        seconds[name] = time.monotonic() - began
    print({name: round(taken) for name, taken in seconds.items()})
    for local, ray in zip(tables["local"], tables["ray"], strict=True):
        shown = ("method", "status", "eval_bits_per_byte", "peak_memory_gb", "tokens_per_second", "chrf")
        print([local[name] for name in shown], [ray[name] for name in shown])
        assert (ray["method"], ray["status"], ray["device"]) == (local["method"], "ok", local["device"])
        for name in ("eval_bits_per_byte", "train_loss", "eval_loss", "chrf", "delta_base"):
            assert same(ray[name], local[name], 1e-4), (local["method"], name)
        assert same(ray["peak_memory_gb"], local["peak_memory_gb"], 0.05)
