"""What a run is asked to do: the file spec.json in its folder, written by the parent before the start and read by both."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipelines.errors import WorkError
from pipelines.lake.files import read_object, write_json
from pipelines.runs.command import Placement

FILE = "spec.json"
STATE, CHILD = "state.json", "child.json"  # beside it: what the parent, and what the child, says of the run so far


@dataclass(frozen=True)
class RunSpec:
    """What every kind of run may say, and in `more` what only its own child reads. Paths are relative to `root`, but for weights
    that lie elsewhere. A field that an older file lacks has the value of its default; one that it has and we do not know is in
    `more`."""

    run_id: str = ""
    model: str = ""
    method: str = ""
    seed: int = 1
    profile: str | None = None
    root: str = ""
    examples: str | None = None
    weights: str | None = None
    trained: str | None = None  # the folder of a trained model, or None for the untouched weights
    selection: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    resume: Mapping[str, Any] | None = None  # what a new attempt goes on from
    after: str | None = None  # why it was begun at once: the run before it lost its node
    memory_budget_gb: float | None = None  # of one device
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
        """Whether the run was started under `root`; in a copy of a data root, a run of the other one was not."""
        return self.root in ("", str(root))

    def to_json(self) -> dict[str, Any]:
        """One flat object, as children read it."""
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
    """The spec in `folder`; one that says nothing where a kill left none, or nobody may read it."""
    try:
        return RunSpec.from_json(read_object(folder / FILE))
    except WorkError:
        return RunSpec()
