"""The UI in a real browser: `make ui` serves the graph, a click materializes a cell, and all
processes end together."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import dagster as dg
import psutil
import pytest
from playwright.sync_api import Page, sync_playwright

from assets.cleaning import sft_examples
from assets.generating import corpus_records, generated_records, local_records
from assets.instance import prepare_home
from assets.project import partition_of
from assets.training import trained_model
from pipelines.lake.paths import PROJECT
from pipelines.runs import cells
from tests.project import MODEL, TinyProject

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed; .ci/run installs it")


@pytest.fixture
def ui(project: TinyProject) -> Iterator[str]:
    """The address of a UI on a project with cleaned data; Ctrl-C ends it, and its processes are
    checked to be gone."""
    prepare_home()
    with dg.DagsterInstance.get() as instance:
        assert dg.materialize(
            [corpus_records, local_records, generated_records, sft_examples], instance=instance
        ).success
        # The budget is too small for this cell.
        project.change(models={MODEL: {"overrides": {"full": {"memory_budget_gb": 0.2}}}})
        planted = dg.materialize([trained_model], instance=instance, partition_key=partition_of(MODEL, "full"))
        assert planted.success and not planted.asset_materializations_for_node("trained_model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PORT": str(port)}
    server = subprocess.Popen(
        [sys.executable, "-m", "assets.ui"], env=environment, cwd=PROJECT, stderr=subprocess.DEVNULL
    )
    try:
        wait(lambda: _answers(port), "the webserver")
        yield f"http://127.0.0.1:{port}"
    finally:
        family = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGINT)
        server.wait(timeout=600)
        _, alive = psutil.wait_procs(family, timeout=600)
    assert not alive, alive


def wait(condition, what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.3)


def shows(page: Page, address: str, text: str) -> bool:
    """Whether the page shows `text` after reloads: it does not follow a run that ends while it is
    open."""
    page.goto(address)
    page.wait_for_timeout(4000)
    return page.get_by_text(text).first.is_visible()


def _dialog_is_open(page: Page) -> bool:
    """Click until the page, which first loads the asset's definition, shows its dialog."""
    page.get_by_role("button", name="Materialize").first.click()
    page.wait_for_timeout(2000)
    return page.get_by_role("button", name="Launch 1 run").is_visible()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def page(ui: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1500, "height": 1000}, base_url=ui)
        opened.set_default_timeout(600_000)
        yield opened
        browser.close()


def test_the_graph_shows_and_a_cell_materialized_by_a_click_fills_the_table(project: TinyProject, page: Page) -> None:
    page.goto("/asset-groups")
    for group in ("generate", "clean", "train", "evaluate", "compare"):
        page.get_by_text(group, exact=True).first.wait_for()
    page.goto("/automation")
    page.get_by_text("nightly").first.wait_for()
    switched_on = page.get_by_role("checkbox", checked=True)
    wait(lambda: switched_on.count() == 4, "the schedule and three sensors; failure_alert is off without a webhook")
    check = "/assets/trained_model?view=checks&checkDetail=cell_is_ok"
    wait(lambda: shows(page, check, "out_of_memory: used"), "the warning on the cell that did not fit")

    page.goto(f"/assets/trained_model?view=partitions&partition=lora-r8%7C{MODEL}")
    page.get_by_text(f"lora-r8|{MODEL}").first.wait_for()
    wait(lambda: _dialog_is_open(page), "the launch dialog")
    page.get_by_role("button", name="Launch 1 run").click()
    key = project.key("lora-r8")
    wait(lambda: (attempt := cells.latest(project.data, key)) and attempt.status == "ok", "the cell to be trained")
    cell = f"/assets/trained_model?view=partitions&partition=lora-r8%7C{MODEL}"
    wait(lambda: shows(page, cell, "train_loss") and shows(page, cell, "loss curve"), "the cell's page")
    wait(project.data.warehouse.exists, "the sensor to publish")
    wait(lambda: shows(page, "/assets/comparison?view=events", "bits/byte"), "the comparison's page")
    page.goto("/assets/comparison")
    page.get_by_text("Freshness policy").first.wait_for()
    assert page.get_by_text("Freshness policy").first.is_visible()
