"""Dagster Pipes across machines: the child writes its messages into a file of its attempt's folder,
and new lines are copied to the file that the step's session reads."""

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTEXT, MESSAGES = "DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES"
FILE = "pipes.jsonl"


def messages_into(file: Path) -> dict[str, str]:
    """The variable that makes a child write into `file`, in dagster_pipes' encoding."""
    message = json.dumps({"path": str(file)}).encode()
    return {MESSAGES: base64.b64encode(zlib.compress(message)).decode()}


class Carrier:
    """Copies new lines of `source` to the file of the session in `env`, if there is one."""

    def __init__(self, env: Mapping[str, str], source: Path) -> None:
        message: Any = json.loads(zlib.decompress(base64.b64decode(env[MESSAGES]))) if MESSAGES in env else {}
        self._target = Path(message["path"]) if "path" in message else None
        self._source = source
        self._carried = 0

    def carry(self) -> None:
        if self._target is None or not self._source.exists():
            return
        with self._source.open("rb") as source:
            source.seek(self._carried)
            new = source.read()
        complete = new[: new.rfind(b"\n") + 1]
        if complete:
            with self._target.open("ab") as target:
                target.write(complete)
            self._carried += len(complete)
