"""Requests to a cluster and the use of its answers, without a cluster; tests/test_runs_ray.py has
one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UsageError
from pipelines.lake.files import write_json
from pipelines.lake.paths import DataRoot
from pipelines.runs.launchers import node, pipes
from pipelines.runs.launchers.driver import job_name, predicted_gb
from pipelines.runs.launchers.ray import code, parcel
from pipelines.runs.launchers.ray.jobs import JobServer, RefusedError, UnreachableError
from pipelines.runs.launchers.ray.launcher import end, is_under_way, why_it_waits
from pipelines.runs.launchers.ray.parcel import Inbox, Outbox
from pipelines.runs.launchers.ray.store import Store, StoreError, harmless
from pipelines.runs.predictions import answer_file
from pipelines.runs.process import child_environment
from pipelines.runs.spec import RunSpec
from pipelines.train.cell import train
from tests.in_process import clean_for
from tests.project import TinyProject

KEY = "planted-0123456789abcdef"


@contextmanager
def server(answers: dict[str, tuple[int, Any]]) -> Iterator[tuple[str, list[str]]]:
    """A job server that answers by method and path; yields its address and its requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            requests.append(f"{self.command} {self.path}")
            status, body = answers.get(requests[-1], (404, "no such job"))
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}", requests
    finally:
        made.shutdown()
        made.server_close()


def on_ray(project: TinyProject, **settings: Any) -> None:
    project.change(profiles={"local": {"launcher": "ray", "ray": settings}})


def test_a_wrong_address_or_a_server_of_something_else_is_a_row_that_says_so(project: TinyProject) -> None:
    clean_for(project)
    on_ray(project, address="http://127.0.0.1:9")
    attempt, _ = train(project.resolved(), project.key("base"))
    assert attempt.status == "unavailable"
    assert "no Ray job server answers at http://127.0.0.1:9" in attempt.result.detail
    assert "ray.address" in attempt.result.detail
    # The cell ran nowhere.
    assert attempt.result.device is None
    for wrong in ("http://127.0.0.1:abc", "http://..:8265"):
        with pytest.raises(UnreachableError, match=r"set ray\.address"):
            JobServer(wrong).version()
    with (
        server({"GET /api/version": (404, "</html>")}) as (address, _),
        pytest.raises(UnreachableError, match="is no Ray"),
    ):
        JobServer(address).version()
    answers = {"GET /api/version": (200, "<html>"), "POST /api/jobs/x/stop": (500, "Traceback\nlast line")}
    with server(answers) as (address, _):
        with pytest.raises(UnreachableError, match="no Ray job server; start one"):
            JobServer(address).version()
        with pytest.raises(RefusedError, match="answers 500: last line"):
            JobServer(address).stop("x")


def test_storage_that_is_not_there_is_a_row_that_says_so(project: TinyProject, tmp_path: Path) -> None:
    clean_for(project)
    (tmp_path / "file").touch()
    with server({"GET /api/version": (200, {"ray_version": "2.60.0"})}) as (address, requests):
        on_ray(project, address=address, storage=f"file://{tmp_path}/file/below", gpus=0)
        attempt, _ = train(project.resolved(), project.key("base"))
    assert attempt.status == "unavailable"
    assert f"storage file://{tmp_path}/file/below cannot be used: writing featherweight" in attempt.result.detail
    # No job is submitted without its inputs.
    assert not any(one.startswith("POST") for one in requests)
    with pytest.raises(StoreError, match="make extras E=ray"):
        Store("nonsense://bucket/prefix")


@pytest.mark.parametrize("url", ["s3://key:secret@bucket", "relative/folder"])
def test_storage_is_a_url_without_keys(project: TinyProject, url: str) -> None:
    on_ray(project, storage=url)
    with pytest.raises(UsageError, match=r"ray\.storage"):
        project.now()


