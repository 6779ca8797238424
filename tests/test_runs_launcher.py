"""A cell's command is watched, stopped and removed, also with grandchildren, and also when its
parent is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipelines.hardware import machine
from pipelines.hardware.machine import is_alive, own_identity, process_is_alive
from pipelines.runs.command import CellCommand, Ending
from pipelines.runs.launchers.local import LocalLauncher
from pipelines.runs.process import PARENT, spawn, stop_group
from pipelines.runs.watchdog import run_to_end

MB = 10**6
SLEEP = "import time; time.sleep(600)"
# Takes memory bit by bit, far beyond every budget here, and holds it for long, but not for ever.
GROW = """
import time
held = []
for _ in range(60):
    held.append(bytearray(b"x") * 10_000_000)
    time.sleep(0.02)
time.sleep(600)
"""
HOLD_UNTIL_TOLD = """
import sys, time
from pathlib import Path
folder, held = Path(sys.argv[1]), bytearray(b"x") * 200_000_000
(folder / "held").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
(folder / "ended").touch()
"""
WITH_GRANDCHILD = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]])
with open(sys.argv[1] + ".partial", "w") as out:
    out.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".partial", sys.argv[1])
if sys.argv[3] == "stay":
    time.sleep(600)
"""
# A process between the test and the child, like a Dagster step: it starts the child and waits.
PARENT_OF_CHILD = """
import sys
from pathlib import Path
from pipelines.runs.process import spawn
spawn(["-c", sys.argv[1], sys.argv[2]], log=Path(sys.argv[2] + ".log")).wait()
"""
TIED_CHILD = """
import os, sys, time
from pipelines.runs.process import die_with_parent
die_with_parent()
with open(sys.argv[1] + ".partial", "w") as out:
    out.write(str(os.getpid()))
os.rename(sys.argv[1] + ".partial", sys.argv[1])
time.sleep(600)
"""


class CancelError(Exception):
    """Raised inside the parent by a cancel from outside."""


def run(
    folder: Path,
    code: str,
    *arguments: str,
    budget: int | None = None,
    limit: float | None = None,
    env: dict[str, str] | None = None,
    on_tick: Callable[[], None] = lambda: None,
) -> Ending:
    command = CellCommand(["-c", code, *arguments], folder, env or {}, memory_budget=budget, time_limit=limit)
    return run_to_end(LocalLauncher(), command, on_tick=on_tick)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(true: Callable[[], bool]) -> None:
    """Return when `true` holds; fail long after it is due."""
    deadline = time.monotonic() + 600
    while not true():
        assert time.monotonic() < deadline, "waited for ten minutes"
        time.sleep(0.01)


def pids_in(path: Path) -> list[int]:
    until(path.exists)
    return [int(pid) for pid in path.read_text(encoding="utf-8").split()]


def ended(*pids: int) -> None:
    """Fails unless all of the processes end."""
    until(lambda: not any(alive(pid) for pid in pids))


def test_an_exit_code_comes_back_and_the_output_is_in_the_log(tmp_path: Path) -> None:
    ending = run(tmp_path, "import sys; print('한글 out'); print('err', file=sys.stderr); sys.exit(7)")
    assert (ending.exit_code, ending.reason) == (7, None)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines() == ["한글 out", "err"]


