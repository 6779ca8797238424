"""What tests of generation share: a data root with a small grid, a configuration that asks the fake
provider, and readers of the outcome."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from pipelines.generate.generate import GenerationResult, generate
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments
from tests.fakes.behavior import Account, Behavior, Wire
from tests.fakes.provider import FakeProvider

KEY = "sk-planted-0123456789abcdef"
KEYS = {"ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": KEY}
# The fake provider's own prices, in dollars per million tokens.
PRICE = {"input": 3, "output": 15}
MILLION = 1_000_000
NAMES: dict[Wire, str] = {"anthropic": "claude", "openai": "gpt"}
GRID: dict[str, Any] = {
    "axes": {
        "mood": ["tired", "glad", "bored", "curious", "lonely", "hopeful", "angry", "calm"],
        "job": ["nurse", "cook", "farmer", "lawyer", "student", "teacher"],
        "language": ["English", "Korean"],
    },
    "languages": {"English": "en", "Korean": "ko"},
    "topic": ["mood", "job"],
    "prompt": "A book for a {mood} {job}, in {language}.",
    "system": "You recommend books.",
    "schema": {
        "type": "object",
        "properties": {
            "instruction": {"type": "string", "minLength": 10, "maxLength": 200},
            "input": {"type": "string", "maxLength": 100},
            "output": {"type": "string", "minLength": 30, "maxLength": 400},
        },
        "required": ["instruction", "input", "output"],
        "additionalProperties": False,
    },
}


def ready(server: FakeProvider, monkeypatch: pytest.MonkeyPatch, behavior: Behavior) -> FakeProvider:
    """Reset the server as if it had received no request, set this behavior, and put its keys into
    the environment."""
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    server.behavior = behavior
    server.reset()
    return server


@dataclass(frozen=True)
class Asking:
    """One data root, one configuration, one fake provider."""

    data: DataRoot
    server: FakeProvider
    path: Path

    @property
    def experiments(self) -> Experiments:
        return configuration.load(self.path)

    def configure(self, **sections: Any) -> "Asking":
        """Merge `sections` into the configuration, dictionaries key by key."""
        settings = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        self.path.write_text(yaml.safe_dump(merged(settings, sections)), encoding="utf-8")
        return self

    def grid(self, **changes: Any) -> None:
        grid = yaml.safe_dump({**GRID, **changes}, allow_unicode=True)
        (self.data.root / "topics.yaml").write_text(grid, encoding="utf-8")

    def generate(self, batch: Literal["submit", "collect"] | None = None, **more: Any) -> GenerationResult:
        return generate(self.data, self.experiments, batch=batch, **more)

    def finish(self) -> GenerationResult:
        """Collect until no batch holds a request."""
        deadline = time.monotonic() + 600
        while True:
            result = self.generate("collect")
            if not any(one.in_batch for one in result.providers.values()) or result.stopped:
                return result
            assert time.monotonic() < deadline, "the batches did not end"
            time.sleep(0.02)

    def account(self, wire: Wire) -> Account:
        return self.server.ledger.of(wire)

    def rows(self, sql: str = "SELECT * FROM requests ORDER BY key") -> list[dict[str, Any]]:
        """Rows of the journal as another process reads them."""
        with sqlite3.connect(f"file:{self.data.journal}?mode=ro", uri=True) as db:
            db.row_factory = sqlite3.Row
            rows = [dict(row) for row in db.execute(sql)]
        db.close()
        return rows

    def batches(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM batches ORDER BY id")

    def statuses(self) -> dict[str, int]:
        return dict(Counter(row["status"] for row in self.rows()))

    def charged(self) -> float:
        return sum((row["cost_usd"] or 0) + row["reserved_usd"] for row in self.rows())

    def leaks(self, *texts: str) -> list[str]:
        """Every place that holds the planted key: files under the data root, or texts."""
        files = [path for path in self.data.root.rglob("*") if path.is_file()]
        leaks = [str(path) for path in files if KEY.encode() in path.read_bytes()]
        return leaks + [text for text in texts if KEY in text]


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(one)
    for name, value in other.items():
        both[name] = (
            merged(both[name], value) if isinstance(value, dict) and isinstance(both.get(name), dict) else value
        )
    return both


def asking(root: Path, server: FakeProvider, *wires: Wire, **sections: Any) -> Asking:
    """A configuration for six records over each of `wires` (none: both) from `server`, with
    `sections` merged in."""
    root.mkdir(parents=True, exist_ok=True)
    providers: dict[str, Any] = {
        "claude": {"kind": "anthropic", "model": "claude-test", "base_url": server.anthropic_url},
        "gpt": {"kind": "openai", "model": "gpt-test", "base_url": server.openai_url},
    }
    for wire, name in NAMES.items():
        providers[name] |= {"enabled": not wires or wire in wires, "price": PRICE, "timeout_seconds": 600}
    configured = {
        "models": {"tiny": {"source": {"hub": "planted/tiny"}, "prompt": "chat", "lora_targets": ["q_proj"]}},
        "methods": {"base": {"kind": "none"}},
        "profiles": {"local": {"models": ["tiny"], "methods": ["base"]}},
        "sources": {"providers": ["claude", "gpt"]},
        "providers": providers,
        "generation": {"requests": 6, "languages": ["en"], "max_tokens": 200},
    }
    path = root / "experiments.yaml"
    path.write_text(yaml.safe_dump(merged(configured, sections)), encoding="utf-8")
    made = Asking(DataRoot(root), server, path)
    made.grid()
    return made


def _step(root: str, path: str, batch: Any, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    generate(DataRoot(Path(root)), configuration.load(Path(path)), batch=batch)


def child(ask: Asking, batch: Literal["submit", "collect"] | None = None) -> multiprocessing.Process:
    """A process that generates once; it is not started yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.asking", "pipelines.generate.batch_clients"])
    made: Any = context.Process(target=_step, args=(str(ask.data.root), str(ask.path), batch, KEYS))
    return made


def kill(process: multiprocessing.Process) -> None:
    """Kill -9, and wait until the process is gone."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    # The process may be gone once its parent has collected its status.
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z":
            time.sleep(0.001)


def started(ask: Asking, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the console script's `generate` in a process with the keys and little else in its
    environment."""
    command = [sys.executable, "-m", "pipelines.cli", "generate", *arguments]
    variables = {"FEATHERWEIGHT_DATA": str(ask.data.root), "FEATHERWEIGHT_EXPERIMENTS": str(ask.path), **KEYS}
    variables |= {"PATH": "/usr/bin:/bin", "HOME": str(ask.data.root), **environment}
    return subprocess.Popen(
        command, cwd=PROJECT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
