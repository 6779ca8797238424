"""A cell's status is read from its folder, and every end of a child becomes the right verdict."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.hardware.machine import own_identity
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import DataRoot
from pipelines.lake.run_ids import new_run_id
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.command import CellCommand, Ending
from pipelines.runs.exits import child_report, classify_exit
from pipelines.runs.launchers.local import LocalLauncher
from pipelines.runs.progress import CellProgress
from pipelines.runs.result import write_result
from pipelines.runs.spec import spec_in
from pipelines.runs.status import EXIT_LOST, RANKS, Status
from pipelines.runs.watchdog import run_to_end
from pipelines.runs.worker import Worker, bytes_free, bytes_requested, is_lost_rank, is_out_of_memory
from pipelines.train.cell import train
from tests.fakes import planted
from tests.fakes.planted import Lake

GB = 10**9
CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "123 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 14.58 GiB of which 1.12 GiB is free. "
    "Including non-PyTorch memory, this process has 13.45 GiB memory in use."
)
KEY = CellKey("tiny", "full", 1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


def ending(exit_code: int = 0, **known: Any) -> Ending:
    return Ending(
        **{"exit_code": exit_code, "reason": None, "kernel_oom_kill": False, "peak_bytes": GB, "seconds": 90.0, **known}
    )


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    return child.pid


# statuses


def test_a_result_is_the_status(lake: Lake) -> None:
    assert lake.trained("full", "diverged", detail="loss nan").status == "diverged"


def test_without_a_result_a_living_process_is_running(lake: Lake) -> None:
    attempt = lake.started("full")
    write_json(attempt.folder / "child.json", {"phase": "train", "measured": {"last_step": 3}, "status": "ok"})
    assert attempt.status == "running"
    assert attempt.result.phase == "train"
    assert attempt.result.measured == {"last_step": 3}
    assert attempt.result.status_detail is None


def test_queued_is_said_as_long_as_its_process_lives(lake: Lake) -> None:
    folder = lake.started("full").folder
    write_json(folder / "state.json", {"status": "queued", "phase": "load", **own_identity()})
    assert Attempt(KEY, folder).status == "queued"


def test_without_a_result_a_dead_process_is_lost_and_its_numbers_are_kept(lake: Lake) -> None:
    attempt = lake.started("full", pid=dead_pid())
    write_json(attempt.folder / "child.json", {"phase": "train", "measured": {"last_step": 3}})
    assert attempt.status == "lost"
    assert attempt.result.measured == {"last_step": 3}
    assert "without a word" in attempt.result.detail


def test_a_pid_that_another_process_has_now_is_lost(lake: Lake) -> None:
    folder, here = lake.started("full").folder, own_identity()
    write_json(folder / "state.json", {"status": "running", **here, "ticks": int(here["ticks"]) - 6000})
    assert Attempt(KEY, folder).status == "lost"


def test_a_folder_without_any_word_is_lost(lake: Lake) -> None:
    assert Attempt(KEY, lake.killed_at_start("full")).status == "lost"


def test_the_latest_attempt_counts(lake: Lake) -> None:
    assert cells.latest(lake.data, KEY) is None
    lake.trained("full")
    newest = lake.trained("full", "failed")
    latest = cells.latest(lake.data, KEY)
    assert latest is not None
    assert (latest.run_id, latest.status) == (newest.run_id, "failed")


def test_every_attempt_is_found_by_cell_oldest_first(lake: Lake) -> None:
    made = [lake.trained("lora-r8"), lake.trained("full", seed=2), lake.trained("full"), lake.trained("full", "killed")]
    (KEY.folder(lake.data) / "cell.lock").touch()
    (lake.data.cells / "tiny" / "full" / "notes").mkdir()
    lora, second, first, again = made
    assert list(cells.all_attempts(lake.data)) == [first, again, second, lora]
    assert cells.attempts(lake.data, KEY) == [first, again]


def test_no_lake_has_no_attempts(tmp_path: Path) -> None:
    assert list(cells.all_attempts(DataRoot(tmp_path / "nowhere"))) == []


def test_an_id_never_sorts_below_the_newest_that_is_there(tmp_path: Path) -> None:
    """A clock that was a month ahead made the newest attempt; later attempts still sort after
    it."""
    (tmp_path / "20990131T235959999-aaaaaa").mkdir()
    (tmp_path / "cell.lock").touch()
    first = new_run_id(tmp_path)
    assert first.startswith("20990201T000000000-")
    (tmp_path / first).mkdir()
    assert new_run_id(tmp_path) > first
    assert new_run_id(tmp_path / "missing") < first


def test_a_cell_that_was_made_in_the_future_is_current_and_its_successor_comes_after_it(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path)
    attempt = lake.trained("full")
    ahead = attempt.folder.rename(attempt.folder.with_name("20990101T000000000-aaaaaa"))
    current, reused = train(lake.resolved(), attempt.key)
    assert reused and current.folder == ahead
    home = attempt.key.folder(lake.data)
    shutil.copytree(ahead, newer := home / new_run_id(home))
    latest = cells.latest(lake.data, attempt.key)
    assert latest and latest.folder == newer


def test_run_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(200)]
    assert len(set(ids)) == 200
    moments = [name.rpartition("-")[0] for name in ids]
    assert moments == sorted(moments)


def test_a_curve_that_was_cut_off_keeps_its_whole_points(lake: Lake) -> None:
    attempt = lake.trained("full", "killed", curve=[{"step": 0}, {"step": 1}])
    with (attempt.folder / "curve.jsonl").open("a") as curve:
        curve.write('{"step": 2, "tra')
    assert attempt.curve() == [{"step": 0}, {"step": 1}]


@pytest.mark.parametrize("written", ["", '{"step": 0, "tra'])
def test_progress_waits_for_the_first_whole_point(lake: Lake, written: str) -> None:
    attempt = lake.started("full")
    (attempt.folder / "curve.jsonl").write_text(written)
    # An exception here would end the cell.
    CellProgress().show(attempt)


def test_evaluations_come_oldest_first(lake: Lake) -> None:
    attempt = lake.trained("full")
    assert attempt.evaluations() == []
    made = [lake.evaluated(attempt), lake.evaluated(attempt, "failed")]
    assert attempt.evaluations() == made
    assert [evaluation.ok for evaluation in made] == [True, False]


# verdicts on an ending


@pytest.mark.parametrize(
    ("end", "report", "status", "detail"),
    [
        (ending(0), {"status": "ok"}, "ok", None),
        (ending(3), {"status": "diverged", "detail": "loss nan"}, "diverged", "loss nan"),
        (ending(3), {"status": "out_of_memory", "detail": "tried to"}, "out_of_memory", "tried to"),
        (ending(-signal.SIGKILL), {"status": "unavailable", "detail": "no GPU"}, "unavailable", "no GPU"),
        (ending(-signal.SIGKILL), {}, "killed", "SIGKILL from outside"),
        (ending(-signal.SIGKILL, kernel_oom_kill=True), {}, "out_of_memory", "kernel's out-of-memory killer"),
        (ending(-signal.SIGTERM), {}, "killed", "SIGTERM from outside"),
        (ending(-signal.SIGTERM, kernel_oom_kill=True), {}, "killed", "SIGTERM from outside"),
        (
            ending(-signal.SIGSEGV),
            {},
            "out_of_memory",
            "it crashed (SIGSEGV) when it had asked for 1.00 GB of",
        ),
        (ending(-signal.SIGABRT, peak_bytes=100), {}, "killed", "it crashed (SIGABRT)"),
        (ending(-signal.SIGKILL, reason="memory_budget"), {}, "out_of_memory", "used 1.00 GB of a budget of 0.75 GB"),
        (ending(-signal.SIGKILL, reason="time_limit"), {}, "timed_out", "after 1.5 minutes"),
        (ending(1), {}, "failed", "exit code 1: line 2 | line 3 | line 4 | line 5"),
        (ending(0), {}, "failed", "exit code 0"),
        (ending(1, kernel_oom_kill=True), {}, "failed", "exit code 1"),
    ],
)
def test_classify_exit(tmp_path: Path, end: Ending, report: dict[str, Any], status: Status, detail: str | None) -> None:
    write_json(tmp_path / "spec.json", {"memory_budget_gb": 0.75, "time_limit_minutes": 1})
    (tmp_path / "log.txt").write_text("line 1\nline 2\nline 3\nline 4\nline 5\n")
    verdict, message = classify_exit(end, report, spec_in(tmp_path), tmp_path)
    assert verdict == status
    assert message == detail if detail is None else detail in (message or "")


def test_a_failure_that_printed_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    assert classify_exit(ending(1), {}, spec_in(tmp_path), tmp_path) == ("failed", "exit code 1: it printed nothing")


def test_a_long_log_is_shown_from_its_end(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("x" * 100_000 + " the end")
    _, detail = classify_exit(ending(1), {}, spec_in(tmp_path), tmp_path)
    assert detail is not None
    assert detail.endswith("the end")
    assert len(detail) < 1000


@pytest.mark.parametrize("number", [signal.SIGRTMIN + 1, signal.SIGXCPU])
def test_every_signal_becomes_a_verdict(tmp_path: Path, number: int) -> None:
    assert classify_exit(ending(-number), {}, spec_in(tmp_path), tmp_path)[0] == "killed"


# messages of a real child


def run_child(
    lake: Lake, work: str, *, budget: float | None = None, watched: int | None = None
) -> tuple[Attempt, Ending]:
    """Run `work` in a real worker with a limit of `budget` GB, stopped by the watchdog above
    `watched` bytes."""
    folder = lake.started("full", budget=budget).folder
    body = "\n".join(f"    {line}" for line in work.splitlines())
    code = "from pipelines.runs.worker import DivergedError, start\nfrom pipelines.errors import UnavailableError\n"
    code += f"def work(worker):\n    worker.measure(last_step=1)\n    worker.phase('train')\n{body}\nstart(work)"
    command = CellCommand(["-c", code, str(folder)], folder, {}, memory_budget=watched)
    end = run_to_end(LocalLauncher(), command, on_tick=lambda: None)
    status, detail = classify_exit(end, child_report(folder), spec_in(folder), folder)
    write_result(folder, status, child_report(folder)["phase"], detail, end)
    return Attempt(KEY, folder), end


@pytest.mark.parametrize(
    ("work", "status", "exit_code"),
    [
        ("pass", "ok", 0),
        ("raise DivergedError('loss nan')", "diverged", 3),
        ("raise UnavailableError('no GPU: bring one')", "unavailable", 3),
        ("raise ValueError('a bug')", "failed", 3),
        ("raise MemoryError", "out_of_memory", 3),
        ("raise SystemExit(9)", "failed", 9),
        ("import os; os.kill(os.getpid(), 9)", "killed", -9),
        ("import os; os.kill(os.getpid(), 15)", "killed", -15),
    ],
)
def test_what_a_child_does_becomes_its_result(lake: Lake, work: str, status: Status, exit_code: int) -> None:
    attempt, end = run_child(lake, work)
    assert end.exit_code == exit_code
    result = attempt.result
    assert (result.status, result.phase, result.measured["last_step"]) == (status, "train", 1)


def test_what_the_worker_raised_is_the_detail(lake: Lake) -> None:
    attempt, _ = run_child(lake, "raise ValueError('a bug')")
    assert attempt.result.detail == "ValueError: a bug"
    assert "Traceback" in (attempt.folder / "log.txt").read_text()


def test_the_refused_allocation_is_out_of_memory_with_its_bytes(lake: Lake) -> None:
    attempt, _ = run_child(lake, f"raise RuntimeError({CPU_MESSAGE!r})")
    assert attempt.status == "out_of_memory"
    assert attempt.result.bytes_requested == 123


def test_a_child_is_refused_what_is_over_its_budget(lake: Lake) -> None:
    attempt, end = run_child(lake, "bytearray(3_000_000_000)", budget=1.0)
    assert (attempt.status, end.reason) == ("out_of_memory", None)
    assert "MemoryError" in attempt.result.detail


@pytest.mark.parametrize(
    ("held", "status"),
    [
        ("mmap.mmap(-1, 1_200_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)", "ok"),
        ("bytearray(b'x') * 1_200_000_000", "out_of_memory"),
    ],
)
def test_a_cap_is_lifted_where_asked_and_counts_what_was_touched(lake: Lake, held: str, status: Status) -> None:
    """DuckDB's and Arrow's threads hang or crash when an allocation fails, and request far more
    than they touch."""
    work = "import mmap\nfrom pipelines.runs.process import memory_unlimited\n"
    work += f"with memory_unlimited(): held = {held}\nmore = bytearray(400_000_000)"
    attempt, _ = run_child(lake, work, budget=1.0)
    assert attempt.status == status, attempt.result.detail


def test_a_child_stopped_by_the_watchdog_is_out_of_memory_with_what_was_seen(lake: Lake) -> None:
    work = "held = bytearray(b'x') * 300_000_000\nimport time; time.sleep(600)"
    attempt, end = run_child(lake, work, budget=1.0, watched=200_000_000)
    assert (attempt.status, end.reason) == ("out_of_memory", "memory_budget")
    assert attempt.result.measured["peak_memory_gb"] == end.peak_bytes / 1e9 > 0.2


def test_a_peak_that_the_child_measured_is_kept(tmp_path: Path) -> None:
    write_json(tmp_path / "child.json", {"phase": "train", "measured": {"peak_memory_gb": 1.25}})
    write_result(tmp_path, "killed", "train", None, ending(-9))
    assert (read_json(tmp_path / "result.json") or {})["measured"]["peak_memory_gb"] == 1.25


# messages of refused allocations


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's own error; torch is not imported here."""


