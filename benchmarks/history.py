"""Response time of the page of `comparison` with 1,000 attempts in the event log.

The query to the webserver is the page's own: the asset's latest materializations with all their
metadata. The event log is filled through Dagster's API: one materialization of `trained_model` for
each attempt, and one of `comparison` for every tenth.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ATTEMPTS = 1000
QUERY = """
query Page { assetOrError(assetKey: {path: ["comparison"]}) { ... on Asset {
  assetMaterializations(limit: 100) { runId timestamp metadataEntries { label ... on MarkdownMetadataEntry { mdStr } } }
  definition { description partitionDefinition { description } } } } }
"""


def measure() -> Iterator[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        os.environ["DAGSTER_HOME"] = folder
        seconds = _page_seconds(Path(folder), _fill(Path(folder)))
    yield {"benchmark": "comparison page", "attempts": ATTEMPTS, "materializations": ATTEMPTS // 10, "seconds": seconds}


def _fill(home: Path) -> int:
    """Fill the event log; returns the bytes of metadata of one publication."""
    import dagster as dg

    from assets.metadata import table

    row = {"model": "smollm2-135m", "method": "lora-r8", "advice": "5 % fewer bits per byte than the untouched model"}
    picture = dg.MetadataValue.md(f"![p](data:image/png;base64,{'A' * 40_000})")
    metadata = {"comparison": table([row] * 100, list(row)), "picture": picture, "another": picture}
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for number in range(ATTEMPTS):
            cell = dg.MultiPartitionKey({"method": "lora-r8", "model": "smollm2-135m"})
            materialization = dg.AssetMaterialization(
                "trained_model", partition=cell, metadata={"picture": picture, "n": number}
            )
            instance.report_runless_asset_event(materialization)
            if number % 10 == 0:
                instance.report_runless_asset_event(dg.AssetMaterialization("comparison", metadata=metadata))
    return len(str(metadata))


def _page_seconds(home: Path, size: int) -> float:
    assert size > 80_000
    port = "38471"
    server = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "dagster-webserver"),
            "-h",
            "127.0.0.1",
            "-p",
            port,
            "-m",
            "assets.definitions",
        ],
        env={**os.environ, "DAGSTER_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while _ask(port) is None:
            time.sleep(0.5)
        times = []
        for _ in range(5):
            began = time.monotonic()
            page = _ask(port)
            times.append(time.monotonic() - began)
            assert page and len(page["data"]["assetOrError"]["assetMaterializations"]) == ATTEMPTS // 10
        return sorted(times)[len(times) // 2]
    finally:
        server.terminate()
        server.wait(timeout=30)


def _ask(port: str) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", json.dumps({"query": QUERY}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())
    except OSError:
        return None
