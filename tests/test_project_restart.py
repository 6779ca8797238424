"""A cell that ended at any moment resumes from its last checkpoint, with the bits of an undisturbed
cell as its result."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipelines.compare.table import comparison_rows
from pipelines.compare.tables import all_tables
from pipelines.lake import disk
from pipelines.lake.files import read_json, write_json
from pipelines.runs import cells, checkpoints
from pipelines.runs.cells import Attempt
from pipelines.runs.command import CellCommand, Ending
from pipelines.runs.result import outlook
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.train.trainer import checkpoint
from pipelines.train.trainer.devices.ranks import Ranks
from pipelines.train.trainer.measure.tally import Tally
from tests.in_process import Ended, InProcess, clean_for, kill_at, stop_at
from tests.project import MODEL, TinyProject
from tests.test_project_kills import require_readable
from tests.test_project_make_run import processes_of

STEPS = 6
METHODS = ["full", "lora-r8", "qlora-r8"]
UNDISTURBED: dict[str, Any] = {}


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    """A project whose cells take six steps and write a checkpoint every second one."""
    project.change(profiles={"local": {"training": {"epochs": 3, "eval_every_steps": 4, "checkpoint_every_steps": 2}}})
    return clean_for(project)


def attempt_at(project: TinyProject, method: str, launcher: Any = None, **options: Any) -> Attempt:
    hooks = RunHooks(say=lambda _message: None, launcher=launcher or InProcess())
    return train(project.resolved(), project.key(method), hooks=hooks, **options)[0]


def outcome(attempt: Attempt) -> tuple[dict[str, bytes], list[tuple[Any, ...]]]:
    """Everything that must not depend on interruptions: the bytes of the saved weights and the
    losses of the curve."""
    assert attempt.status == "ok", attempt.result.detail
    weights = {path.name: path.read_bytes() for path in attempt.model_folder.glob("*.safetensors")}
    curve = [(p["step"], p["examples"], p["train_loss"], p["eval_loss"], p["learning_rate"]) for p in attempt.curve()]
    return weights, curve


@pytest.fixture
def undisturbed(cleaned: TinyProject) -> Callable[[str], Any]:
    """The outcome of a method's undisturbed cell; equal for every test here, so made only once."""

    def made(method: str) -> Any:
        if method not in UNDISTURBED:
            UNDISTURBED[method] = outcome(attempt_at(cleaned, method))
            shutil.rmtree(cleaned.key(method).folder(cleaned.data))
        return UNDISTURBED[method]

    return made


def steps_done(attempt: Attempt) -> list[int]:
    return [point["step"] for point in attempt.curve()]


@pytest.mark.parametrize("method", ["full", pytest.param("lora-r8", marks=pytest.mark.slow), "qlora-r8"])
def test_a_killed_cell_ends_in_the_same_bits(
    cleaned: TinyProject, undisturbed: Callable[[str], Any], method: str
) -> None:
    expected = undisturbed(method)
    killed = attempt_at(cleaned, method, kill_at(3))
    assert killed.status == "killed" and "goes on after step 2" in killed.result.detail
    again = attempt_at(cleaned, method, kill_at(5))
    assert again.status == "killed" and "goes on after step 4" in again.result.detail
    finished = attempt_at(cleaned, method)
    assert outcome(finished) == expected
    assert "going on after step 4 of 6" in log_of(finished)
    assert [a.status for a in cells.attempts(cleaned.data, cleaned.key(method))] == ["killed", "killed", "ok"]
    assert not list(cleaned.data.cells.rglob(checkpoints.FOLDER)), "checkpoints go when the cell is done"


