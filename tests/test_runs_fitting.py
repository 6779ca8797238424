"""Micro-batches that do not fit are halved, each time in a new process: one attempt, one row, which
names the final size."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.compare.advice import advise
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.table import comparison_rows
from pipelines.compare.tables import all_tables
from pipelines.lake.files import read_json, write_json
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.command import CellCommand, Ending
from pipelines.runs.fitting import run_fitted
from pipelines.runs.launchers import node
from pipelines.runs.launchers.local import LocalLauncher
from pipelines.runs.result import result_in
from pipelines.runs.run import RunHooks
from pipelines.runs.spec import RunSpec
from pipelines.train.cell import train
from pipelines.train.trainer import loop
from pipelines.weights import store
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.in_process import Ended, InProcess, clean_for, stop_at
from tests.project import TinyProject
from tests.test_project_restart import attempt_at, outcome
from tests.test_runs_cells import CPU_MESSAGE, dead_pid

KEY = CellKey("tiny", "full", 1)


# training cells


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    settings = {"micro_batch_tokens": 4096, "fit_micro_batch": True, "checkpoint_every_steps": 1}
    project.change(profiles={"local": {"training": settings}})
    return clean_for(project)


class Counted(InProcess):
    """A launcher that counts its children."""

    started = 0

    def start(self, command: CellCommand) -> Ended:
        self.started += 1
        return super().start(command)


def room_for(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """From now on, memory runs out above this number of padded tokens in a training micro-batch."""
    real = loop.step_loss

    def limited(model: Any, batch: Any, *args: Any, **options: Any) -> Any:
        if batch.ids.numel() > tokens:
            raise RuntimeError(CPU_MESSAGE)
        return real(model, batch, *args, **options)

    monkeypatch.setattr(loop, "step_loss", limited)


def row_of(project: TinyProject, method: str, table: str = "comparison") -> dict[str, Any]:
    stage = project.now()
    rows = all_tables(stage.data, stage.experiments, comparison_rows(project.resolved()))[table].to_pylist()
    return next(row for row in rows if row["method"] == method)


def test_it_is_halved_until_it_fits_and_ends_as_one_that_was_told_so(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = Counted()
    with monkeypatch.context() as patched:
        room_for(patched, 600)
        fitted = attempt_at(cleaned, "full", launcher)
    assert cells.attempts(cleaned.data, cleaned.key("full")) == [fitted]
    used = fitted.result.measured["micro_batch_tokens"]
    assert launcher.started > 2 and 300 <= used <= 600
    assert fitted.spec.recipe["micro_batch_tokens"] == 4096
    assert fitted.result.detail == f"micro_batch_tokens was halved from 4096 to {used}"
    log = (fitted.folder / "log.txt").read_text(encoding="utf-8")
    assert (
        log.count("out of memory with micro_batch_tokens") == launcher.started - 1 and f"once more with {used}" in log
    )
    assert row_of(cleaned, "full")["micro_batch_tokens"] == used
    run = row_of(cleaned, "full", "training_runs")
    assert (run["micro_batch_tokens"], run["status_detail"]) == (used, fitted.result.detail)

    training = {"micro_batch_tokens": used, "fit_micro_batch": False}
    cleaned.change(profiles={"local": {"training": training}})
    assert outcome(fitted) == outcome(attempt_at(cleaned, "full", force=True))


def test_down_to_one_row_of_the_longest_example_and_then_it_is_out_of_memory(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 10)
    launcher = Counted()
    result = attempt_at(cleaned, "lora-r8", launcher).result
    assert (result.status, result.phase, result.bytes_requested) == ("out_of_memory", "probe", 123)
    least = result.measured["micro_batch_tokens"]
    detail = f"micro_batch_tokens was halved from 4096 to {least}: one row of the longest example does not fit"
    assert result.detail.endswith(detail) and launcher.started > 2
    row = row_of(cleaned, "lora-r8")
    assert row["micro_batch_tokens"] == least and "lower max_length" in row["advice"]


def test_without_the_setting_the_first_failure_is_the_last(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned.change(profiles={"local": {"training": {"fit_micro_batch": False}}})
    room_for(monkeypatch, 600)
    launcher = Counted()
    result = attempt_at(cleaned, "full", launcher).result
    assert (result.status, launcher.started) == ("out_of_memory", 1)
    assert "micro_batch_tokens" not in result.detail


def test_a_fitted_cell_goes_on_from_its_checkpoint_with_what_fitted(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, 600)
    stopped = attempt_at(cleaned, "lora-r8", stop_at(1))
    assert stopped.status == "killed" and "goes on after step 1" in stopped.result.detail
    launcher = Counted()
    again = attempt_at(cleaned, "lora-r8", launcher)
    assert (again.status, launcher.started) == ("ok", 1)
    assert [point["step"] for point in again.curve()] == [0, 1, 2]
    assert again.result.measured["micro_batch_tokens"] == stopped.result.measured["micro_batch_tokens"] < 4096


def test_the_recipe_knows_the_setting_only_where_it_is_on(project: TinyProject) -> None:
    plain = project.now().recipe_of("smollm2-135m", "full")
    project.change(profiles={"local": {"training": {"fit_micro_batch": False}}})
    assert project.now().recipe_of("smollm2-135m", "full") == plain and "fit_micro_batch" not in plain
    project.change(profiles={"local": {"training": {"fit_micro_batch": True}}})
    assert project.now().recipe_of("smollm2-135m", "full") == {**plain, "fit_micro_batch": True}
    assert "fit_micro_batch" not in project.now().recipe_of("smollm2-135m", "base")


# commands with scripted endings


Said = dict[str, Any]


def out_of_memory(smaller: int | None, *, tokens: int = 1024) -> Said:
    measured = {"micro_batch_tokens": tokens, "smaller_micro_batch_tokens": smaller}
    return {"phase": "probe", "status": "out_of_memory", "detail": "no memory", "measured": measured}


OK: Said = {"phase": "save", "status": "ok", "measured": {"micro_batch_tokens": 512}}


class Turns:
    """A launcher whose children follow a script: each leaves its messages, or does something."""

    def __init__(self, *turns: Said | Callable[[Path], int]) -> None:
        self.turns, self.commands = list(turns), list[CellCommand]()

    def start(self, command: CellCommand) -> Ended:
        self.commands.append(command)
        turn = self.turns[len(self.commands) - 1]
        (command.folder / "log.txt").touch()
        if callable(turn):
            return Ended(turn(command.folder))
        write_json(command.folder / "child.json", turn)
        return Ended(0 if turn["status"] == "ok" else 3)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


def fitted(folder: Path, launcher: Any, **command: Any) -> Ending:
    cell_command = CellCommand(arguments=["-m", "x", str(folder)], folder=folder, env={}, **command)
    return run_fitted(launcher, cell_command, RunSpec(), on_tick=lambda: None, say=lambda _: None)


def trained(lake: Lake, launcher: Any, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.setattr(store, "fetch", lambda data, experiments, name, say=None: data.models / name)
    return train(lake.resolved(), KEY, hooks=RunHooks(say=lambda _: None, launcher=launcher))[0]


def test_a_cancel_while_the_smaller_one_runs_is_a_cancel(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def canceled(_folder: Path) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(lake, Turns(out_of_memory(512), canceled), monkeypatch)
    result = cells.attempts(lake.data, KEY)[-1].result
    assert (result.status, result.phase) == ("killed", "load")
    assert result.detail.startswith("canceled; ") and result.detail.endswith("halved from 2048 to 512")


def test_a_process_that_dies_before_a_word_has_not_the_verdict_of_the_one_before(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = trained(lake, Turns(out_of_memory(512), lambda _: -signal.SIGSEGV), monkeypatch).result
    assert (result.status, result.phase) == ("killed", "load")
    assert "crashed (SIGSEGV)" in result.detail


def test_what_an_earlier_process_printed_is_no_word_of_the_last_one(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(folder: Path) -> int:
        report = out_of_memory(512)
        write_json(folder / "child.json", {"phase": report["phase"], "measured": report["measured"]})
        (folder / "log.txt").write_text("Error out of memory at line 90 in file /src/csrc/ops.cu\n", encoding="utf-8")
        return 1

    def broken(folder: Path) -> int:
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            print("no module of that name", file=log)
        return 1

    result = trained(lake, Turns(printed, broken), monkeypatch).result
    assert (result.status, result.phase) == ("failed", "load")
    assert "exit code 1" in result.detail and "no module of that name" in result.detail


@pytest.mark.parametrize(
    ("ends", "starts"),
    [
        ({"phase": "train", "status": "out_of_memory", "measured": {"smaller_micro_batch_tokens": 512}}, 1),
        ({"phase": "probe", "status": "diverged", "measured": {"smaller_micro_batch_tokens": 512}}, 1),
        ({"phase": "probe", "status": "out_of_memory", "measured": {}}, 1),
        (out_of_memory(None), 1),
        (out_of_memory(512), 2),
    ],
    ids=["later", "for another reason", "not asked for", "the least already", "smaller"],
)
def test_only_what_is_out_of_memory_in_the_trial_steps_begins_again(tmp_path: Path, ends: Said, starts: int) -> None:
    launcher = Turns(ends, OK)
    fitted(tmp_path, launcher)
    assert len(launcher.commands) == starts


def test_the_verdict_of_any_rank_counts_and_goes_with_its_process(tmp_path: Path) -> None:
    def second_rank_is_out_of_memory(folder: Path) -> int:
        report = out_of_memory(512)
        write_json(folder / "child.json", {"phase": report["phase"], "measured": report["measured"]})
        write_json(folder / "rank-1.json", {"phase": "probe", "status": "out_of_memory", "detail": "rank 1: no memory"})
        write_json(folder / "ranks.json", {"rank": 1, "exit_code": 3})
        return 3

    def the_next_one(folder: Path) -> int:
        assert [read_json(folder / name) for name in ("rank-1.json", "ranks.json")] == [{}, {}]
        assert read_json(folder / "fit.json") == {"micro_batch_tokens": 512}
        write_json(folder / "child.json", OK)
        return 0

    launcher = Turns(second_rank_is_out_of_memory, the_next_one)
    assert fitted(tmp_path, launcher, devices=2).exit_code == 0
    assert [command.devices for command in launcher.commands] == [2, 2]


def test_the_time_limit_is_that_of_all_together(tmp_path: Path) -> None:
    def takes_a_while(folder: Path) -> int:
        time.sleep(0.3)
        write_json(folder / "child.json", out_of_memory(512))
        return 3

    launcher = Turns(takes_a_while, takes_a_while, OK)
    ending = fitted(tmp_path, launcher, time_limit=0.5)
    limits = [command.time_limit for command in launcher.commands]
    assert limits[0] == 0.5 and limits[1] <= 0.2 and 0 < limits[2] < 0.01  # type: ignore[operator]
    assert ending.seconds >= 0.6


def test_on_a_cluster_the_node_fits_the_micro_batches_and_the_driver_takes_its_word(
    tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = Turns(out_of_memory(512), OK)
    monkeypatch.setattr(node, "launcher_on", lambda _devices: launcher)
    monkeypatch.chdir(tmp_path)
    command = CellCommand(arguments=["-m", "x"], folder=tmp_path, env={})
    order = node.order(command, RunSpec(), threads=None)
    assert node.run(order, tmp_path, node.Signals(tmp_path)) == 0
    assert len(launcher.commands) == 2
    ended = node.ending_in(tmp_path)
    assert ended is not None and ended.exit_code == 0

    monkeypatch.setattr(LocalLauncher, "holds_device", False)
    driver = Turns(out_of_memory(512), OK)
    assert trained(lake, driver, monkeypatch).status == "out_of_memory"
    assert len(driver.commands) == 1


# a killed parent

CHILD = """
import json, sys, time
from pathlib import Path
from pipelines.runs.process import die_with_parent
die_with_parent()
folder = Path(sys.argv[1])
if (folder / "fit.json").exists():
    (folder / "again").touch()
    time.sleep(600)
