"""Children that never outlive their parent: a child ties itself to its parent, and a parent stops a
whole process group."""

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import psutil

PARENT = "FEATHERWEIGHT_PARENT_PID"
# How often a thread checks for the others before it sleeps. libgomp's default of 300,000
# (milliseconds) can keep a core from the very thread that the others wait for, when another program
# takes a core: there a cell of 26 s was not done after 175 s; with 3,000 it takes 66 s.
SPINS = {"GOMP_SPINCOUNT": "3000"}
# For a child that uses a CUDA GPU. Nearly every micro-batch has a new shape, which would fragment
# segments of fixed sizes. GPUs have the numbers that nvidia-smi shows.
ALLOCATOR, OLDER_ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
CARDS = {ALLOCATOR: "expandable_segments:True", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
KEYS = ("_API_KEY", "_TOKEN", "_ACCESS_KEY_ID", "_SECRET_ACCESS_KEY")
_PR_SET_PDEATHSIG = 1


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child.

    It lacks the API keys, which no child needs, and has our pid, with which the child ends. Threads
    yield to other programs, and CUDA's allocator is set for changing shapes, unless the environment
    sets these itself.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.endswith(KEYS)}
    cards = {name: value for name, value in CARDS.items() if name != ALLOCATOR or OLDER_ALLOCATOR not in inherited}
    return {
        **({} if "OMP_WAIT_POLICY" in inherited else SPINS),
        **cards,
        **inherited,
        **(extra or {}),
        PARENT: str(os.getpid()),
        # A child writes files and its log in UTF-8, whatever encoding the terminal of its parent
        # has.
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def die_with_parent() -> None:
    """The first call of a child: the kernel kills it when its parent ends (Linux)."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    tie_to_parent()
    # The parent ended before the line above.
    if os.getppid() != int(parent):
        os._exit(1)


def tie_to_parent() -> None:
    """Make the kernel kill this process when its parent ends (Linux; no effect elsewhere)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def print_anything() -> None:
    """Print characters that the terminal's encoding lacks as escapes (`\\u2026`); by default stdout
    raises an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end_as_interrupt() -> None:
    """Make SIGTERM and SIGHUP act like Ctrl-C: children stop and the outcome is written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)


@contextmanager
def draining(stop: Callable[[], None], *, seconds: float) -> Iterator[None]:
    """Inside a coroutine, let Ctrl-C or SIGTERM call `stop` instead of ending the work at once.

    A second signal, or a delay of `seconds`, cancels the coroutine. Either way KeyboardInterrupt is
    raised at the end. Outside the main thread this has no effect.

    Raises:
        KeyboardInterrupt: a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            task.cancel()
        else:
            loop.call_later(seconds, task.cancel)
            stop()
            # The reader of our output may have been interrupted, too.
            with suppress(OSError):
                print(
                    "interrupted: waiting for what is under way; once more to end at once", file=sys.stderr, flush=True
                )

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    except asyncio.CancelledError:
        if not signals:
            raise
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
    if signals:
        raise KeyboardInterrupt


def offer_to_oom_killer() -> None:
    """Make the kernel kill this process first when memory runs out, so that the daemon survives."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def limit_memory(budget_bytes: int | None) -> None:
    """Cap this process's private memory, so that a request over the budget fails."""
    if budget_bytes:
        _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (budget_bytes, hard_limit))


@contextmanager
def memory_unlimited() -> Iterator[None]:
    """Lift this process's cap, for a library whose threads hang or crash when an allocation fails.

    Memory that the library requested but never touched (a gigabyte for DuckDB and Arrow) does not
    count against the cap afterwards. The watchdog outside always sees the touched memory.
    """
    cap, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    before = _untouched_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (hard_limit, hard_limit))
    try:
        yield
    finally:
        growth = max(0, _untouched_bytes() - before)
        resource.setrlimit(resource.RLIMIT_DATA, (cap if cap == resource.RLIM_INFINITY else cap + growth, hard_limit))


def _untouched_bytes() -> int:
    """Private memory that this process requested but has not touched."""
    status = _status_bytes()
    return status["VmData"] - status["RssAnon"]


def _status_bytes() -> dict[str, int]:
    """The kernel's account of this process, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def is_capped() -> bool:
    """Whether `limit_memory` capped this process."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def memory_left() -> int:
    """Bytes that this process may still request: under its cap if it has one, else the machine's
    available memory."""
    cap, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if cap == resource.RLIM_INFINITY:
        return psutil.virtual_memory().available
    return max(0, cap - _status_bytes()["VmData"])


def spawn(
    arguments: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, keep_open: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start `python ARGUMENTS` in a new session, with output to the file `log`.

    It inherits the `keep_open` descriptors.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(env),
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )


def stop_group(process: subprocess.Popen[Any], *, grace_seconds: float = 0) -> None:
    """End the child's whole process group: SIGTERM if there is a grace period, then SIGKILL.

    Returns when it is gone.
    """
    if grace_seconds and process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