def test_a_lost_cell_says_where_the_next_run_goes_on_and_it_does(cleaned: TinyProject) -> None:
    lost = attempt_at(cleaned, "lora-r8", kill_at(3))
    (lost.folder / "result.json").unlink()
    state = read_json(lost.folder / "state.json") or {}
    write_json(lost.folder / "state.json", state | {"pid": 2**22 + 1})
    (lost,) = cells.attempts(cleaned.data, cleaned.key("lora-r8"))
    assert lost.status == "lost" and lost.result.detail.endswith("; the next run goes on after step 2")
    assert log_of(attempt_at(cleaned, "lora-r8")).startswith("going on after step 2")


class OverTime(Ended):
    def ending(self) -> Ending:
        return Ending(-signal.SIGTERM, "time_limit", False, 0, 31.0)


class Limited(InProcess):
    """The limit of each child is recorded, and the first child exceeds its own."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[float | None] = []

    def start(self, command: CellCommand) -> Ended:
        self.limits.append(command.time_limit)
        return super().start(command) if self.limits[1:] else OverTime(stop_at(3).start(command).exit_code)


def test_a_time_limit_is_of_each_attempt_and_the_next_one_goes_on(cleaned: TinyProject) -> None:
    cleaned.change(profiles={"local": {"training": {"time_limit_minutes": 0.5}}})
    launcher = Limited()
    first = attempt_at(cleaned, "lora-r8", launcher)
    assert (first.status, first.result.detail) == (
        "timed_out",
        "stopped after 0.5 minutes; time_limit_minutes is the limit of one attempt; the next run goes on after step 3",
    )
    assert attempt_at(cleaned, "lora-r8", launcher).status == "ok"
    assert launcher.limits == [30.0, 30.0]


def log_of(attempt: Attempt) -> str:
    """The attempt's message; in this process it is the resume in its result."""
    resume = attempt.result.resume
    return f"going on after step {checkpoints.step_of(Path(resume['checkpoint']))} of {STEPS}" if resume else ""


def test_sigterm_keeps_the_last_whole_step_and_the_next_run_needs_no_step_again(
    cleaned: TinyProject, undisturbed: Callable[[str], Any]
) -> None:
    expected = undisturbed("lora-r8")
    stopped = attempt_at(cleaned, "lora-r8", stop_at(3))
    assert stopped.status == "killed"
    assert stopped.result.detail == "ended by SIGTERM from outside; the next run goes on after step 3"
    finished = attempt_at(cleaned, "lora-r8")
    assert outcome(finished) == expected
    assert steps_done(finished) == list(range(STEPS + 1)), "each step once, also those of the earlier attempt"


