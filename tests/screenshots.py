"""`make screenshots`: README's first screen from the data of this checkout.

It makes README's table of numbers and docs/images/{graph,cell,report}.png. `python -m
tests.screenshots table report` makes those two alone, without a UI. It needs Debian's Chromium. The
pictures are 1,400 pixels wide and small enough to be tracked.
"""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.compare import published_rows
from pipelines.compare.show import Row, tabulate
from pipelines.lake.paths import PROJECT, data_root
from pipelines.runs import cells
from pipelines.runs.cells import Attempt

READMES, IMAGES = [PROJECT / "README.md", PROJECT / "README.ko.md"], PROJECT / "docs" / "images"
README_COLUMNS = COMPARISON.pick(
    "model", "method", "status", "eval_bits_per_byte", "base_bits_per_byte", "delta_base", "delta_base_low", "delta_base_high",
    "rates", "chrf", "peak_memory_gb", "estimated_memory_gb", "memory_vs_full", "train_seconds", "speedup_vs_full",
    "tokens_per_second", "artifact_mb",
)  # fmt: skip
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

SETTLE_MS = 6000


def newest_cell() -> Attempt:
    """The newest trained cell, which the picture shows."""
    attempts = [a for a in cells.all_attempts(data_root()) if a.status == "ok" and a.curve()]
    if not attempts:
        sys.exit("featherweight: nothing was trained yet, so there is nothing to show: `make run` first")
    return max(attempts, key=lambda attempt: attempt.run_id)


def graph(page: Page) -> None:
    """The graph with every group open, from left to right, without the lists beside it."""
    page.set_viewport_size({"width": 1400, "height": 720})
    page.goto("/asset-groups")
    page.get_by_text("Hide navigation").click()
    page.locator('button:has([aria-label="panel_show_right"])').first.click()
    # Expand all groups.
    page.keyboard.press("Alt+KeyE")


def cell(page: Page) -> None:
    """The newest trained cell, from its curve on; above it are only the paths of its folder."""
    page.set_viewport_size({"width": 1400, "height": 860})
    key = newest_cell().key
    page.goto(f"/assets/trained_model?view=partitions&partition={quote(f'{key.method}|{key.model}')}")
    page.get_by_text("loss curve", exact=True).first.evaluate("row => row.scrollIntoView({block: 'start'})")


def report(page: Page) -> None:
    """The report from its head to the end of the table."""
    page.set_viewport_size({"width": 1400, "height": 860})
    page.goto(data_root().report.as_uri())
    end = page.locator(".scroll.comparison").evaluate("box => box.getBoundingClientRect().bottom + scrollY")
    page.set_viewport_size({"width": 1400, "height": min(math.ceil(end) + 16, 1200)})


def table() -> None:
    """Replace the first table of README by the published rows, in both languages."""
    rows = published_rows(data_root())
    for page in READMES:
        page.write_text(with_table(page.read_text(encoding="utf-8"), rows), encoding="utf-8")


def with_table(page: str, rows: Sequence[Row]) -> str:
    """`page` with its first Markdown table replaced by the rows."""
    shown = tabulate(rows, README_COLUMNS, [], "markdown").split("\n\n")[0]
    return re.sub(r"(?:^\|.*\n)+", lambda _: shown + "\n", page, count=1, flags=re.MULTILINE)


PICTURES = {"graph": graph, "cell": cell, "report": report}
OF_THE_UI = {"graph", "cell"}


def main() -> int:
    chosen = sys.argv[1:] or ["table", *PICTURES]
    if unknown := set(chosen) - {"table", *PICTURES}:
        sys.exit(f"featherweight: {', '.join(unknown)}: expected some of table, {', '.join(PICTURES)}")
    newest_cell()
    if not data_root().report.exists():
        sys.exit("featherweight: nothing is published yet: `featherweight compare` first")
    if "table" in chosen:
        table()
        print("README.md, README.ko.md  the first table")
    if pictures := [name for name in chosen if name in PICTURES]:
        take(pictures)
    return 0


def take(names: Sequence[str]) -> None:
    """Write the pictures of these names."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("featherweight: no chromium here: `apt-get install chromium`")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with ui() if OF_THE_UI.intersection(names) else nullcontext(None) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(base_url=address)
        page.set_default_timeout(600_000)
        for name in names:
            PICTURES[name](page)
            page.wait_for_timeout(SETTLE_MS if name in OF_THE_UI else 0)
            page.screenshot(path=IMAGES / f"{name}.png")
        browser.close()
    for name in names:
        print(f"docs/images/{name}.png  {(IMAGES / f'{name}.png').stat().st_size / 1000:.0f} KB")


@contextmanager
def ui() -> Iterator[str]:
    """The address of a UI on this checkout's data, which ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "assets.ui"], env={**os.environ, "PORT": str(port)}, cwd=PROJECT)
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=600)


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
