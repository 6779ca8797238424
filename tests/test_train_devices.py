"""Two processes train one cell, on gloo: the rows and endings of one process, and no process
left."""

import json
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import UnavailableError
from pipelines.runs import cells, checkpoints
from pipelines.runs.cells import Attempt
from pipelines.runs.command import Starter
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.train.trainer.devices.ranks import Ranks, require_divisible
from pipelines.train.trainer.devices.zero import Zero
from tests.forked import Forked
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.test_project_faults import until

TRAINING = {
    "epochs": 3, "eval_every_steps": 4, "checkpoint_every_steps": 2, "micro_batch_tokens": 200, "examples_per_step": 3,
}  # fmt: skip
Outcome = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


def needs_deepspeed(method: str, sharding: str) -> Any:
    missing = find_spec("deepspeed") is None
    return pytest.param(method, sharding, marks=pytest.mark.skipif(missing, reason="the extra deepspeed"))


def in_the_slow_suite(method: str, sharding: str) -> Any:
    return pytest.param(method, sharding, marks=pytest.mark.slow)


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    """A project whose cells take eight steps of three examples, the last of two, in uneven micro-
    batches."""
    vera = {"kind": "adapter", "learning_rate": 5e-3, "peft": {"peft_type": "VERA", "r": 8}}
    project.change(methods={"lora-r8": {"dropout": 0.0}, "vera": vera}, profiles={"local": {"training": TRAINING}})
    return clean_for(project)


def divide(project: TinyProject, sharding: str = "ddp", devices: int = 2) -> TinyProject:
    project.change(profiles={"local": {"launcher": "torchrun", "devices": devices, "sharding": sharding}})
    return project


def attempt_at(project: TinyProject, method: str, launcher: Starter | None = None, **options: Any) -> Attempt:
    hooks = RunHooks(say=lambda _message: None, launcher=launcher)
    return train(project.resolved(), project.key(method), hooks=hooks, **options)[0]


def outcome(attempt: Attempt) -> Outcome:
    """The curve's losses and the saved weights."""
    log = (attempt.folder / "log.txt").read_text()
    assert attempt.status == "ok", f"{attempt.result.detail}\n{log}"
    weights: dict[str, torch.Tensor] = {}
    for path in attempt.model_folder.glob("*.safetensors"):
        weights |= load_file(path)
    names = ("step", "examples", "train_loss", "eval_loss", "learning_rate")
    return [{name: point[name] for name in names} for point in attempt.curve()], weights


def assert_close(one: Outcome, other: Outcome) -> None:
    assert len(one[0]) == len(other[0]) and one[1].keys() == other[1].keys() and one[1]
    for point, like in zip(one[0], other[0], strict=True):
        assert {n: v for n, v in point.items() if v is not None} == pytest.approx(
            {n: v for n, v in like.items() if v is not None}, rel=2e-5
        )
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=1e-4, atol=2e-5)


