"""`make screenshots`: docs/images/{graph,cell,report}.png from the data of this checkout, as the README shows them;
`python -m tests.screenshots graph cell` takes those alone.

It needs Debian's Chromium. The pictures are 1,400 pixels wide and small enough to be tracked.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

from pipelines.lake.paths import PROJECT, data_root
from pipelines.runs import cells
from pipelines.runs.cells import Attempt

IMAGES = PROJECT / "docs" / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

SETTLE_MS = 6000


def newest_cell() -> Attempt:
    """The trained cell that the picture shows."""
    found = [a for a in cells.all_attempts(data_root()) if a.status == "ok" and a.curve()]
    if not found:
        sys.exit("featherweight: nothing was trained yet, so there is nothing to show: `make run` first")
    return max(found, key=lambda attempt: attempt.run_id)


def graph(page: Page) -> None:
    """Every group open, from left to right, without the lists beside it."""
    page.set_viewport_size({"width": 1400, "height": 720})
    page.goto("/asset-groups")
    page.get_by_text("Hide navigation").click()
    page.locator('button:has([aria-label="panel_show_right"])').first.click()
    page.keyboard.press("Alt+KeyE")  # Expand all groups


def cell(page: Page) -> None:
    """The newest trained cell, from its curve on: what stands above it are the paths of the folder that it was made in."""
    page.set_viewport_size({"width": 1400, "height": 860})
    key = newest_cell().key
    page.goto(f"/assets/trained_model?view=partitions&partition={quote(f'{key.method}|{key.model}')}")
    page.get_by_text("loss curve", exact=True).first.evaluate("row => row.scrollIntoView({block: 'start'})")


def report(page: Page) -> None:
    page.set_viewport_size({"width": 1400, "height": 860})
    page.goto(data_root().report.as_uri())


PICTURES = {"graph": graph, "cell": cell, "report": report}


def main() -> int:
    chromium, wanted = shutil.which("chromium"), sys.argv[1:] or list(PICTURES)
    if unknown := set(wanted) - set(PICTURES):
        sys.exit(f"featherweight: {', '.join(unknown)}: expected some of {', '.join(PICTURES)}")
    if chromium is None:
        sys.exit("featherweight: no chromium here: `apt-get install chromium`")
    newest_cell()
    IMAGES.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "assets.ui"], env={**os.environ, "PORT": str(port)}, cwd=PROJECT)
    try:
        _wait_for(port, server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(base_url=f"http://127.0.0.1:{port}")
            page.set_default_timeout(600_000)
            for name in wanted:
                PICTURES[name](page)
                page.wait_for_timeout(SETTLE_MS)
                page.screenshot(path=IMAGES / f"{name}.png")
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=600)
    for name in wanted:
        print(f"docs/images/{name}.png  {(IMAGES / f'{name}.png').stat().st_size / 1000:.0f} KB")
    return 0


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 600
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    sys.exit("featherweight: the UI did not start; its last lines are above")


if __name__ == "__main__":
    sys.exit(main())
