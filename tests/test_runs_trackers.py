"""The curve in external trackers: TensorBoard by default, others where installed; none of them ends
a run."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.errors import UnavailableError
from pipelines.runs import trackers
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from tests.in_process import InProcess, clean_for, kill_at, trained
from tests.project import TinyProject

SPEC: dict[str, Any] = {
    "model": "tiny", "method": "full", "seed": 1, "run_id": "r1", "root": "/nowhere", "recipe": {"epochs": 1},
    "report_to": ["wandb", "mlflow"],
}  # fmt: skip
POINT = {"step": 3, "train_loss": 1.5, "eval_loss": None, "gpu_allocated_pct": 40.0}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The contents of TensorBoard's event files in `folder`: name → step → value."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    series: dict[str, dict[int, float]] = {}
    for file in folder.glob("events.*"):
        data, place = file.read_bytes(), 0
        # Length (8 bytes), its check sum (4), the event, its check sum (4).
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += 16 + size
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    series.setdefault(value.tag, {})[event.step] = value.simple_value
    return series


def test_tensorboard_shows_every_point_also_those_before_a_kill(project: TinyProject) -> None:
    project.change(profiles={"local": {"training": {"epochs": 2, "checkpoint_every_steps": 2}}})
    clean_for(project)
    trained(project, "lora-r8", kill_at(3))
    attempt, _ = train(
        project.resolved(), project.key("lora-r8"), hooks=RunHooks(say=lambda _: None, launcher=InProcess())
    )
    assert attempt.result.resume
    shown = scalars(attempt.folder / trackers.FOLDER)
    curve = {point["step"]: point for point in attempt.curve()}
    assert shown["loss/train"] == pytest.approx({step: p["train_loss"] for step, p in curve.items() if step})
    assert set(shown["loss/held_out"]) == {0, max(curve)} and min(shown["memory/process_MB"].values()) > 50
    last = curve[max(curve)]
    assert last["tokens_per_second"] > 0 and last["process_memory_max_mb"] >= last["process_memory_mean_mb"] > 50


def test_a_package_that_is_missing_is_said_before_anything_trains(project: TinyProject) -> None:
    project.change(training={"report_to": ["wandb"]})
    if trackers.find_spec("wandb"):
        pytest.skip("wandb is installed")
    attempt = trained(clean_for(project), "lora-r8")
    assert attempt.status == "unavailable" and "make extras E=wandb`" in attempt.result.detail
    assert not attempt.curve()
    trackers.require(["tensorboard"])
    with pytest.raises(UnavailableError):
        trackers.require(["tensorboard", "wandb"])


def test_only_the_keys_of_the_trackers_asked_for_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    assert trackers.keys(["tensorboard", "mlflow"]) == {}
    assert trackers.keys(["wandb"]) == {"WANDB_API_KEY": "planted"}


class Noted(ModuleType):
    """A library that records every call and returns itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> "Noted":
            self.calls.append((name, args, kwargs))
            return self

        return call


def test_weights_and_biases_and_mlflow_get_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb, mlflow = Noted("wandb"), Noted("mlflow")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for tracker in trackers.open_trackers(SPEC, tmp_path):
        tracker.point(POINT)
        tracker.close("ok")
    logged = [(args, kwargs) for name, args, kwargs in wandb.calls if name == "log"]
    assert logged == [(({"loss/train": 1.5, "memory/card %": 40.0},), {"step": 3})]
    assert ("finish", (), {"exit_code": 0}) in wandb.calls and wandb.summary == {"status": "ok"}
    assert ("log_metrics", ({"loss/train": 1.5, "memory/card percent": 40.0},), {"step": 3}) in mlflow.calls
    assert ("end_run", ("FINISHED",), {}) in mlflow.calls


def test_a_tracker_that_fails_is_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_spec: Any, _folder: Path) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setitem(trackers.STARTS, "wandb", refuse)
    (tracker,) = trackers.open_trackers({**SPEC, "report_to": ["wandb"]}, tmp_path)
    tracker.point(POINT)
    tracker.point(POINT)
    tracker.close("ok")
    assert capsys.readouterr().out == "wandb gets no more of this run: ConnectionError: no route\n"
