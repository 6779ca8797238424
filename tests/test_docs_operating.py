"""The promises of docs/operating.md: its tests exist, its settings are the code's, and alerts, keys
and faults under a real daemon."""

import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from assets.alerts import failure_alert
from assets.training import CellConfig
from pipelines.lake.files import locked, read_json, write_json
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.nightly import alert, news
from pipelines.runs import cells, checkpoints
from tests.project import MODEL, TinyProject
from tests.running_ui import graphql_answer, running_ui, until

TEXT = (PROJECT / "docs" / "operating.md").read_text(encoding="utf-8")
SECRET = "T0PLANTED/B0PLANTED/planted-webhook-secret"


# Texts that the webhook refuses at the moment.
DOWN: set[str] = set()


def test_every_test_that_the_documentation_names_exists() -> None:
    named = re.findall(r"`?(test_\w+\.py)(?:::(test_\w+))?`", TEXT)
    assert len(named) > 12
    for file, test in named:
        assert f"def {test}" in (PROJECT / "tests" / file).read_text(encoding="utf-8"), (file, test)


def test_the_launchpads_fields_are_documented_there_and_in_the_code() -> None:
    for name, field in CellConfig.model_fields.items():
        assert field.description and f"`{name}`" in TEXT, name


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The messages that a real webhook on this machine received."""
    received: list[dict[str, Any]] = []
    DOWN.clear()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(json.loads(body) | {"type": self.headers["Content-Type"]})
            status = {"refuse this": 410, "redirect this": 302, "too long": 413}.get(received[-1]["text"], 200)
            if received[-1]["text"] in DOWN:
                status = 503
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/login")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(alert.WEBHOOK, f"http://127.0.0.1:{server.server_port}/services/{SECRET}")
    yield received
    server.shutdown()
    server.server_close()


def test_a_failed_run_is_posted_and_the_webhooks_address_is_told_to_nobody(
    webhook: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(tmp_path / "data"))

    @dg.asset
    def breaks() -> None:
        raise ValueError("it broke")

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        result = dg.materialize([breaks], instance=instance, raise_on_error=False)
        run, event = result.dagster_run, result.get_run_failure_event()
        context = dg.build_run_status_sensor_context("failure_alert", event, instance, run)
        failure_alert(context.for_run_failure())
    (sent,) = webhook
    assert sent["type"] == "application/json" and run.run_id[:8] in sent["text"] and SECRET not in sent["text"]
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"planted-webhook-secret" not in everything


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://example.com/x", "expected an https:// address"),
        ("file:///etc/passwd", "expected an https:// address"),
        ("http://127.0.0.1:1/secret", "cannot be reached"),
        ("https://[bad/secret", "cannot be reached"),
        ("https://host:port/secret", "cannot be reached"),
        ("https://127.0.0.1/a secret/x", "cannot be reached"),
    ],
)
def test_a_webhook_that_cannot_be_used_is_said_without_its_address(
    url: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(alert.WEBHOOK, url)
    problem_text = alert.post("hello")
    assert (
        problem_text is not None
        and problem in problem_text
        and url not in problem_text
        and "secret" not in problem_text
    )


def test_a_webhook_that_refuses_is_said(webhook: list[dict[str, Any]]) -> None:
    assert alert.post("refuse this") == f"{alert.WEBHOOK}: the webhook answered HTTP 410"
    assert alert.post("redirect this") == f"{alert.WEBHOOK}: the webhook answered HTTP 302"


def kept_news(data: DataRoot) -> list[str]:
    return [(read_json(file) or {})["text"] for file in sorted((data.lake / "news").glob("*.json"))]


def test_news_waits_until_the_webhook_is_back_and_is_sent_once_and_in_order(
    webhook: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataRoot(tmp_path)
    DOWN.update(("first", "second", "third"))
    for text in ("first", "second"):
        problem = news.tell(data, text)
        assert problem and problem.endswith("HTTP 503")
    assert kept_news(data) == ["first", "second"] and SECRET not in str([*(data.lake / "news").iterdir()])
    DOWN.discard("first")
    webhook.clear()
    assert news.deliver(data) is None and webhook == [], "the last try was just now: nobody waits for another"
    os.utime(data.lake / "news" / ".tried", (0, 0))
    assert (news.deliver(data) or "").endswith("HTTP 503")
    assert [one["text"] for one in webhook] == ["first", "second"] and kept_news(data) == ["second"]
    DOWN.clear()
    assert news.tell(data, "third") is None
    assert [one["text"] for one in webhook[2:]] == ["second", "third"] and kept_news(data) == []
    os.utime(data.lake / "news" / ".tried", (0, 0))
    assert news.deliver(data) is None and len(webhook) == 4
    monkeypatch.delenv(alert.WEBHOOK)
    assert news.tell(data, "nobody listens") is None and kept_news(data) == []


def test_kept_news_is_bounded_and_a_killed_sender_or_a_refused_message_holds_up_nothing(
    webhook: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "MAX_MESSAGES", 8)
    monkeypatch.setattr(news, "AT_ONCE", 4)
    data = DataRoot(tmp_path)
    texts = [f"night {number:03}" for number in range(news.MAX_MESSAGES + 5)]
    DOWN.update(texts)
    for number, text in enumerate(texts):
        write_json(data.lake / "news" / f"{number:03}.json", {"text": text})
    write_json(data.lake / "news" / f"000{news.SENDING}", {"text": "it may have been sent"})
    assert news.deliver(data, now=True)
    assert kept_news(data) == texts[5:] and not list((data.lake / "news").glob(f"*{news.SENDING}"))
    DOWN.clear()
    (data.lake / "news" / "012.json").rename(data.lake / "news" / "000.json")
    write_json(data.lake / "news" / "000.json", {"text": "too long"})
    webhook.clear()
    assert (news.deliver(data, now=True) or "").endswith("HTTP 413")
    assert news.deliver(data, now=True) is None
    assert [one["text"] for one in webhook] == ["too long", *texts[5 : 5 + news.AT_ONCE]]
    with locked(data.locks / "news.lock", "somebody else"):
        assert news.tell(data, "meanwhile") is None, "the current sender sends this later"
    assert kept_news(data)[-1] == "meanwhile"


def test_without_a_webhook_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(alert.WEBHOOK, raising=False)
    assert alert.post("hello") is None


@pytest.fixture
def ui(project: TinyProject) -> Iterator[str]:
    """The address of a running `make ui` on a project with cleaned data."""
    with running_ui() as address:
        yield address


LAUNCH = """
mutation Launch($tags: [ExecutionTag!]!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "featherweight", repositoryName: "__repository__", jobName: "training"}
    runConfigData: "{}"
    executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
