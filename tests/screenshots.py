"""`make screenshots`: docs/images/{graph,cell,report}.png from the data of this checkout, as the README shows them.

It needs Debian's Chromium. The pictures are 1,400 pixels wide and small enough to be tracked.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

from pipelines import cells
from pipelines.cells import Attempt
from pipelines.paths import PROJECT, data_root

IMAGES = PROJECT / "docs" / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

SETTLE_MS = 6000


def newest_cell() -> Attempt:
    """The trained cell that the picture shows."""
    found = [a for a in cells.all_attempts(data_root()) if a.status == "ok" and a.curve()]
    if not found:
        sys.exit("featherweight: nothing was trained yet, so there is nothing to show: `make run` first")
    return max(found, key=lambda attempt: attempt.run_id)


def take(page: Page, address: str, name: str) -> Path:
    page.goto(address)
    page.wait_for_timeout(SETTLE_MS)
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    return path


def main() -> int:
    chromium, report = shutil.which("chromium"), data_root().report
    if chromium is None:
        sys.exit("featherweight: no chromium here: `apt-get install chromium`")
    cell = newest_cell().key
    IMAGES.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "assets.ui"], env={**os.environ, "PORT": str(port)}, cwd=PROJECT)
    try:
        _wait_for(port, server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1400, "height": 860}, base_url=f"http://127.0.0.1:{port}")
            partition = quote(f"{cell.method}|{cell.model}")
            taken = [
                take(page, "/asset-groups", "graph"),
                take(page, f"/assets/trained_model?view=partitions&partition={partition}", "cell"),
                take(page, report.as_uri(), "report"),
            ]
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    for path in taken:
        print(f"{path.relative_to(PROJECT)}  {path.stat().st_size / 1000:.0f} KB")
    return 0


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    sys.exit("featherweight: the UI did not start; its last lines are above")


if __name__ == "__main__":
    sys.exit(main())