class AcceleratorError(RuntimeError):
    """Torch's error for a driver's message outside of its allocator."""


class DistBackendError(RuntimeError):
    """Torch's error for NCCL's messages, also where another rank is gone."""


NCCL_MESSAGE = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled cuda error\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)
BUDGET_MESSAGE = (
    "CUDA out of memory. Tried to allocate 200.00 MiB. GPU 0 has a total capacity of 14.58 GiB of which 12.00 GiB is free. "
    "2.00 GiB allowed; Of the allocated memory 1.50 GiB is allocated by PyTorch, and 256.00 MiB is reserved by PyTorch but "
    "unallocated."
)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CPU_MESSAGE),
        OutOfMemoryError(CUDA_MESSAGE),
        AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: the API call failed"),
        RuntimeError("cudaErrorMemoryAllocation: out of it"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(&handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        DistBackendError(NCCL_MESSAGE),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm( handle, ...)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        DistBackendError("NCCL error: remote process exited or there was a network error, ncclRemoteError"),
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2031"),
        ValueError("memory_budget_gb must be positive"),
        RuntimeError("expected scalar type Float but found Half"),
        OSError(28, "No space left on device"),
    ],
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (CPU_MESSAGE, 123),
        (CUDA_MESSAGE, 2_684_354_560),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has", 20_971_520),
        ("CUDA out of memory. Tried to allocate 512 bytes", 512),
        ("Unable to allocate 1.50 KiB for an array", 1536),
        ("", None),
        ("Cannot allocate memory", None),
    ],
)
def test_the_bytes_that_were_asked_for(message: str, expected: int | None) -> None:
    assert bytes_requested(message) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (CUDA_MESSAGE, round(1.12 * 2**30)),
        ("GPU 0 has a total capacity of 14.58 GiB of which 0 bytes is free. Process 7 has", 0),
        ("GPU 0 has a total capacity of 14.58 GiB of which 512 bytes is free.", 512),
        (BUDGET_MESSAGE, 256 * 2**20),
        (CPU_MESSAGE, None),
    ],
)
def test_the_bytes_that_were_free(message: str, expected: int | None) -> None:
    """Under a budget: the bytes that the budget leaves."""
    assert bytes_free(message) == expected


