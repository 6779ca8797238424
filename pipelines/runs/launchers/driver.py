"""The driver's half of a run on a cluster that all clusters share: common answers of their
launchers, the job's name, and the memory to request."""

from pathlib import Path

from pipelines.lake.paths import DataRoot
from pipelines.runs.command import Placement
from pipelines.runs.launchers.base import Launcher
from pipelines.runs.launchers.chosen import ranks_run_in
from pipelines.runs.launchers.node import device_in
from pipelines.runs.predictions import answer_on, memory_gb
from pipelines.runs.spec import FILE as SPEC
from pipelines.runs.spec import RunSpec, spec_in

# Factor on predicted memory; predictions are off by less.
MARGIN = 1.1


class ClusterLauncher(Launcher):
    """A launcher whose cells run on the nodes of a cluster.

    The cluster assigns the devices; the node counts the time.
    """

    holds_device = False
    asks_for_memory = True

    @property
    def runs(self) -> tuple[str, ...]:
        return ranks_run_in()

    @property
    def at_once(self) -> int:
        return self.settings.at_once

    @staticmethod
    def ran_on(folder: Path, placement: Placement) -> str | None:
        return device_in(folder)


def predicted_gb(spec: RunSpec, folder: Path) -> float | None:
    """The predicted peak of the cell's processes, or their budget if that is less.

    An evaluation gets that of its training.
    """
    attempt = folder.parent.parent if folder.parent.name == "evaluations" else folder
    cell_spec = spec_in(attempt) if (attempt / SPEC).exists() else spec
    prediction = (
        answer_on(DataRoot(Path(spec.root)), cell_spec.recipe, cell_spec.fingerprints.get("data"), cell_spec.seed) or {}
    )
    limits = [memory_gb(prediction["cpu"], spec.devices, spec.sharding) * MARGIN] if "cpu" in prediction else []
    limits += [spec.memory_budget_gb] if spec.memory_budget_gb else []
    return min(limits) * spec.devices if limits else None


def job_name(folder: Path) -> str:
    """The unique, fixed name of the job of the attempt or evaluation in `folder`."""
    if folder.parent.name == "evaluations":
        return f"featherweight-{folder.parent.parent.name}-{folder.name}"
    return f"featherweight-{folder.name}"
