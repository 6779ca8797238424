"""Planted secrets that a provider repeats in errors and answers appear nowhere that a person or an
API can look."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import duckdb
import pytest
from playwright.sync_api import Page, Response, WebSocket, sync_playwright

from assets.alerts import failure_alert
from assets.cleaning import sft_examples
from assets.comparing import comparison
from assets.generating import corpus_records, generated_records, local_records
from assets.inputs import cell_inputs
from assets.instance import prepare_home
from assets.judging import judged_answers
from assets.project import partition_of
from assets.providers import provider_comparison
from assets.training import trained_model
from pipelines.compare import compare as comparing
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.lake.warehouse import connect
from pipelines.nightly import alert
from tests.fakes.llm_server import Reply, chat_server, completion
from tests.project import MODEL, make_project

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
MARK = "planted-secret"
SECRETS = {
    "ANTHROPIC_API_KEY": f"sk-ant-{MARK}-0123456789",
    "OPENAI_API_KEY": f"sk-{MARK}-9876543210",
    "HF_TOKEN": f"hf_{MARK}_abcdefghij",
    alert.WEBHOOK: f"http://127.0.0.1:9/services/{MARK}-hook",
}
RECORD = {
    "instruction": "Which book for a rainy evening?",
    "input": "",
    "output": f"A long one, with the key {SECRETS['OPENAI_API_KEY']} in it.",
}
DATA = [corpus_records, local_records, generated_records, sft_examples, provider_comparison]


@dataclass(frozen=True)
class Left:
    """The traces of a run against a provider that repeats keys."""

    data: DataRoot
    run_ids: list[str]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Left]:
    """A run that generated, judged and published, with a cell without reachable weights and a
    failed run with a webhook message."""
    project = make_project(tmp_path_factory.mktemp("secrets") / "project", tiny_folder)
    anthropic, openai = (_refusal(SECRETS[name]) for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"))
    answered = Reply(completion(json.dumps(RECORD)))
    with (
        pytest.MonkeyPatch.context() as patch,
        chat_server(lambda _prompt, _nth: anthropic) as one,
        chat_server(lambda _prompt, _nth: openai if len(other.bodies) > 1 else answered) as other,
    ):
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("FEATHERWEIGHT_DATA", str(project.data.root))
        patch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(project.experiments))
        patch.setenv("FEATHERWEIGHT_PROFILE", "local")
        patch.setenv("DAGSTER_HOME", str(project.data.root / "dagster"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(comparing, "keep_predictions", lambda _stage: None)
        mine = {"kind": "openai-compatible", "api_key_env": "OPENAI_API_KEY", "model": "m", "concurrency": 1}
        project.change(
            sources={"corpus": True, "providers": ["mine", "claude"]},
            providers={
                "mine": {**mine, "base_url": other.url, "price": {"input": 1, "output": 1}, "enabled": True},
                "claude": {"base_url": one.url, "enabled": True},
            },
            generation={"requests": 3, "judge": {"providers": ["mine"]}},
            judging={"judge": "mine", "teachers": ["claude"]},
        )
        project.out_of_reach()
        prepare_home()
        with dg.DagsterInstance.get() as instance:
            yield Left(project.data, _runs(instance))


def _refusal(key: str) -> Reply:
    return Reply(json.dumps({"error": {"type": "auth", "message": f"Incorrect API key: {key}"}}), status=401)


def _runs(instance: dg.DagsterInstance) -> list[str]:
    @dg.asset
    def breaks() -> None:
        raise ValueError("it broke")

    done = [
        dg.materialize(DATA, instance=instance),
        dg.materialize(
            [*DATA, cell_inputs, trained_model],
            selection=[cell_inputs, trained_model],
            instance=instance,
            partition_key=partition_of(MODEL, "full"),
        ),
        dg.materialize([judged_answers, comparison], instance=instance),
    ]
    assert all(result.success for result in done)
    failed = dg.materialize([breaks], instance=instance, raise_on_error=False)
    run, event = failed.dagster_run, failed.get_run_failure_event()
    context = dg.build_run_status_sensor_context("failure_alert", event, instance, run)
    failure_alert(context.for_run_failure())
    return [result.run_id for result in [*done, failed]]


def test_no_file_and_no_table_holds_a_secret(left: Left, capfd: pytest.CaptureFixture[str]) -> None:
    files = [path for path in left.data.root.parent.rglob("*") if path.is_file()]
    names = {path.suffix for path in files}
    assert {".db", ".sqlite", ".html", ".duckdb", ".parquet", ".json", ".err", ".out"} <= names, (
        "all kinds were looked at"
    )
    assert not [path for path in files if MARK.encode() in path.read_bytes()]
    contents = ""
    # Columns are compressed in their file, so they are read as values.
    with duckdb.connect() as db:
        for path in files:
            if path.suffix == ".parquet":
                contents += str(db.execute("FROM read_parquet(?)", [str(path)]).fetchall())
    with connect(left.data) as db:
        for (name,) in db.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            contents += str(db.execute(f'FROM "{name}"').fetchall())
    assert "with the key … in it" in contents and "Incorrect API key: …" in contents, (
        "what was repeated is there, without the key"
    )
    printed = capfd.readouterr()
    assert MARK not in contents + printed.out + printed.err


@pytest.fixture(scope="module")
def page(left: Left) -> Iterator[Page]:
    """A browser at the webserver of the same instance."""
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed; .ci/run installs it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(sys.executable).parent
    command = [
        str(folder / "dagster-webserver"),
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-w",
        str(PROJECT / "workspace.yaml"),
    ]
    server = subprocess.Popen(
        command, cwd=PROJECT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 600
        while not _listens(port):
            assert server.poll() is None and time.monotonic() < deadline, "the webserver did not start"
            time.sleep(0.2)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            opened = browser.new_page(viewport={"width": 1400, "height": 1000}, base_url=f"http://127.0.0.1:{port}")
            opened.set_default_timeout(600_000)
            yield opened
            browser.close()
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(timeout=600)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_no_page_of_the_ui_is_sent_a_secret(left: Left, page: Page) -> None:
    got: list[str] = []

    def received(response: Response) -> None:
        if "/graphql" in response.url or "/logs/" in response.url:
            got.append(response.text())

    def opened(socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: got.append(str(frame)))

    page.on("response", received)
    page.on("websocket", opened)
    generated, unavailable, published, failed = left.run_ids
    shown = {
        "/asset-groups": "generated_records",
        "/assets/generated_records": "charged by provider",
        "/assets/generated_records?view=checks&checkDetail=providers_answer": "Incorrect API key",
        "/assets/trained_model?view=checks&checkDetail=cell_is_ok": "unavailable",
        "/assets/judged_answers?view=checks&checkDetail=judges_answer": "judges_answer",
        "/assets/comparison": "version of the lake",
        f"/runs/{generated}": "Incorrect API key",
        f"/runs/{generated}?logType=stderr": "",
        f"/runs/{unavailable}": MODEL,
        f"/runs/{published}": "published",
        f"/runs/{failed}": "it broke",
        "/runs": generated[:8],
        "/locations/featherweight/jobs/data/playground": "generated_records",
        "/locations/featherweight/sensors/failure_alert": "failure_alert",
        "/automation": "nightly",
        "/deployment/locations": "featherweight",
        "/deployment/config": "telemetry",
    }
    for address, word in shown.items():
        before = len(got)
        page.goto(address)
        deadline = time.monotonic() + 600
        while word not in (seen := "".join(got[before:]) + page.content()) and time.monotonic() < deadline:
            page.wait_for_timeout(300)
        page.wait_for_timeout(500)
        assert word in seen, f"{address} does not show {word}"
        assert MARK not in "".join(got[before:]) + page.content(), address