def test_what_a_job_waits_for_is_said_with_what_the_cluster_has() -> None:
    nodes = [
        {"state": "ALIVE", "resources_total": {"CPU": 4.0, "memory": 8e9}},
        {"state": "DEAD", "resources_total": {}},
    ]
    answer = {"data": {"result": {"result": nodes}}}
    with server({"GET /api/v0/nodes?detail=1": (200, answer)}) as (address, _):
        job = {"job": "one", "asked": {"num_cpus": 8, "num_gpus": None, "memory": None}}
        assert why_it_waits(job, JobServer(address)) == (
            "waiting for the cluster: one asks for 8 CPU; no node has so much, so it waits until one joins (nodes: 4 CPU, 8.0 GB)"
        )
        job["asked"] |= {"num_cpus": 1, "memory": 8e9}
        assert "asks for 1 CPU, 8.0 GB; every node that has so much is taken" in why_it_waits(job, JobServer(address))
    assert why_it_waits(job, JobServer(address)).startswith("waiting for the cluster: one asks for")


def test_a_cell_asks_for_its_predicted_memory(tmp_path: Path) -> None:
    recipe = {"kind": "lora"}
    attempt = tmp_path / "lake" / "cells" / "m" / "lora" / "1" / "an-attempt"
    spec = RunSpec(root=str(tmp_path), recipe=recipe, seed=1, fingerprints={"data": "d"})
    spec.write(attempt)
    assert predicted_gb(spec, attempt) is None
    write_json(answer_file(DataRoot(tmp_path), recipe, "d", 1, own_tokenizer=True), {"cpu": {"peak": 2e9}})
    assert predicted_gb(spec, attempt) == pytest.approx(2.2)
    evaluation = attempt / "evaluations" / "one"
    assert predicted_gb(RunSpec(root=str(tmp_path)), evaluation) == pytest.approx(2.2)
    assert predicted_gb(replace(spec, memory_budget_gb=1.5, devices=2), attempt) == pytest.approx(3.0)
    assert (job_name(attempt), job_name(evaluation)) == ("featherweight-an-attempt", "featherweight-an-attempt-one")


def test_a_job_that_nobody_watches_is_found_again_or_ended(tmp_path: Path) -> None:
    answers: dict[str, tuple[int, Any]] = {
        "GET /api/jobs/one": (200, {"status": "RUNNING"}),
        "POST /api/jobs/one/stop": (200, {}),
    }
    assert not is_under_way(tmp_path)
    with server(answers) as (address, requests):
        write_json(tmp_path / "job.json", {"job": "one", "address": address})
        assert is_under_way(tmp_path)
        end(tmp_path)
        assert requests[-1] == "POST /api/jobs/one/stop"
        # The job has been told to end.
        end(tmp_path)
        assert requests.count("POST /api/jobs/one/stop") == 1
        answers["GET /api/jobs/one"] = (200, {"status": "FAILED"})
        assert not is_under_way(tmp_path)
    write_json(tmp_path / "ended.json", {})
    # Its results are here, whatever became of the cluster.
    assert is_under_way(tmp_path)


def test_what_a_node_makes_reaches_the_driver_whole(tmp_path: Path) -> None:
    store, node, driver = Store(f"file://{tmp_path}/store"), tmp_path / "node", tmp_path / "driver"
    outbox, inbox = Outbox(store, "job", node), Inbox(store, "job", driver)
    # Nothing has been sent yet.
    inbox.take()
    for name, text in {"curve.jsonl": "1\n", "spec.json": "own", ".model.partial/w": "half", "log.txt": "a"}.items():
        (node / name).parent.mkdir(parents=True, exist_ok=True)
        (node / name).write_text(text)
    for name in ("tensors.safetensors", "state.json"):
        (node / "checkpoints" / "step-1").mkdir(parents=True, exist_ok=True)
        (node / "checkpoints" / "step-1" / name).write_text("one")
    outbox.send()
    inbox.take()
    files = sorted(path.relative_to(driver).as_posix() for path in driver.rglob("*") if path.is_file())
    assert files == [
        "checkpoints/step-1/state.json",
        "checkpoints/step-1/tensors.safetensors",
        "curve.jsonl",
        "log.txt",
    ]
    (node / "checkpoints" / "step-1").rename(node / "checkpoints" / "step-2")
    (node / "curve.jsonl").write_text("1\n2\n")
    (node / "ended.json").write_text("{}")
    # The last file, so it never arrives before the rest.
    assert list(parcel.outputs(node))[-1] == "ended.json"
    outbox.send()
    inbox.take()
    assert (driver / "curve.jsonl").read_text() == "1\n2\n"
    assert [path.name for path in (driver / "checkpoints").iterdir()] == ["step-2"]
    assert outbox.stop_request() is None
    inbox.tell_to_stop(6)
    assert outbox.stop_request() == {"grace_seconds": 6}
    inbox.clear([])
    assert not list((tmp_path / "store").rglob("*.*"))