RELOAD = 'mutation { reloadRepositoryLocation(repositoryLocationName: "featherweight") { __typename } }'
CANCEL = "mutation Cancel($run: String!) { terminateRun(runId: $run) { __typename } }"
STATUS = "query Status($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"


BACKFILL = """
mutation Backfill($assets: [AssetKeyInput!]!, $cells: [String!]!, $config: RunConfigData) {
  launchPartitionBackfill(backfillParams: {assetSelection: $assets, partitionNames: $cells, runConfigData: $config}) {
    __typename ... on PythonError { message }
  }
}
"""


@pytest.mark.slow
def test_a_backfill_takes_the_launchpads_settings(project: TinyProject, ui: str) -> None:
    assets = [{"path": [name]} for name in ("cell_inputs", "trained_model", "evaluation")]
    settings = {"config": {"seeds": [7], "max_examples": 5}}
    chosen = [f"lora-r8|{MODEL}", f"qlora-r8|{MODEL}"]
    config = {"ops": {"trained_model": settings, "evaluation": settings}}
    launched = graphql_answer(ui, BACKFILL, assets=assets, cells=chosen, config=config)
    assert "LaunchBackfillSuccess" in str(launched), launched
    key = cells.CellKey(MODEL, "lora-r8", 7)
    until(lambda: (a := cells.latest(project.data, key)) and a.status == "ok" and a.evaluations(), "the cell")
    attempt = cells.latest(project.data, key)
    assert attempt is not None and attempt.result.measured["train_examples"] == 5

    def finished() -> bool:
        with dg.DagsterInstance.get() as instance:
            runs = instance.get_runs(dg.RunsFilter(job_name="__ASSET_JOB"))
            return len(runs) == 2 and all(run.is_success for run in runs)

    until(finished, "both runs")
    made = {(a.key.method, a.key.seed) for a in cells.all_attempts(project.data)}
    assert made == {("lora-r8", 7), ("qlora-r8", 7)}, "these alone; the untouched model is base_evaluation's"