def test_sigterm_during_an_evaluation_leaves_its_point_to_the_next_run(
    cleaned: TinyProject, undisturbed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.train.trainer.loop import Trainer

    expected = undisturbed("lora-r8")
    original = Trainer._eval_loss

    def stop_inside(trainer: Any, held_out: Any) -> float:
        if trainer.tally.step == 4:
            trainer.worker.ask_to_stop()
        return original(trainer, held_out)

    monkeypatch.setattr(Trainer, "_eval_loss", stop_inside)
    stopped = attempt_at(cleaned, "lora-r8")
    assert stopped.status == "killed" and steps_done(stopped)[-1] == 3
    monkeypatch.undo()
    assert outcome(attempt_at(cleaned, "lora-r8")) == expected


def test_peaks_are_the_most_over_attempts_and_times_count_once(cleaned: TinyProject) -> None:
    killed = attempt_at(cleaned, "lora-r8", kill_at(3))
    result = read_json(killed.folder / "result.json") or {}
    result["measured"] |= {"peak_memory_gb": 77.0, "load_peak_memory_gb": 55.0, "host_peak_memory_gb": 88.0}
    write_json(killed.folder / "result.json", result)
    (folder,) = checkpoints.whole(killed.folder)
    state = checkpoint.read_state(folder)
    state["tally"] |= {"seconds": 1000.0, "tokens": 10, "steady_seconds": 500.0}
    write_json(folder / checkpoints.STATE, state)
    finished = attempt_at(cleaned, "lora-r8")
    measured = finished.result.measured
    assert [measured[f"{name}peak_memory_gb"] for name in ("", "load_", "host_")] == [77.0, 55.0, 88.0]
    of_a_card = ("gpu_allocated_peak_gb", "gpu_reserved_peak_gb", "gpu_device_peak_gb", "pageable_gb")
    assert [measured[name] for name in of_a_card] == [None] * 4 and finished.curve()[-1]["gpu_device_mb"] is None
    assert 1000 < measured["train_seconds"] < 1100
    assert finished.curve()[-1]["elapsed_seconds"] == measured["train_seconds"]
    assert measured["process_memory_mean_mb"] > 0 and measured["last_step"] == STEPS


# the best step


@pytest.fixture
def early(cleaned: TinyProject) -> TinyProject:
    """A project whose cell `full` is best after step 2, and stops after step 4."""
    training = {"epochs": 10, "examples_per_step": 4, "eval_every_steps": 1}
    cleaned.change(
        methods={"full": {"learning_rate": 0.3, "early_stop_patience": 2}}, profiles={"local": {"training": training}}
    )
    return cleaned


def test_early_stopping_saves_the_best_steps_weights_also_of_a_cell_that_was_killed_after_it(
    early: TinyProject,
) -> None:
    undisturbed_attempt = attempt_at(early, "full")
    steps = {name: undisturbed_attempt.result.measured[name] for name in ("best_step", "last_step", "stopped_early")}
    assert steps == {"best_step": 2, "last_step": 4, "stopped_early": True}
    least = min(undisturbed_attempt.curve()[1:], key=lambda point: point["validation_loss"])
    assert (least["step"], least["validation_loss"]) == (2, undisturbed_attempt.result.measured["best_validation_loss"])
    expected = outcome(undisturbed_attempt)
    shutil.rmtree(early.key("full").folder(early.data))

    # The cell is killed after the best step so far.
    assert attempt_at(early, "full", stop_at(1)).status == "killed"
    killed = attempt_at(early, "full", kill_at(3))
    (folder,) = checkpoints.whole(killed.folder)
    best = checkpoint.read_tensors(folder, "weights")
    again = attempt_at(early, "full")
    assert "going on after step 2" in log_of(again)
    assert outcome(again) == expected
    saved = load_file(again.model_folder / "model.safetensors")
    assert all(saved[name].equal(weight) for name, weight in best.items()) and best
    assert not list(early.data.cells.rglob(checkpoints.FOLDER))
    (row,) = (row for row in comparison_rows(early.resolved()) if row["method"] == "full")
    assert (row["best_step"], row["last_step"]) == (2, 4)


def test_a_checkpoint_keeps_the_best_weights_of_its_own_time(tmp_path: Path) -> None:
    import torch

    def weights(value: float) -> dict[str, torch.Tensor]:
        return {"a": torch.full((4,), value)}

    best = checkpoint.write_best(tmp_path, 1, weights(1.0), Ranks())
    folder = checkpoint.write(tmp_path, 2, {"weights/a": torch.zeros(4)}, {}, best=best)
    newer = checkpoint.write_best(tmp_path, 3, weights(3.0), Ranks())
    assert not best.exists() and newer.exists()
    taken = checkpoint.take_over_best(folder, tmp_path / "next", 1, Ranks())
    assert checkpoint.read_tensors(taken, "weights")["a"].equal(weights(1.0)["a"])


def test_the_best_weights_are_in_what_the_disk_must_have(early: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 1000)
    with_best = attempt_at(early, "full").result
    early.change(methods={"full": {"early_stop_patience": None}})
    without = attempt_at(early, "full").result
    weights = 4 * without.measured["total_params"]
    assert (with_best.bytes_needed or 0) - (without.bytes_needed or 0) == 2 * weights
    assert "and the best step's weights twice" in with_best.detail


@pytest.mark.slow
def test_kill_9_after_the_best_step_loses_nothing_of_it(early: TinyProject) -> None:
    early.change(methods={"full": {"early_stop_patience": 100}}, profiles={"local": {"training": {"epochs": 60}}})
    start_cell("full").communicate()
    whole = latest(early, "full")
    assert whole.result.measured["best_step"] < whole.result.measured["last_step"]
    expected = outcome(whole)
    shutil.rmtree(early.key("full").folder(early.data))
    process = start_cell("full")
    wait_for_more(early, "full", None, process, steps=whole.result.measured["best_step"] + 4)
    victim = child_of(process.pid)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    process.communicate()
    assert latest(early, "full").status == "killed"
    start_cell("full").communicate()
    assert outcome(latest(early, "full")) == expected


def test_another_recipe_starts_anew_and_the_old_checkpoint_goes(cleaned: TinyProject) -> None:
    attempt_at(cleaned, "lora-r8", kill_at(3))
    cleaned.change(methods={"lora-r8": {"weight_decay": 0.1}})
    finished = attempt_at(cleaned, "lora-r8")
    assert finished.status == "ok" and finished.result.resume is None
    assert not list(cleaned.data.cells.rglob(checkpoints.FOLDER))


def test_a_checkpoint_of_other_package_versions_is_not_gone_on_from(
    cleaned: TinyProject, undisturbed: Callable[[str], Any]
) -> None:
    expected = undisturbed("lora-r8")
    killed = attempt_at(cleaned, "lora-r8", kill_at(3))
    (folder,) = checkpoints.whole(killed.folder)
    write_json(folder / checkpoints.STATE, checkpoint.read_state(folder) | {"versions": {"torch": "1.0"}})
    assert outcome(attempt_at(cleaned, "lora-r8")) == expected


def test_a_half_written_checkpoint_is_none(cleaned: TinyProject, undisturbed: Callable[[str], Any]) -> None:
    expected = undisturbed("lora-r8")
    killed = attempt_at(cleaned, "lora-r8", kill_at(5))
    (folder,) = checkpoints.whole(killed.folder)
    folder.rename(folder.with_name(".step-00000004.partial"))
    assert outlook(killed.folder) == "the next run starts it again"
    assert outcome(attempt_at(cleaned, "lora-r8")) == expected


@pytest.mark.slow
def test_killed_before_the_first_step_of_a_second_attempt_the_third_still_goes_on(
    cleaned: TinyProject, undisturbed: Callable[[str], Any]
) -> None:
    expected = undisturbed("lora-r8")
    attempt_at(cleaned, "lora-r8", kill_at(4))
    second = attempt_at(cleaned, "lora-r8", kill_at(5))
    shutil.rmtree(second.folder / checkpoints.FOLDER, ignore_errors=True)
    third = attempt_at(cleaned, "lora-r8")
    assert outcome(third) == expected
    assert "going on after step 2" in log_of(third) or "going on after step 4" in log_of(third)


# disk


def test_too_little_disk_is_known_before_the_first_step(cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 1000)
    result = attempt_at(cleaned, "full").result
    assert (result.status, result.phase) == ("failed", "train")
    assert result.bytes_available == 1000 and (result.bytes_needed or 0) > 100_000
    assert "MB are needed" in result.detail and result.measured.get("last_step") is None


@pytest.mark.parametrize(("fails", "phase"), [("checkpoint", "train"), ("model", "save")])
def test_a_disk_that_fills_up_while_running_is_failed_with_what_it_says(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch, fails: str, phase: str
) -> None:
    from transformers import PreTrainedModel

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    if fails == "checkpoint":
        monkeypatch.setattr(checkpoint, "save_file", full)
    else:
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    attempt = attempt_at(cleaned, "full")
    assert (attempt.status, attempt.result.phase) == ("failed", phase)
    assert "are free in" in attempt.result.detail and (attempt.result.bytes_available or 0) > 0
    assert not list(attempt.folder.rglob("*.partial"))
    monkeypatch.undo()
    assert attempt_at(cleaned, "full").status == "ok"


def test_a_really_full_disk_is_a_row(cleaned: TinyProject, tmp_path: Path) -> None:
    """The disk is a file system of a few megabytes, mounted where only this command sees it."""
    folder, seen = cleaned.data.cells, tmp_path / "seen"
    folder.mkdir(parents=True)
    mount = f"mount -t tmpfs -o size=4M tmpfs {folder}"
    if subprocess.run(["unshare", "-rm", "bash", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test mount a file system of its own")
    fill = f"head -c 3000000 /dev/zero > {folder}/filler"
    command = f"{mount} && {fill}; {sys.executable} -m pipelines.cli train {MODEL} full; cp -r {folder} {seen}"
    done = subprocess.run(["unshare", "-rm", "bash", "-c", command], capture_output=True, text=True, check=False)
    (result,) = seen.rglob("result.json")
    row = read_json(result) or {}
    assert row["status"] == "failed" and "too little disk" in row["status_detail"], (row, done.stderr)
    assert "Traceback" not in done.stderr


# state


def test_a_tally_counts_the_first_step_of_a_process_but_not_as_steady() -> None:
    tally = Tally()
    tally.add(examples=4, tokens=100, seconds=5.0, first=True)
    assert tally.measured()["tokens_per_second"] is None
    tally.add(examples=4, tokens=60, seconds=2.0, first=False)
    measured = tally.measured()
    assert (measured["last_step"], measured["train_seconds"], measured["tokens_per_second"]) == (2, 7.0, 30.0)
    assert (tally.examples, measured["trained_tokens"]) == (8, 160)


def test_random_states_come_back_exactly() -> None:
    import numpy as np
    import torch

    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    # Leaves the second half of a pair in the generator's state.
    np.random.standard_normal()
    state = checkpoint.Random.now()

    def drawn() -> tuple[float, ...]:
        return (torch.rand(1).item(), np.random.standard_normal(), random.gauss(0, 1), random.random())

    first = drawn()
    through_json = checkpoint.Random(state.tensors, checkpoint.json.loads(checkpoint.json.dumps(state.numbers)))
    through_json.set()
    assert drawn() == first


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_goes_on_exactly(tmp_path: Path, name: str) -> None:
    import torch

    from pipelines.train.trainer.loop import make_optimizer

    recipe = {"learning_rate": 1e-2, "weight_decay": 0.1, "optimizer": name}

    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            model(torch.randn(8, 128)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = torch.nn.Linear(128, 64)
    optimizer = make_optimizer(model, recipe)
    steps(model, optimizer, range(3))
    parameters = list(model.parameters())
    tensors, numbers = checkpoint.optimizer_state(optimizer, parameters)
    held = {f"weights/{n}": p for n, p in model.named_parameters()} | {f"optimizer/{n}": t for n, t in tensors.items()}
    folder = checkpoint.write(tmp_path, 3, held, {"optimizer": numbers})
    steps(model, optimizer, range(3, 6))

    other = torch.nn.Linear(128, 64)
    checkpoint.copy_weights(folder, dict(other.named_parameters()))
    resumed = make_optimizer(other, recipe)
    read = checkpoint.read_tensors(folder, "optimizer")
    checkpoint.set_optimizer_state(resumed, list(other.parameters()), read, checkpoint.read_state(folder)["optimizer"])
    steps(other, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# real processes


def start_cell(method: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "train", MODEL, method],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_step(project: TinyProject, method: str, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        newest = cells.latest(project.data, project.key(method))
        if newest and newest.curve() and newest.curve()[-1]["step"] >= step:
            return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_ended_from_outside_is_gone_on_with(cleaned: TinyProject, sent: signal.Signals) -> None:
    cleaned.change(profiles={"local": {"training": {"epochs": 40}}})
    process = start_cell("lora-r8")
    wait_for_step(cleaned, "lora-r8", 5, process)
    os.kill(process.pid, sent)
    process.communicate(timeout=600)
    first = cells.latest(cleaned.data, cleaned.key("lora-r8"))
    assert first is not None and first.status in ("lost", "killed")
    finished = attempt_at(cleaned, "lora-r8")
    assert (finished.result.resume or {})["run_id"] == first.run_id
    assert steps_done(finished) == list(range(81))
    runs = all_tables(cleaned.data, cleaned.now().experiments, [])["training_runs"].to_pylist()
    assert [(run["run_id"], run["status"]) for run in runs] == [
        (first.run_id, first.status),
        (finished.run_id, "ok"),
    ], "the old attempt stays"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_thirty_random_kills_end_in_the_undisturbed_result(cleaned: TinyProject, method: str) -> None:
    often = {"epochs": 300, "eval_every_steps": 25, "checkpoint_every_steps": 5}
    cleaned.change(profiles={"local": {"training": often}})
    start_cell(method).communicate()
    expected = outcome(latest(cleaned, method))
    shutil.rmtree(cleaned.key(method).folder(cleaned.data))
    chance = random.Random(method)
    for kill in range(30):
        process = start_cell(method)
        before = cells.latest(cleaned.data, cleaned.key(method))
        # Most kills hit while the cell trains or saves, the others while it starts and loads.
        if kill % 4:
            wait_for_more(cleaned, method, before, process)
        time.sleep(chance.uniform(0, 1.0 if kill % 4 else 6.0))
        victim = child_of(process.pid) if chance.random() < 0.5 else None
        os.kill(victim or process.pid, chance.choice([signal.SIGKILL, signal.SIGTERM]))
        process.communicate()
        # A child dies after its parent, not before; only pytest's own time-out ends this loop.
        while processes_of(cleaned):
            time.sleep(0.05)
        require_readable(cleaned.data)
    start_cell(method).communicate()
    assert outcome(latest(cleaned, method)) == expected
    ended = [attempt.status for attempt in cells.attempts(cleaned.data, cleaned.key(method))]
    assert set(ended[:-1]) <= {"killed", "lost"} and len(ended) > 15


def wait_for_more(
    project: TinyProject, method: str, before: Attempt | None, process: subprocess.Popen[str], *, steps: int = 2
) -> None:
    """Wait until a new attempt is more than `steps` beyond its resume point."""
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        newest = cells.latest(project.data, project.key(method))
        if newest and (before is None or newest.run_id != before.run_id):
            inherited = newest.spec.resume
            done = checkpoints.step_of(Path(inherited["checkpoint"])) if inherited else 0
            if len(newest.curve()) > done + steps:
                return
        time.sleep(0.02)


def latest(project: TinyProject, method: str) -> Attempt:
    attempt = cells.latest(project.data, project.key(method))
    assert attempt is not None
    return attempt


def child_of(pid: int) -> int | None:
    import psutil

    children = psutil.Process(pid).children()
    return children[0].pid if children else None


@pytest.mark.slow
def test_a_cell_that_was_killed_is_diverged_as_one_that_was_not(cleaned: TinyProject) -> None:
    # Finite, but far too high: at 1.0 the processor decides, at 50 the loss is no number.
    cleaned.change(methods={"full": {"learning_rate": 4.0}})
    whole = attempt_at(cleaned, "full")
    assert whole.status == "diverged" and "on the first step's examples from 6.4" in whole.result.detail
    shutil.rmtree(cleaned.key("full").folder(cleaned.data))
    assert attempt_at(cleaned, "full", kill_at(5)).status == "killed"
    again = attempt_at(cleaned, "full")
    assert (again.status, again.result.detail) == ("diverged", whole.result.detail)
    assert again.result.resume is not None
