"""Checks for benchmarks/card/runner.py that end badly; each runs in a separate process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.card.bench import Bench
from benchmarks.card.verdicts import finding

SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"


def good(bench: Bench) -> Iterator[dict[str, Any]]:
    yield {"figure": 1.5, "dry": bench.dry, "loss": float("nan")}
    print("a library's own word on standard output")
    yield finding("met", "seen so", True)
    yield finding("unjudged", "not here", None)


def otherwise(_bench: Bench) -> Iterator[dict[str, Any]]:
    yield finding("met", "seen otherwise", False)


def hangs(bench: Bench) -> Iterator[dict[str, Any]]:
    """The check starts another process, as checks start cells, and both wait for ever."""
    child = subprocess.Popen([sys.executable, "-c", SLEEP])
    (bench.work / "pid").write_text(str(child.pid), encoding="ascii")
    yield finding("met", "before it hung", True)
    time.sleep(3600)


def dies(_bench: Bench) -> Iterator[dict[str, Any]]:
    yield finding("met", "before it died", True)
    print('{"figure": 1, "cut', end="", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def raises(_bench: Bench) -> Iterator[dict[str, Any]]:
    yield {"figure": 1}
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def leaves_one_behind(bench: Bench) -> Iterator[dict[str, Any]]:
    """The check ends well, but its child keeps its output open."""
    child = subprocess.Popen([sys.executable, "-c", SLEEP])
    (bench.work / "pid").write_text(str(child.pid), encoding="ascii")
    yield finding("met", "all is well", True)


def no_card(_bench: Bench) -> Iterator[dict[str, Any]]:
    yield {"found": {"name": None, "listed": "Tesla T4", "driver": "535.1"}}


def a_card(_bench: Bench) -> Iterator[dict[str, Any]]:
    yield {"found": {"name": "A card"}}