BACKFILL_BY_ASSET = """
mutation Backfill($chosen: [PartitionsByAssetSelector!]!) {
  launchPartitionBackfill(backfillParams: {partitionsByAssets: $chosen}) { __typename ... on PythonError { message } }
}
"""


@pytest.mark.slow
def test_a_backfill_evaluates_the_untouched_model_before_its_cells(project: TinyProject, ui: str) -> None:
    """`base_evaluation` has partitions by model, cells by method and model: one backfill holds
    both."""
    cell = f"lora-r8|{MODEL}"
    partition_of = {"base_evaluation": MODEL, "cell_inputs": cell, "trained_model": cell, "evaluation": cell}
    chosen = [
        {"assetKey": {"path": [name]}, "partitions": {"ranges": [{"start": partition, "end": partition}]}}
        for name, partition in partition_of.items()
    ]
    launched = graphql_answer(ui, BACKFILL_BY_ASSET, chosen=chosen)
    assert "LaunchBackfillSuccess" in str(launched), launched

    def ended() -> bool:
        with dg.DagsterInstance.get() as instance:
            (backfill,) = instance.get_backfills()
            assert not backfill.status.value.startswith("FAIL"), backfill.error
            return backfill.status.value == "COMPLETED_SUCCESS"

    until(ended, "the backfill", 3600)
    evaluated = {
        a.key.method: [evaluation.folder.name for evaluation in a.evaluations()]
        for a in cells.all_attempts(project.data)
    }
    assert set(evaluated) == {"base", "lora-r8"}
    assert len(evaluated["base"]) == 1 and evaluated["base"] < evaluated["lora-r8"], "run ids sort by time"


@pytest.mark.slow
def test_reload_and_cancel_in_the_ui(project: TinyProject, ui: str) -> None:
    project.change(
        profiles={"local": {"training": {"epochs": 5000, "eval_every_steps": 1000, "checkpoint_every_steps": 4}}}
    )
    partition = {
        "dagster/partition": f"lora-r8|{MODEL}",
        "dagster/partition/method": "lora-r8",
        "dagster/partition/model": MODEL,
    }
    tags = [{"key": key, "value": value} for key, value in partition.items()]
    launched = graphql_answer(ui, LAUNCH, tags=tags)["data"]["launchRun"]
    run = launched["run"]["runId"]
    key = project.key("lora-r8")
    until(lambda: (a := cells.latest(project.data, key)) and checkpoints.whole(a.folder), "a checkpoint")
    attempt = cells.latest(project.data, key)
    assert attempt is not None

    assert "WorkspaceLocationEntry" in str(graphql_answer(ui, RELOAD))
    points = len(attempt.curve())
    until(lambda: len(attempt.curve()) > points + 2, "training to go on after the reload")

    children = [p for p in psutil.process_iter(["cmdline"]) if str(attempt.folder) in " ".join(p.info["cmdline"] or [])]
    assert children
    assert "TerminateRunSuccess" in str(graphql_answer(ui, CANCEL, run=run))
    until(
        lambda: not any(child.is_running() and child.status() != "zombie" for child in children), "its children's end"
    )
    until(lambda: graphql_answer(ui, STATUS, run=run)["data"]["runOrError"]["status"] == "CANCELED", "the run's end")
    ended = cells.Attempt(key, attempt.folder)
    assert ended.status == "killed" and "goes on after step" in ended.result.detail
    assert checkpoints.whole(attempt.folder)
