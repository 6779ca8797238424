"""Two processes train one cell, on gloo: the same rows as one process, the same ends, nothing left running."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.cells import Attempt
from pipelines.launcher import Launcher
from pipelines.train.cell import Watch, train
from tests.forked import Forked
from tests.in_process import InProcess, clean_for
from tests.project import TinyProject

TRAINING = {
    "epochs": 3, "eval_every_steps": 4, "checkpoint_every_steps": 2, "micro_batch_tokens": 200, "examples_per_step": 3,
}  # fmt: skip
Outcome = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    """A project whose cells take eight steps of three examples, the last of two, in uneven micro-batches."""
    project.change(methods={"lora-r8": {"dropout": 0.0}}, profiles={"local": {"training": TRAINING}})
    return clean_for(project)


def divide(project: TinyProject, sharding: str = "ddp", devices: int = 2) -> TinyProject:
    project.change(profiles={"local": {"launcher": "torchrun", "devices": devices, "sharding": sharding}})
    return project


def attempt_at(project: TinyProject, method: str, launcher: Launcher | None = None, **options: Any) -> Attempt:
    watch = Watch(say=lambda _message: None, launcher=launcher)
    return train(project.stage(), project.key(method), watch=watch, **options)[0]


def outcome(attempt: Attempt) -> Outcome:
    """The curve's losses and the saved weights."""
    log = (attempt.folder / "log.txt").read_text()
    assert attempt.status == "ok", f"{attempt.result['status_detail']}\n{log}"
    found: dict[str, torch.Tensor] = {}
    for path in attempt.model_folder.glob("*.safetensors"):
        found |= load_file(path)
    names = ("step", "examples", "train_loss", "eval_loss", "learning_rate")
    return [{name: point[name] for name in names} for point in attempt.curve()], found


def assert_close(one: Outcome, other: Outcome) -> None:
    assert len(one[0]) == len(other[0]) and one[1].keys() == other[1].keys() and one[1]
    for point, like in zip(one[0], other[0], strict=True):
        assert {n: v for n, v in point.items() if v is not None} == pytest.approx(
            {n: v for n, v in like.items() if v is not None}, rel=2e-5
        )
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("method", "sharding"), [("full", "ddp"), ("lora-r8", "ddp")])
def test_two_processes_make_the_row_of_one_also_where_they_were_stopped(
    cleaned: TinyProject, method: str, sharding: str
) -> None:
    alone = outcome(attempt_at(cleaned, method, InProcess()))
    divide(cleaned, sharding)
    whole = attempt_at(cleaned, method, Forked())
    expected, measured = outcome(whole), whole.result["measured"]
    assert_close(expected, alone)
    assert whole.result["devices"] == 2 and whole.result["device"].endswith(f"× 2, {sharding}")
    assert (
        len(measured["memory_per_device_gb"]) == 2 and measured["memory_in_all_gb"] > 1.5 * measured["peak_memory_gb"]
    )
    stopped = attempt_at(cleaned, method, Forked(stop_at=3), force=True)
    assert stopped.status == "killed" and "goes on after step 3" in stopped.result["status_detail"]
    again = attempt_at(cleaned, method, Forked())
    assert again.result["resume"]["run_id"] == stopped.run_id
    found = outcome(again)
    assert json.dumps(found[0]) == json.dumps(expected[0])
    assert all(torch.equal(weight, expected[1][name]) for name, weight in found[1].items())
