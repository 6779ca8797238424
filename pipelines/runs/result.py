"""The result of a run: the file result.json in its folder, which the parent writes at the end.

Until then child.json always has what the child knows, and state.json what the parent knows.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from pipelines.errors import WorkError
from pipelines.hardware.machine import device_class, is_alive, is_card
from pipelines.lake import disk
from pipelines.lake.files import read_json, read_object, write_json
from pipelines.lake.weights_record import revision_of
from pipelines.runs.checkpoints import searched, step_of, whole
from pipelines.runs.clock import now
from pipelines.runs.command import Ending
from pipelines.runs.exits import child_report
from pipelines.runs.launchers.chosen import launcher_class
from pipelines.runs.spec import CHILD, STATE, RunSpec, spec_in
from pipelines.runs.status import Status

FILE = "result.json"
# Fields of a result that are mappings.
MAPPINGS = ("recipe", "fingerprints", "resume", "measured", "versions")
# Phases in which the watchdog's peak is that of the run itself.
MEASURES_PEAK = ("probe", "train")


@dataclass(frozen=True)
class RunResult:
    """The request (copied from the spec), the ending, and all measurements of the child.

    The fields in bytes describe the request that ended the run; `seconds` is the duration of the
    whole run. A field that an older file lacks is None or empty. Unknown fields are dropped.
    """

    status: Status
    phase: str | None = None
    status_detail: str | None = None
    reason: str | None = None
    run_id: str | None = None
    model: str | None = None
    method: str | None = None
    seed: int | None = None
    profile: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    memory_budget_gb: float | None = None
    resume: Mapping[str, Any] | None = None
    learning_rate_source: str | None = None
    launcher: str | None = None
    devices: int | None = None
    sharding: str | None = None
    bytes_requested: int | None = None
    bytes_needed: int | None = None
    bytes_available: int | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    weights_revision: str | None = None
    device: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def detail(self) -> str:
        """`status_detail`, or an empty text."""
        return self.status_detail or ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "RunResult":
        values: dict[str, Any] = {one.name: record[one.name] for one in fields(cls) if record.get(one.name) is not None}
        # A damaged file may have other types there.
        for name in MAPPINGS:
            if not isinstance(values.get(name, {}), dict):
                del values[name]
        status = values.get("status") if values.get("status") in get_args(Status) else "lost"
        return cls(**{**values, "status": status})


def result_in(folder: Path) -> RunResult:
    """The result in `folder`; without one, the state of a living parent, else `lost`."""
    try:
        if record := read_object(folder / FILE):
            return RunResult.from_json(record)
        return _without_verdict(folder)
    # An unreadable file must not hide the other runs.
    except WorkError as error:
        return RunResult("lost", status_detail=str(error))


def _without_verdict(folder: Path) -> RunResult:
    state, report = read_object(folder / STATE), read_object(folder / CHILD)
    alive = "pid" in state and is_alive(state) and _works_here(folder)
    status = state.get("status", "lost") if alive else "lost"
    detail = state.get("waiting") if alive else f"the process that ran it ended without a word; {outlook(folder)}"
    return RunResult.from_json({**state, **report, "status": status, "status_detail": detail})


def _works_here(folder: Path) -> bool:
    """False in a copy of a data root, whose states describe processes that work in the original."""
    root = spec_in(folder).root
    return not root or not folder.is_absolute() or folder.is_relative_to(root)


def outlook(folder: Path) -> str:
    """What the next run will do with an attempt that ended early, if its inputs do not change."""
    spec = spec_in(folder)
    if checkpoints := whole(folder):
        return f"the next run goes on after step {step_of(checkpoints[-1])}"
    if spec.resume:
        # The checkpoint of an attempt beside this one, wherever the data root lies now.
        resumed = Path(spec.resume["checkpoint"])
        if folder.parent.joinpath(*resumed.parts[-3:]).exists():
            return f"the next run goes on after step {step_of(resumed)}"
    if searched(folder):
        return "the next run starts it again, but for the learning rates that were tried"
    return "the next run starts it again"


def write_result(
    folder: Path,
    status: Status,
    phase: str,
    detail: str | None,
    ending: Ending | None = None,
    reason: str | None = None,
) -> RunResult:
    """Write the result of the run in `folder`.

    `reason` says why it was ended, if there is no `ending`.
    """
    spec, report = spec_in(folder), child_report(folder)
    measured = report["measured"]
    # The watchdog does not see the memory of a GPU.
    on_card = is_card(report.get("device"))
    if ending and not on_card and measured.get("peak_memory_gb") is None and phase in MEASURES_PEAK:
        # The larger of the watchdog's peak and the child's.
        peak = max(ending.peak_bytes / 1e9, measured.get("probe_peak_memory_gb") or 0)
        measured = {**measured, "peak_memory_gb": peak}
    result = RunResult(
        status, phase, detail, ending.reason if ending else reason,
        spec.run_id, spec.model, spec.method, spec.seed, spec.profile, spec.recipe, spec.fingerprints,
        spec.memory_budget_gb, spec.resume, spec.learning_rate_source, spec.launcher, spec.devices, spec.sharding,
        **{name: report.get(name) for name in ("bytes_requested", "bytes_needed", "bytes_available")},
        measured=measured,
        versions=report.get("versions", {}),
        weights_revision=revision_of(Path(spec.root) / spec.weights) if spec.weights else None,
        device=_device(report, spec, folder),
        started_at=(read_json(folder / STATE) or {}).get("started_at"),
        finished_at=now(),
        seconds=ending.seconds if ending else None,
    )  # fmt: skip
    disk.release_space(folder)
    write_json(folder / FILE, result.to_json())
    return result


def _device(report: Mapping[str, Any], spec: RunSpec, folder: Path) -> str | None:
    """The device of the measurement: the child's name for it, if it reported one, since only the
    child knows what torch uses."""
    if name := report.get("device"):
        return device_class(spec.devices, spec.sharding, name=name)
    return launcher_class(spec.launcher).ran_on(folder, spec.placement)
