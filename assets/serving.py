"""The servers of `make ui`: started, watched and stopped together.

`make ui` prepares their home and continues here. This process lives as long as the servers, so it
does not load Dagster. Without a shared code server, webserver and daemon would each start their
own, and the daemon would restart its own every minute.
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
# The name in workspace.yaml and pyproject.toml.
LOCATION = "featherweight"
MODULE = "assets.definitions"
GRACE_SECONDS = 8
# Enough time for a busy machine to load the definitions.
LOAD_SECONDS = 300
# Maximum length of the socket's path; the kernel accepts 107 characters.
SOCKET_CHARS = 100


@dataclass(frozen=True)
class Workspace:
    """The socket of the code server, and the workspace file for webserver and daemon."""

    socket: Path
    file: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "Workspace":
        workspace = cls(folder / "code.sock", folder / "workspace.yaml")
        server = {"socket": str(workspace.socket), "location_name": LOCATION}
        workspace.file.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}), encoding="utf-8")
        return workspace


def serve(port: int) -> int:
    """Run the three servers. Returns 1 if one of them ends, 0 if the user stops this process."""
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
            # The code server goes last, since it waits for the others to disconnect.
            for child in reversed(children):
                stop_group(child, grace_seconds=GRACE_SECONDS)


def _short_folder() -> str | None:
    """The parent folder for a socket path short enough for the kernel; None: the default."""
    return None if len(tempfile.gettempdir()) + len("/featherweight-12345678/code.sock") <= SOCKET_CHARS else "/tmp"


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).parent / command[0]
    return subprocess.Popen([str(program), *command[1:]], cwd=PROJECT, start_new_session=True)


def _wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    """Wait until the code server listens, has ended or takes too long. The UI then shows the
    error."""
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