def test_inputs_travel_once_and_land_where_the_data_root_has_them(tmp_path: Path) -> None:
    root, own = tmp_path / "root", tmp_path / "mine"
    evaluation = root / "cells" / "e-1"
    for path in (
        root / "lake" / "examples.parquet",
        root / "encoder" / "tokenizer.json",
        evaluation / "vectors.npz",
        own / "model.safetensors",
        own / "old.gguf",
        root / "m" / "config.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (root / "m" / "model.safetensors").write_text("weights that a reader does not need")
    spec = {
        "root": str(root),
        "examples": "lake/examples.parquet",
        "weights": str(own),
        "tokenizers_to_fit": [{"model": "m", "folder": "m", "prompt": "chat", "max_length": 8}],
        "retrieval": {"embeddings": str(root / "encoder"), "vectors": "vectors.npz"},
    }
    store = Store(f"file://{tmp_path}/store")
    order, inputs = parcel.pack(spec, store, evaluation)
    assert order["root"] == "" and order["weights"].startswith("models/by-path/")
    node, cache = tmp_path / "node", tmp_path / "cache"
    assert parcel.unpack(inputs, node, cache, store) > 0
    assert parcel.unpack(inputs, node, cache, store) == 0
    assert (node / order["weights"] / "model.safetensors").read_text() == "model.safetensors"
    assert (node / order["retrieval"]["embeddings"] / "tokenizer.json").exists()
    assert (node / "cells" / "e-1" / order["retrieval"]["vectors"]).read_text() == "vectors.npz"
    assert sorted(path.name for path in node.rglob("*") if path.is_file()) == [
        "config.json", "examples.parquet", "model.safetensors", "tokenizer.json", "vectors.npz",
    ]  # fmt: skip


def test_only_a_cells_own_weights_go_with_its_job(tmp_path: Path) -> None:
    """A trained model's tokenizer and configuration equal its base's, which another cell may be
    reading."""
    root = tmp_path / "root"
    for folder in ("base", "trained"):
        (root / folder).mkdir(parents=True)
        (root / folder / "tokenizer.json").write_text("the same")
        (root / folder / "model.safetensors").write_text(f"weights of {folder}")
    (root / "examples.parquet").touch()
    spec = {"root": str(root), "examples": "examples.parquet", "weights": "base", "trained": "trained"}
    _, inputs = parcel.pack(spec, Store(f"file://{tmp_path}/store"), root / "cell")
    assert [one["path"] for one in inputs if one["passing"]] == ["trained/model.safetensors"]


def test_pipes_messages_are_carried_line_by_line(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    carrier = pipes.Carrier(pipes.messages_into(target), source)
    carrier.carry()
    source.write_text('{"a": 1}\n{"b"')
    carrier.carry()
    assert target.read_text() == '{"a": 1}\n'
    with source.open("a") as more:
        more.write(": 2}\n")
    carrier.carry()
    assert target.read_text() == '{"a": 1}\n{"b": 2}\n'
    pipes.Carrier({}, source).carry()


def test_a_node_with_other_packages_is_told_which() -> None:
    assert node.version_mismatch(node.versions()) is None
    difference = node.version_mismatch({**node.versions(), "torch": "1.0", "more": "2"})
    assert difference and "has torch 2.13.0, more not installed; the driver has torch 1.0, more 2" in difference
    name, content = code.package()
    # Equal to the byte, so that it is uploaded only once.
    assert code.package.__wrapped__() == (name, content)


def test_no_key_reaches_a_child_or_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY + "id")
    assert not any(KEY in value for value in child_environment().values())
    assert harmless(ValueError(f"signature of {KEY} is wrong")) == "signature of *** is wrong"
    with pytest.raises(StoreError, match="reading nothing: not found"):
        Store(f"file://{tmp_path}").download("nothing", tmp_path / "x")
