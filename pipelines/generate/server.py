"""A local LLM server: llama.cpp (xllamacpp) on a free loopback port, in a child process that ends
with the caller.

Run by hand: `python -m pipelines.generate.server MODEL.gguf PORT_FILE`.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.errors import WorkError
from pipelines.runs.process import die_with_parent, offer_to_oom_killer, spawn, stop_group

START_SECONDS = 120
# Tokens of one request and its answer.
SLOT_TOKENS = 2048


@contextmanager
def local_server(gguf: Path, *, slots: int, keep_open: tuple[int, ...] = ()) -> Iterator[str]:
    """Serve `gguf` and yield the base URL of its OpenAI-compatible API; the server always ends
    afterwards.

    Raises:
        WorkError: the server did not start; the message ends with its last output.
    """
    with TemporaryDirectory(prefix="featherweight-server-") as folder:
        port_file, log = Path(folder) / "port", Path(folder) / "log.txt"
        arguments = ["-m", "pipelines.generate.server", str(gguf), str(port_file), str(slots)]
        process = spawn(arguments, log=log, keep_open=keep_open)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise WorkError(f"the local LLM server did not start with {gguf.name}: {_last_lines(log)}")
                time.sleep(0.05)
            yield json.loads(port_file.read_text(encoding="utf-8"))["url"]
        finally:
            stop_group(process)


def _last_lines(log: Path, count: int = 5) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def _serve(gguf: str, port_file: str, slots: int) -> None:
    import xllamacpp.xllamacpp as xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_parallel = slots
    parameters.n_ctx = SLOT_TOKENS * slots
    server = xllamacpp.Server(parameters)
    from pipelines.lake.files import write_json

    write_json(Path(port_file), {"url": f"{server.listening_address}/v1"})
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    die_with_parent()
    offer_to_oom_killer()
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