# on a card


def a_rank(lake: Lake, monkeypatch: pytest.MonkeyPatch, *, budget: float | None = None) -> Worker:
    """The second of two ranks, on a card."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    worker = Worker(lake.started("full", budget=budget).folder)
    worker.runs_on("Tesla T4")
    return worker


def ended_by(worker: Worker, error: Exception) -> tuple[int, dict[str, Any]]:
    def work(_: Worker) -> None:
        raise error

    return worker.run(work), worker.report


def test_a_rank_whose_card_is_full_says_so_though_nccl_reports_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    error = DistBackendError(NCCL_MESSAGE)
    assert is_lost_rank(error), "by its type alone it would be another rank's"
    code, report = ended_by(a_rank(lake, monkeypatch), error)
    assert (code, report["status"], report["bytes_available"]) == (3, "out_of_memory", None)


@pytest.mark.parametrize(
    "error",
    [
        DistBackendError("NCCL error: remote process exited or there was a network error, ncclRemoteError"),
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2031"),
    ],
)
def test_a_rank_that_lost_another_stays_one(lake: Lake, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    code, report = ended_by(a_rank(lake, monkeypatch), error)
    assert code == EXIT_LOST and "status" not in report


def test_out_of_memory_under_a_cards_budget_names_the_budget(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = ended_by(a_rank(lake, monkeypatch, budget=2.0), OutOfMemoryError(BUDGET_MESSAGE))
    assert "2.00 GiB allowed" in report["detail"] and report["detail"].endswith("(memory_budget_gb is 2)")
    assert (report["bytes_requested"], report["bytes_available"]) == (200 * 2**20, 256 * 2**20)


BITSANDBYTES = "Error out of memory at line 527 in file /src/csrc/pythonInterface.cpp"


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize(
    ("printed", "exit_code", "status"),
    [
        (f"probe …\n{BITSANDBYTES}\nrank 0: another rank is gone: closed by peer", 1, "out_of_memory"),
        (BITSANDBYTES, 2, "failed"),
        ("Error invalid argument at line 527 in file /src/csrc/pythonInterface.cpp", 1, "failed"),
    ],
)
def test_what_bitsandbytes_prints_before_it_ends_the_process(
    lake: Lake, printed: str, exit_code: int, status: Status, rank: int | None
) -> None:
    folder = lake.started("full").folder
    (folder / "log.txt").write_text(printed, encoding="utf-8")
    if rank is not None:
        write_json(folder / RANKS, {"rank": rank, "exit_code": exit_code})
    verdict, detail = classify_exit(ending(exit_code), {}, spec_in(folder), folder)
    assert verdict == status and detail is not None
    assert detail.startswith("rank 1: ") == (rank is not None)
    assert status == "failed" or BITSANDBYTES in detail


def test_a_row_names_the_card_that_the_child_found(lake: Lake) -> None:
    folder = lake.started("full").folder
    write_json(folder / "child.json", {"phase": "train", "measured": {}, "device": "NVIDIA L4"})
    assert write_result(folder, "ok", "train", None, ending()).device == "NVIDIA L4"
    write_json(folder / "spec.json", {**(read_json(folder / "spec.json") or {}), "devices": 2, "sharding": "ddp"})
    assert write_result(folder, "ok", "train", None, ending()).device == "NVIDIA L4 × 2, ddp"


def test_what_the_watchdog_saw_is_no_cards_memory(lake: Lake) -> None:
    folder = lake.started("full", budget=1.0).folder
    (folder / "log.txt").touch()
    report = {"phase": "train", "measured": {}, "device": "NVIDIA L4"}
    write_json(folder / "child.json", report)
    crash = ending(-signal.SIGSEGV)
    assert classify_exit(crash, report, spec_in(folder), folder)[0] == "killed"
    assert classify_exit(crash, {}, spec_in(folder), folder)[0] == "out_of_memory", "on a CPU it used the whole budget"
    assert "peak_memory_gb" not in write_result(folder, "killed", "train", None, crash).measured