said = {"phase": "probe", "status": "out_of_memory", "measured": {"micro_batch_tokens": 1024, "smaller_micro_batch_tokens": 512}}
(folder / "child.json").write_text(json.dumps(said))
sys.exit(3)
"""
PARENT = """
import sys
from pathlib import Path
from pipelines.runs.command import CellCommand
from pipelines.runs.fitting import run_fitted
from pipelines.runs.launchers.local import LocalLauncher
from pipelines.runs.run import note_state
from pipelines.runs.spec import RunSpec
folder = Path(sys.argv[1])
note_state(folder, "running", "load")
command = CellCommand(arguments=["-c", sys.argv[2], str(folder)], folder=folder, env={})
run_fitted(LocalLauncher(), command, RunSpec(), on_tick=lambda: None, say=print)
"""


def test_a_killed_parent_leaves_an_attempt_that_is_lost_and_the_next_one_begins_anew(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lake.started("full").folder
    with subprocess.Popen([sys.executable, "-c", PARENT, str(folder), CHILD], stdout=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 60
        while not (folder / "again").exists():
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        assert result_in(folder).status == "running"
        parent.kill()
    assert result_in(folder).status == "lost"
    assert result_in(folder).measured["micro_batch_tokens"] == 512
    again = trained(lake, Turns(OK), monkeypatch)
    assert again.status == "ok" and again.folder != folder and not (again.folder / "fit.json").exists()


def test_a_kill_while_files_are_changed_between_two_processes_is_lost_too(lake: Lake) -> None:
    attempt = lake.started("full", pid=dead_pid())
    write_json(attempt.folder / "child.json", out_of_memory(512))
    write_json(attempt.folder / "fit.json", {"micro_batch_tokens": 512})
    assert result_in(attempt.folder).status == "lost"


# messages


def test_advice_names_the_micro_batches_of_a_method_that_fits() -> None:
    empty = {**COMPARISON.empty(), "model": "m", "device": "T4"}
    dead = {**empty, "method": "full", "status": "out_of_memory", "peak_memory_gb": 14.0, "micro_batch_tokens": 1024}
    fits = {**empty, "method": "lora-r8", "status": "ok", "peak_memory_gb": 9.0, "micro_batch_tokens": 4096}
    assert "lora-r8 needs 9.00 GB with micro_batch_tokens 4096" in advise(dead, [dead, fits])
    assert "lora-r8 needs 9.00 GB, or" in advise(dead, [dead, {**fits, "micro_batch_tokens": 1024}])
