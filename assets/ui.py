"""`make ui`: Dagster's webserver, its daemon and one code server for both, on 127.0.0.1.

This module prepares their home; serving.py starts and watches them.
"""

import os
import socket
import sys
from typing import NoReturn

import dagster as dg

from assets.instance import prepare_home, size_pool
from assets.serving import HOST
from pipelines.errors import UsageError, WorkError
from pipelines.lake.disk import explained
from pipelines.lake.paths import data_root
from pipelines.runs.process import print_anything


def serve_without_dagster(port: int) -> NoReturn:
    """Replace this process by one that only watches the servers, to free Dagster's hundred
    megabytes."""
    os.execv(sys.executable, [sys.executable, "-m", "assets.serving", str(port)])


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
            f"featherweight: port {port} is in use: stop its program, or choose another port: `make ui PORT={port + 1}`",
            file=sys.stderr,
        )
        return 2
    try:
        home = prepare_home()
        # Create the tables once here: two processes that start on an empty home would collide.
        with dg.DagsterInstance.get() as instance:
            size_pool(instance)
    except (UsageError, WorkError) as error:
        print(f"featherweight: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if (message := explained(error, data_root().root)) is None:
            raise
        print(f"featherweight: {message}", file=sys.stderr)
        return WorkError.exit_code
    print(f"featherweight: http://{HOST}:{port} (DAGSTER_HOME {home}); Ctrl-C ends it", file=sys.stderr, flush=True)
    return serve_without_dagster(port)


if __name__ == "__main__":
    sys.exit(main())
