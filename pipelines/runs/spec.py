"""The spec of a run: spec.json in its folder, written by the parent before the start."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipelines.errors import WorkError
from pipelines.lake.files import read_object, write_json
from pipelines.runs.command import Placement

FILE = "spec.json"
# The parent's state and the child's report, beside the spec.
STATE, CHILD = "state.json", "child.json"


@dataclass(frozen=True)
class RunSpec:
    """The fields of every kind of run; `more` has those that only the run's own child reads.

    Paths are relative to `root`, except for weights that lie elsewhere. A field that an older file
    lacks has its default. Unknown fields of a file are in `more`.
    """

    run_id: str = ""
    model: str = ""
    method: str = ""
    seed: int = 1
    profile: str | None = None
    root: str = ""
    examples: str | None = None
    weights: str | None = None
    # The folder of a trained model, or None for the untouched weights.
    trained: str | None = None
    selection: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    # The checkpoint that the attempt resumes from.
    resume: Mapping[str, Any] | None = None
    # How the previous run lost its node, for the run that replaces it.
    after: str | None = None
    # The budget of one device.
    memory_budget_gb: float | None = None
    time_limit_minutes: float | None = None
    learning_rate_source: str | None = None
    report_to: Sequence[str] = ()
    launcher: str = "local"
    devices: int = 1
    sharding: str = "none"
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def placement(self) -> Placement:
        return Placement(self.devices, self.sharding, self.deepspeed)

    def is_of(self, root: Path) -> bool:
        """Whether the run was started under `root`.

        In a copy of a data root, the runs of the original were not.
        """
        return self.root in ("", str(root))

    def to_json(self) -> dict[str, Any]:
        """One flat object, the form that children read."""
        record = {**asdict(self), **self.more}
        del record["more"]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "RunSpec":
        known = {one.name for one in fields(cls)} - {"more"}
        values = {name: record[name] for name in known if record.get(name) is not None}
        values["report_to"] = tuple(record.get("report_to") or ())
        return cls(**values, more={name: value for name, value in record.items() if name not in known})

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, self.to_json())


def spec_in(folder: Path) -> RunSpec:
    """The spec in `folder`; an empty one if a kill left none, or if it is unreadable."""
    try:
        return RunSpec.from_json(read_object(folder / FILE))
    except WorkError:
        return RunSpec()
