"""Trackers that receive a growing curve: TensorBoard's event files, Weights & Biases, MLflow
(`report_to`).

This module calls each library directly instead of using transformers' callbacks. Those need
Trainer's arguments and state, and importing Trainer takes longer than loading a small model. A
tracker that fails is dropped with a line in the log; it never ends a run.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import UnavailableError

Json = dict[str, Any]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
KEYS = {"wandb": ("WANDB_API_KEY",), "mlflow": ("MLFLOW_TRACKING_TOKEN",)}
FOLDER = "tensorboard"
NAMES = {
    "train_loss": "loss/train", "eval_loss": "loss/held out", "validation_loss": "loss/held back",
    "learning_rate": "learning rate", "tokens_per_second": "speed/tokens per second", "examples": "progress/examples",
    "elapsed_seconds": "progress/seconds", "process_memory_mb": "memory/process MB",
    "process_memory_mean_mb": "memory/process mean MB", "process_memory_max_mb": "memory/process max MB",
    "gpu_allocated_mb": "memory/card MB", "gpu_allocated_pct": "memory/card %",
    "gpu_memory_access_pct": "memory/card access %", "gpu_reserved_mb": "memory/card reserved MB",
    "gpu_device_mb": "memory/whole card MB",
}  # fmt: skip


class Tracker(Protocol):
    def point(self, row: Mapping[str, Any]) -> None:
        """Add a point of the curve."""
        ...

    def close(self, status: str) -> None:
        """Record that the run ended with this status."""
        ...


def require(names: Iterable[str]) -> None:
    """Raises UnavailableError, with the packages to install, if a tracker's package is missing."""
    if missing := [name for name in names if find_spec(PACKAGES[name]) is None]:
        raise UnavailableError(
            f"report_to: {', '.join(missing)}: not installed; run `make extras E={','.join(missing)}`, or take it out of "
            "report_to in experiments.yaml"
        )


def keys(names: Iterable[str]) -> dict[str, str]:
    """The API keys in the environment that these trackers need.

    Children without these trackers get none.
    """
    variables = [key for name in names for key in KEYS.get(name, ())]
    return {key: os.environ[key] for key in variables if key in os.environ}


def open_trackers(spec: Json, folder: Path) -> list[Tracker]:
    """The trackers in the spec of the run in `folder`."""
    return [Guarded(name, spec, folder) for name in spec.get("report_to") or ()]


class Guarded:
    """One tracker, started at its first point.

    Its first error is printed and ends the tracker, not the run.
    """

    def __init__(self, name: str, spec: Json, folder: Path) -> None:
        self._name = name
        self._start: Callable[[], Tracker] = lambda: STARTS[name](spec, folder)
        self._tracker: Tracker | None = None
        self._broken = False

    def point(self, row: Mapping[str, Any]) -> None:
        if self._broken:
            return
        try:
            if self._tracker is None:
                self._tracker = self._start()
            self._tracker.point(row)
        except Exception as error:
            self._gave_up(error)

    def close(self, status: str) -> None:
        if self._tracker is None or self._broken:
            return
        try:
            self._tracker.close(status)
        except Exception as error:
            self._gave_up(error)

    def _gave_up(self, error: Exception) -> None:
        self._broken = True
        print(f"{self._name} gets no more of this run: {type(error).__name__}: {str(error)[:300]}", flush=True)


def values(row: Mapping[str, Any]) -> dict[str, float]:
    """The measured values of a point, by the names that trackers show."""
    return {shown: float(row[name]) for name, shown in NAMES.items() if row.get(name) is not None}


def run_name(spec: Json) -> str:
    return f"{spec['model']} {spec['method']} seed {spec['seed']}"


class TensorBoard:
    """Event files in the attempt's folder; `tensorboard --logdir data/lake/cells` shows all
    attempts."""

    def __init__(self, _spec: Json, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / FOLDER), flush_secs=5)

    def point(self, row: Mapping[str, Any]) -> None:
        for name, value in values(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self, status: str) -> None:
        self._writer.add_text("status", status)
        self._writer.close()


class WeightsAndBiases:
    """A run per attempt; WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY have their usual effect."""

    def __init__(self, spec: Json, folder: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "featherweight"), name=run_name(spec), id=spec["run_id"],
            group=f"{spec['model']} {spec['method']}", config={**spec["recipe"], "seed": spec["seed"]}, dir=str(folder),
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def point(self, row: Mapping[str, Any]) -> None:
        self._run.log(values(row), step=row["step"])

    def close(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "ok" else 1)


class MlFlow:
    """A run per attempt; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME have their usual effect."""

    def __init__(self, spec: Json, folder: Path) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{Path(spec['root']) / 'lake' / 'mlflow.db'}")
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "featherweight"))
        mlflow.start_run(run_name=run_name(spec), tags={"run_id": spec["run_id"], "folder": folder.name})
        mlflow.log_params({**spec["recipe"], "seed": spec["seed"]})

    def point(self, row: Mapping[str, Any]) -> None:
        # MLflow refuses % and commas in names.
        metrics = {name.replace("%", "percent"): value for name, value in values(row).items()}
        self._mlflow.log_metrics(metrics, step=row["step"])

    def close(self, status: str) -> None:
        self._mlflow.set_tag("status", status)
        self._mlflow.end_run("FINISHED" if status == "ok" else "FAILED")


STARTS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MlFlow}
