"""`make ui` as a process, and queries of its interface from a test."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from assets.cleaning import sft_examples
from assets.generating import corpus_records, generated_records, local_records
from assets.instance import prepare_home
from pipelines.lake.paths import PROJECT


@contextmanager
def running_ui() -> Iterator[str]:
    """The address of a `make ui` on the environment's project, whose data are cleaned first."""
    prepare_home()
    with dg.DagsterInstance.get() as instance:
        data = [corpus_records, local_records, generated_records, sft_examples]
        assert dg.materialize(data, instance=instance).success
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "assets.ui"],
        env={**os.environ, "PORT": str(port)},
        cwd=PROJECT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: "data" in str(graphql_answer(address, "{version}")), "the webserver")
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=600)


def until(condition: Callable[[], Any], what: str, seconds: float = 3600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def graphql_answer(address: str, query: str, **variables: Any) -> Any:
    """The UI's answer to a query; None while nothing listens."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.loads(response.read())
    except OSError:
        return None
