"""The servers of `make ui`, which prepares everything and goes on here: started, watched and ended together, whatever ends first.

This process lives as long as they do, so it loads no Dagster. Without a code server of ours webserver and daemon start one
each, and the daemon's anew every minute.
"""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from assets.reloading import Reloading
from pipelines.lake.paths import PROJECT
from pipelines.runs.process import stop_group

HOST = "127.0.0.1"
LOCATION = "featherweight"  # as workspace.yaml and pyproject.toml have it
MODULE = "assets.definitions"
GRACE_SECONDS = 8
LOAD_SECONDS = 300  # for a busy machine to load the definitions
SOCKET_CHARS = 100  # of the path of a Unix socket, of which the kernel takes 107


@dataclass(frozen=True)
class Workspace:
    """Where the code server listens, and the file that tells webserver and daemon."""

    socket: Path
    file: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "Workspace":
        workspace = cls(folder / "code.sock", folder / "workspace.yaml")
        server = {"socket": str(workspace.socket), "location_name": LOCATION}
        workspace.file.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}), encoding="utf-8")
        return workspace


def serve(port: int) -> int:
    """Run the three servers until one of them ends (1) or somebody ends us (0)."""
    children: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="featherweight-", dir=_short_folder()))
        workspace = Workspace.in_folder(Path(folder))
        try:
            code = ["dagster", "code-server", "start", "--socket", str(workspace.socket), "-m", MODULE]
            children.append(_started([*code, "--location-name", LOCATION, "--log-level", "warning"]))
            _wait_for(workspace.socket, children[0])
            children.append(_started(["dagster-webserver", "-h", HOST, "-p", str(port), "-w", str(workspace.file)]))
            children.append(_started(["dagster-daemon", "run", "-w", str(workspace.file)]))
            reloading = Reloading(f"http://{HOST}:{port}", LOCATION)
            while all(child.poll() is None for child in children):
                time.sleep(1)
                reloading.look()
            print("featherweight: one of the servers ended; its last lines are above", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 0
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for child in reversed(children):  # the code server last: it waits for the others to let go
                stop_group(child, grace_seconds=GRACE_SECONDS)


def _short_folder() -> str | None:
    """A folder for the socket, whose path the kernel limits; None: the usual one."""
    return None if len(tempfile.gettempdir()) + len("/featherweight-12345678/code.sock") <= SOCKET_CHARS else "/tmp"


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).parent / command[0]
    return subprocess.Popen([str(program), *command[1:]], cwd=PROJECT, start_new_session=True)


def _wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    """Return when the code server listens, or has ended, or takes too long, which the UI then shows."""
    deadline = time.monotonic() + LOAD_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            if path.exists() and probe.connect_ex(str(path)) == 0:
                return
        time.sleep(0.1)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))
    return serve(int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
