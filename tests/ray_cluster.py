"""A Ray cluster on loopback in separate processes: a head without processors, and nodes that a test
may kill.

`python -m tests.ray_cluster PORT NODES CPUS MEMORY_GB` obeys lines on its standard input. At the
end of the input the whole cluster ends.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

# Every address is 127.0.0.1 (Ray's own switch, made for other systems). A dead node is noticed
# within some seconds.
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class RayCluster:
    """The cluster's process, as a test uses it."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self._process = process
        self._log = log
        self.address = f"http://127.0.0.1:{port}"

    def tell(self, *words: Any) -> Any:
        """Send it a command; returns its answer, once it is done."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if line.startswith("ANSWER "):
                return json.loads(line[7:])
        printed = self._log.read_text(encoding="utf-8", errors="replace").strip()[-800:]
        raise RuntimeError(f"the cluster's process has ended; it printed last: {printed or 'nothing'}")


@contextmanager
def ray_cluster(
    *, nodes: int = 2, cpus: int = 1, memory_gb: float = 4, env: Mapping[str, str] | None = None
) -> Iterator[RayCluster]:
    """A running cluster; all of its processes are gone afterwards, however the block ends."""
    # Sockets need a short path.
    port, folder = free_port(), tempfile.mkdtemp(prefix="fw-ray-", dir="/tmp")
    log = Path(folder) / "stderr.txt"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_cluster", str(port), str(nodes), str(cpus), str(memory_gb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **SETTINGS, **(env or {}), "RAY_TMPDIR": folder, "TMPDIR": folder},
            start_new_session=True,
        )
    started: list[psutil.Process] = []
    try:
        cluster = RayCluster(process, port, log)
        cluster.tell("ready")
        yield cluster
    finally:
        with suppress(psutil.Error):
            started = psutil.Process(process.pid).children(recursive=True)
        assert process.stdin
        with suppress(BrokenPipeError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            # After this grace period the process is killed; no test fails because of it.
            process.wait(timeout=15)
        for one in [*started, *_using(folder)]:
            with suppress(psutil.Error):
                one.kill()
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _using(folder: str) -> list[psutil.Process]:
    """Processes with the cluster's folder in their environment, also those without a parent."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_TMPDIR") == folder:
                processes.append(process)
    return processes


def serve(port: int, count: int, cpus: int, memory_gb: float) -> None:
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20}
    head = {
        "num_cpus": 0,
        "dashboard_agent_listen_port": free_port(),
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        **small,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node: dict[str, Any] = {"num_cpus": cpus, "memory": round(memory_gb * 1e9), **small}
    try:
        nodes: list[Any] = []

        def add(**more: Any) -> None:
            # A folder of its own for the node, as on a separate machine.
            own = f"{os.environ['RAY_TMPDIR']}/node-{len(nodes)}-{time.monotonic_ns() % 10**6}"
            nodes.append(
                cluster.add_node(**{**node, "temp_dir": own, "dashboard_agent_listen_port": free_port(), **more})
            )

        for _ in range(count):
            add()
        for line in sys.stdin:
            word, *rest = json.loads(line)
            answer: Any = None
            if word == "nodes":
                answer = [one.node_id for one in nodes]
            elif word == "add":
                add(**(rest[0] if rest else {}))
            elif word == "kill":
                # Like a power cut: the node's processes are gone at once.
                (dead,) = [one for one in nodes if one.node_id == rest[0]]
                nodes.remove(dead)
                cluster.remove_node(dead, allow_graceful=False)
            elif word == "kill head":
                assert cluster.head_node
                cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
            print(f"ANSWER {json.dumps(answer)}", flush=True)
    finally:
        cluster.shutdown()


def wait_for(what: Any, *, seconds: float = 600) -> Any:
    """The first true result of `what()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