def test_a_good_end_is_zero(tmp_path: Path) -> None:
    ending = run(tmp_path, "pass", budget=10**12, limit=600)
    assert (ending.exit_code, ending.reason) == (0, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_comes_back_as_its_negative_number(tmp_path: Path, number: signal.Signals) -> None:
    ending = run(tmp_path, f"import os; os.kill(os.getpid(), {int(number)})")
    assert (ending.exit_code, ending.reason) == (-number, None)


def test_the_watchdog_stops_a_child_over_its_memory_budget(tmp_path: Path) -> None:
    ending = run(tmp_path, GROW, budget=150 * MB)
    assert (ending.exit_code, ending.reason) == (-signal.SIGKILL, "memory_budget")
    assert ending.peak_bytes > 150 * MB


def test_a_grandchild_counts_against_the_memory_budget(tmp_path: Path) -> None:
    ending = run(tmp_path, WITH_GRANDCHILD, str(tmp_path / "pids"), GROW, "stay", budget=200 * MB)
    assert (ending.exit_code, ending.reason) == (-signal.SIGKILL, "memory_budget")
    ended(*pids_in(tmp_path / "pids"))


def test_the_peak_is_seen_without_a_budget_too(tmp_path: Path) -> None:
    ticks: list[bool] = []

    def tick() -> None:
        ticks.append((tmp_path / "held").exists())
        # The memory was measured between the first such tick and this one.
        if sum(ticks) == 2:
            (tmp_path / "go").touch()

    assert run(tmp_path, HOLD_UNTIL_TOLD, str(tmp_path), on_tick=tick).peak_bytes > 200 * MB


def test_a_child_over_its_time_limit_is_stopped(tmp_path: Path) -> None:
    ending = run(tmp_path, SLEEP, limit=0.2)
    assert (ending.exit_code, ending.reason) == (-signal.SIGKILL, "time_limit")
    assert ending.seconds >= 0.2


def test_a_child_that_ignores_sigterm_is_stopped_too(tmp_path: Path) -> None:
    ending = run(tmp_path, f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}", limit=0.5)
    assert ending.reason == "time_limit"


def test_a_tick_that_raises_leaves_no_process_of_the_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def cancel() -> None:
        if pids.exists():
            raise CancelError

    with pytest.raises(CancelError):
        run(tmp_path, WITH_GRANDCHILD, str(pids), SLEEP, "stay", on_tick=cancel)
    child, grandchild = pids_in(pids)
    assert not psutil.pid_exists(child), "the child must be gone and collected when the call returns"
    ended(grandchild)


def test_a_child_that_ends_takes_its_grandchildren_along(tmp_path: Path) -> None:
    ending = run(tmp_path, WITH_GRANDCHILD, str(tmp_path / "pids"), SLEEP, "go")
    assert ending.exit_code == 0
    ended(*pids_in(tmp_path / "pids"))


def test_ticks_come_while_it_runs_and_once_after_its_end(tmp_path: Path) -> None:
    seen: list[bool] = []

    def tick() -> None:
        seen.append((tmp_path / "ended").exists())
        (tmp_path / "go").touch()

    run(tmp_path, HOLD_UNTIL_TOLD, str(tmp_path), on_tick=tick)
    assert seen[0] is False
    assert seen[-1] is True


@pytest.mark.parametrize(("after", "evidence"), [(3, False), (4, True)])
def test_the_kernels_killer_is_evidence_only_when_its_count_rose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, evidence: bool
) -> None:
    counts = iter([3, after])
    monkeypatch.setattr(machine, "oom_kills", lambda: next(counts))
    assert run(tmp_path, "pass").kernel_oom_kill is evidence


def test_a_child_gets_its_environment_but_no_key_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-1")
    monkeypatch.setenv("HF_TOKEN", "hf-secret-2")
    run(tmp_path, "import os; print(dict(os.environ))", env={"TOLD": "this"})
    log = (tmp_path / "log.txt").read_text()
    assert "'TOLD': 'this'" in log
    assert "secret" not in log


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT_OF_CHILD, TIED_CHILD, str(pid_file)])
    (child,) = pids_in(pid_file)
    try:
        assert psutil.Process(child).ppid() == parent.pid
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        ended(child)
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)


def test_a_child_whose_parent_ended_before_it_could_look_does_not_start(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    code = "from pipelines.runs.process import die_with_parent; die_with_parent(); print('started')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, PARENT: str(gone.pid)}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_stop_group_with_grace_lets_the_child_end_by_itself(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5));"
    child = spawn(["-c", f"{code} open(sys.argv[1], 'w').close(); time.sleep(600)", str(ready)], log=tmp_path / "log")
    until(ready.exists)
    stop_group(child, grace_seconds=600)
    assert child.returncode == 5


def test_stop_group_of_a_child_that_has_ended_is_quiet(tmp_path: Path) -> None:
    child = spawn(["-c", "pass"], log=tmp_path / "log")
    assert child.wait() == 0
    stop_group(child, grace_seconds=1)
    assert child.returncode == 0


def test_a_process_is_alive_until_it_ends_and_a_reused_pid_is_another() -> None:
    here = own_identity()
    assert process_is_alive(int(here["pid"]), here["pid_started"])
    assert not process_is_alive(int(here["pid"]), here["pid_started"] - 60)
    child = subprocess.Popen([sys.executable, "-c", SLEEP])
    started = psutil.Process(child.pid).create_time()
    assert process_is_alive(child.pid, started)
    child.kill()
    # The process is a zombie now: nobody has collected its status.
    until(lambda: not alive(child.pid))
    assert not process_is_alive(child.pid, started)
    child.wait()
    assert not process_is_alive(child.pid, started)


def test_a_process_lives_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    here = own_identity()
    month = 30 * 86400.0
    monkeypatch.setattr(psutil.Process, "create_time", lambda _self: float(here["pid_started"]) + month)
    assert is_alive(here)
    assert not is_alive({**here, "ticks": int(here["ticks"]) + 1}), "its pid is another one's now"
    assert not is_alive({**here, "boot": "another"}), "the machine was started anew"


def test_what_an_earlier_version_said_of_its_process_is_understood() -> None:
    here = {name: value for name, value in own_identity().items() if name in ("pid", "pid_started")}
    assert is_alive(here) and not is_alive({**here, "pid_started": 0.0})
