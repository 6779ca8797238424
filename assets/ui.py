"""`make ui`: Dagster's webserver and daemon on 127.0.0.1, ended together, whatever ends first."""

import os
import signal
import socket
import subprocess
import sys
import time

import dagster as dg

from assets.instance import prepare_home, size_pool
from pipelines.disk import explained
from pipelines.errors import UsageError, WorkError
from pipelines.paths import PROJECT, data_root
from pipelines.runs.process import print_anything, stop_group

HOST = "127.0.0.1"
GRACE_SECONDS = 8


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def main() -> int:
    print_anything()
    text = os.environ.get("PORT") or "3000"
    if not text.isdigit() or not 0 < int(text) < 65536:
        print(
            f"featherweight: PORT is {text!r}; expected a number from 1 to 65535, as in `make ui PORT=3001`",
            file=sys.stderr,
        )
        return 2
    port = int(text)
    if not port_is_free(port):
        print(
            f"featherweight: port {port} is in use: end what uses it, or choose another: `make ui PORT={port + 1}`",
            file=sys.stderr,
        )
        return 2
    try:
        home = prepare_home()
        # its tables are made here once: two processes that start on an empty home trip over each other
        with dg.DagsterInstance.get() as instance:
            size_pool(instance)
    except (UsageError, WorkError) as error:
        print(f"featherweight: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if (said := explained(error, data_root().root)) is None:
            raise
        print(f"featherweight: {said}", file=sys.stderr)
        return WorkError.exit_code
    workspace = ["-w", str(PROJECT / "workspace.yaml")]
    commands = (
        ["dagster-webserver", "-h", HOST, "-p", str(port), *workspace],
        ["dagster-daemon", "run", *workspace],
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))
    print(f"featherweight: http://{HOST}:{port} (DAGSTER_HOME {home}); Ctrl-C ends it", file=sys.stderr)
    folder = os.path.dirname(sys.executable)
    children = [
        subprocess.Popen([os.path.join(folder, command[0]), *command[1:]], cwd=PROJECT, start_new_session=True)
        for command in commands
    ]
    try:
        while all(child.poll() is None for child in children):
            time.sleep(0.5)
        print("featherweight: the webserver or the daemon ended; its last lines are above", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for child in children:
            stop_group(child, grace_seconds=GRACE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