def processes_of(project: TinyProject) -> list[psutil.Process]:
    """Running processes of any of the project's cells: torchrun and its ranks, found by their
    command line."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        if str(project.data.cells) in " ".join(process.info["cmdline"] or []):
            processes.append(process)
    return processes


def ranks_of(project: TinyProject) -> list[psutil.Process]:
    agents = [process for process in processes_of(project) if "pipelines.runs.launchers.torchrun" in process.cmdline()]
    return sorted((child for agent in agents for child in agent.children()), key=lambda child: child.pid)


@pytest.mark.parametrize(
    ("method", "sharding"),
    [
        in_the_slow_suite("full", "ddp"), in_the_slow_suite("full", "fsdp"), needs_deepspeed("full", "zero2"),
        needs_deepspeed("full", "zero3"),
        in_the_slow_suite("lora-r8", "ddp"), in_the_slow_suite("lora-r8", "fsdp"), needs_deepspeed("lora-r8", "zero2"),
        needs_deepspeed("lora-r8", "zero3"), in_the_slow_suite("vera", "ddp"), in_the_slow_suite("vera", "fsdp"),
    ],
)  # fmt: skip
def test_two_processes_make_the_row_of_one_also_where_they_were_stopped(
    cleaned: TinyProject, method: str, sharding: str
) -> None:
    alone = outcome(attempt_at(cleaned, method, InProcess()))
    divide(cleaned, sharding)
    whole = attempt_at(cleaned, method, Forked())
    expected, measured = outcome(whole), whole.result.measured
    assert_close(expected, alone)
    assert whole.result.devices == 2 and str(whole.result.device).endswith(f"× 2, {sharding}")
    assert len(json.loads(measured["memory_per_device_gb"])) == 2
    assert measured["memory_in_all_gb"] > 1.5 * measured["peak_memory_gb"]
    stopped = attempt_at(cleaned, method, Forked(stop_at=3), force=True)
    assert stopped.status == "killed" and "goes on after step 3" in stopped.result.detail
    again = attempt_at(cleaned, method, Forked())
    assert (again.result.resume or {})["run_id"] == stopped.run_id
    result = outcome(again)
    assert json.dumps(result[0]) == json.dumps(expected[0])
    assert all(torch.equal(weight, expected[1][name]) for name, weight in result[1].items())


@pytest.mark.parametrize(
    "sharding",
    [
        pytest.param("ddp", marks=pytest.mark.slow), pytest.param("fsdp", marks=pytest.mark.slow),
        pytest.param("zero2", marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra deepspeed")),
    ],
)  # fmt: skip
def test_two_processes_keep_the_best_step_of_one(cleaned: TinyProject, sharding: str) -> None:
    cleaned.change(
        methods={"full": {"learning_rate": 0.3, "early_stop_patience": 2}},
        profiles={"local": {"training": {"epochs": 10, "examples_per_step": 4, "eval_every_steps": 1}}},
    )
    alone = attempt_at(cleaned, "full", InProcess())
    divide(cleaned, sharding)
    whole = attempt_at(cleaned, "full", Forked())
    expected = outcome(whole)
    for attempt in (alone, whole):
        assert (attempt.result.measured["best_step"], attempt.result.measured["last_step"]) == (2, 4)
    assert attempt_at(cleaned, "full", Forked(stop_at=3), force=True).status == "killed"
    again = attempt_at(cleaned, "full", Forked())
    result = outcome(again)
    assert again.result.resume and json.dumps(result[0]) == json.dumps(expected[0])
    assert all(torch.equal(weight, expected[1][name]) for name, weight in result[1].items())
    for name, weight in outcome(alone)[1].items():
        torch.testing.assert_close(weight, result[1][name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_processes_agree_on_when_a_checkpoint_is_due_by_time(cleaned: TinyProject) -> None:
    training = {"checkpoint_every_steps": None, "checkpoint_every_minutes": 1e-9, "epochs": 30}
    cleaned.change(profiles={"local": {"training": training}})
    divide(cleaned)
    expected = outcome(attempt_at(cleaned, "lora-r8", Forked()))
    # Memory runs out at step 70 of 80; nothing is saved at such an end.
    poor = attempt_at(cleaned, "lora-r8", Forked(poor_at=70), force=True)
    (folder,) = checkpoints.whole(poor.folder)
    assert poor.status == "out_of_memory" and 0 < checkpoints.step_of(folder) <= 70
    result = outcome(attempt_at(cleaned, "lora-r8", Forked()))
    assert json.dumps(result[0]) == json.dumps(expected[0])
    assert all(torch.equal(weight, expected[1][name]) for name, weight in result[1].items())


@pytest.mark.slow
def test_a_killed_rank_ends_the_cell_by_its_name_and_torchrun_trains_it_again(cleaned: TinyProject) -> None:
    alone = outcome(attempt_at(cleaned, "lora-r8", InProcess()))
    shutil.rmtree(cleaned.key("lora-r8").folder(cleaned.data))
    divide(cleaned)
    killed: list[int] = []

    def kill(attempt: Attempt) -> None:
        if not killed and checkpoints.whole(attempt.folder):
            rank = ranks_of(cleaned)[1]
            killed.append(rank.pid)
            rank.kill()

    hooks = RunHooks(say=lambda _message: None, on_tick=kill)
    cleaned.change(profiles={"local": {"training": {"epochs": 500}}})
    ended = train(cleaned.resolved(), cleaned.key("lora-r8"), hooks=hooks)[0]
    assert ended.status == "killed", (ended.folder / "log.txt").read_text()
    assert ended.result.detail.startswith("rank 1 was ended by SIGKILL from outside; the next run goes on after")
    assert not processes_of(cleaned)
    cleaned.change(profiles={"local": {"training": {"epochs": 3}}})
    assert_close(outcome(attempt_at(cleaned, "lora-r8")), alone)


def test_a_rank_that_runs_out_of_memory_gives_the_cell_its_status(cleaned: TinyProject) -> None:
    result = attempt_at(divide(cleaned), "full", Forked(poor_at=2)).result
    assert (result.status, result.phase, result.bytes_requested) == ("out_of_memory", "train", 123)
    assert result.detail.startswith("rank 1: RuntimeError: ") and result.measured["last_step"] == 1


@pytest.mark.slow
def test_a_base_in_half_precision_beside_a_float32_adapter_is_divided_too(cleaned: TinyProject) -> None:
    # The precision of a card.
    cleaned.change(profiles={"local": {"training": {"precision": "bf16"}}})
    alone = outcome(attempt_at(cleaned, "lora-r8", InProcess()))[0]
    both = outcome(attempt_at(divide(cleaned, "fsdp"), "lora-r8", Forked()))[0]
    assert both[-1]["eval_loss"] == pytest.approx(alone[-1]["eval_loss"], rel=1e-4) != both[0]["eval_loss"]


def test_zero_without_deepspeed_and_with_several_rates_is_unavailable(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.runs.deepspeed.find_spec", lambda _name: None)
    result = attempt_at(divide(cleaned, "zero2"), "full").result
    assert result.status == "unavailable"
    assert result.status_detail == "sharding: zero2 needs DeepSpeed: make extras E=deepspeed, or use fsdp"
    cleaned.change(profiles={"local": {"training": {"learning_rate": [1e-4, 1e-3]}}})
    result = attempt_at(divide(cleaned, "zero3"), "full").result
    assert result.status == "unavailable" and result.detail.endswith("name one, or use fsdp")


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra deepspeed")
def test_deepspeed_is_given_what_the_profile_says_and_the_row_stays_that_of_one_process(cleaned: TinyProject) -> None:
    alone = outcome(attempt_at(cleaned, "full", InProcess()))
    seen = cleaned.data.root / "csv"
    options = {
        "zero_optimization": {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000},
        "csv_monitor": {"enabled": True, "output_path": str(seen)},
    }
    divide(cleaned, "zero2")
    before = cleaned.resolved().cell(MODEL, "full").fingerprints["machine"]
    cleaned.change(profiles={"local": {"deepspeed": options}})
    # The fingerprint differs, so other rows of the cell become stale.
    assert cleaned.resolved().cell(MODEL, "full").fingerprints["machine"] != before
    assert_close(outcome(attempt_at(cleaned, "full", Forked())), alone)
    assert list(seen.rglob("*.csv"))


def test_on_a_cluster_the_node_needs_deepspeed_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.runs.deepspeed.find_spec", lambda _name: None)
    require_divisible({"quantization": None, "optimizer": "adamw", "learning_rate": 1e-4}, "zero2")
    with pytest.raises(UnavailableError, match="zero2 needs DeepSpeed"):
        Zero(None, {"recipe": {"precision": "fp32"}}, torch.device("cpu"), Ranks(0, 2, "zero2"))


@pytest.mark.parametrize(("method", "why"), [("qlora-r8", "nf4 weights"), ("full-8bit", "the states of adamw_8bit")])
def test_what_fsdp_cannot_divide_is_unavailable_before_it_starts(cleaned: TinyProject, method: str, why: str) -> None:
    result = attempt_at(divide(cleaned, "fsdp"), method).result
    assert result.status == "unavailable"
    assert result.status_detail == (
        f"sharding: fsdp cannot divide {why}: use ddp for this method, in a profile of its own"
    )


@pytest.mark.slow
def test_a_budget_is_each_devices_and_a_time_limit_leaves_a_checkpoint(cleaned: TinyProject) -> None:
    divide(cleaned)
    cleaned.change(profiles={"local": {"training": {"memory_budget_gb": 0.3}}})
    result = attempt_at(cleaned, "full").result
    assert result.status == "out_of_memory" and not processes_of(cleaned)
    # On a busy machine the first limit may pass before training has begun.
    for minutes in (0.6, 5, 20):
        endless = {"epochs": 5000, "memory_budget_gb": None, "time_limit_minutes": minutes}
        cleaned.change(profiles={"local": {"training": endless}})
        result = attempt_at(cleaned, "full", force=True).result
        assert result.status == "timed_out" and not processes_of(cleaned)
        if result.measured.get("last_step", 0) > 2:
            break
    assert result.measured["last_step"] > 2 and "goes on after step" in result.detail


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_no_rank_outlives_whoever_started_it(cleaned: TinyProject, sent: signal.Signals) -> None:
    divide(cleaned).change(profiles={"local": {"training": {"epochs": 5000}}})
    key = cleaned.key("lora-r8")
    starter = subprocess.Popen([sys.executable, "-m", "pipelines.cli", "train", MODEL, "lora-r8"])
    try:
        until(lambda: any(len(a.curve()) > 3 for a in cells.attempts(cleaned.data, key)), "training to start")
        assert len(ranks_of(cleaned)) == 2
        starter.send_signal(sent)
        starter.wait(600)
        until(lambda: not processes_of(cleaned), "its processes to end")
    finally:
        starter.kill()
        starter.wait()
    status = "lost" if sent == signal.SIGKILL else "killed"
    assert [attempt.status for attempt in cells.attempts(cleaned.data, key)] == [status]
