"""Every kind of run ends in the same ways: training, evaluation, export, bit widths, a trial of
tuning."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from dagster import DagsterExecutionInterruptedError

from pipelines.errors import InUseError, UnavailableError, WorkError
from pipelines.evaluate.cell import evaluate
from pipelines.extras.export.bit_widths import measure
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.extras.tune.tune import tune
from pipelines.hardware import machine
from pipelines.lake import disk
from pipelines.lake.files import locked, write_json
from pipelines.lake.paths import device_locks
from pipelines.runs.cells import CellKey, attempts
from pipelines.runs.command import CellCommand, Ending, RunningCommand
from pipelines.runs.result import RunResult, result_in
from pipelines.runs.run import RunHooks
from pipelines.runs.spec import RunSpec, spec_in
from pipelines.train.cell import train
from pipelines.weights import store
from tests.fakes import planted
from tests.fakes.planted import Lake

KEY = CellKey("tiny", "lora-r8", 1)
BUDGET = 1.5
# The ends of the ids of planted results.
PLANTED = ("-aaaaaa", "-bbbbbb")


@dataclass(frozen=True)
class End:
    """The end of a child: its last report, its exit code or ending, and an exception during the
    watch."""

    report: dict[str, object] | None = None
    exit_code: int = 0
    ending: Ending | None = None
    raised: BaseException | None = None


class Scripted(RunningCommand):
    def __init__(self, end: End) -> None:
        self._end = end

    def poll(self) -> int | None:
        if self._end.raised:
            raise self._end.raised
        return self._end.exit_code

    def stop(self, *, grace_seconds: float = 0) -> None:
        pass

    def ending(self) -> Ending | None:
        return self._end.ending


class Scripts:
    """Starts no process: each child has the scripted end, except those of `good` modules, which end
    well."""

    def __init__(self, end: End, good: tuple[str, ...] = ()) -> None:
        self.end, self.good, self.folders = end, good, list[Path]()

    def start(self, command: CellCommand) -> Scripted:
        end = End({"status": "ok"}) if command.arguments[1] in self.good else self.end
        (command.folder / "log.txt").touch()
        if end.report:
            write_json(command.folder / "child.json", {"phase": "train", "measured": {}, **end.report})
        self.folders.append(command.folder)
        return Scripted(end)


def trained(lake: Lake, hooks: RunHooks) -> None:
    train(lake.resolved(), KEY, hooks=hooks)


def evaluated(lake: Lake, hooks: RunHooks) -> None:
    lake.cell("base")
    lake.trained(KEY.method)
    evaluate(lake.resolved(), KEY, hooks=hooks)


def exported(lake: Lake, hooks: RunHooks) -> None:
    lake.trained(KEY.method)
    export(lake.resolved(), KEY, ExportRequest(), hooks=hooks)


def measured(lake: Lake, hooks: RunHooks) -> None:
    lake.trained(KEY.method)
    measure(lake.resolved(), KEY, ["nf4"], hooks=hooks)


def tried(lake: Lake, hooks: RunHooks) -> None:
    tune(lake.resolved(), KEY, trials=1, hooks=hooks, tell=lambda _: None)


KINDS: dict[str, Callable[[Lake, RunHooks], None]] = {
    "training": trained, "evaluation": evaluated, "export": exported, "bit widths": measured, "trial": tried,
}  # fmt: skip
LOST = "node n1 died while it ran there"


def over(reason: str, detail: str | None = None, peak: int = 0) -> End:
    return End(ending=Ending(-9, reason, False, peak, 90.0, detail))  # type: ignore[arg-type]


ENDS: dict[str, tuple[End, tuple[str, str | None, str]]] = {
    "Ctrl-C": (End(raised=KeyboardInterrupt()), ("killed", None, "canceled")),
    "Dagster's cancel": (End(raised=DagsterExecutionInterruptedError()), ("killed", None, "canceled")),
    "a fault of ours": (End(raised=ZeroDivisionError("a bug")), ("killed", None, "interrupted (ZeroDivisionError)")),
    "Ctrl-C when it was done": (End({"status": "ok"}, raised=KeyboardInterrupt()), ("ok", None, "")),
    "a full disk": (End(exit_code=disk.EXIT_CODE), ("failed", None, "too little disk for the cell's own report")),
    "a full disk that it could tell of": (
        End({"status": "failed", "detail": "too little disk for a model"}, 3),
        ("failed", None, "too little disk for a model"),
    ),
    "a lost node": (over("node_lost", LOST), ("killed", "node_lost", LOST)),
    "a time limit": (over("time_limit"), ("timed_out", "time_limit", "stopped after 1.5 minutes")),
    "a memory budget": (
        over("memory_budget", peak=1_600_000_000),
        ("out_of_memory", "memory_budget", "used 1.60 GB of a budget of 1.5 GB"),
    ),
    "SIGKILL": (End(exit_code=-9), ("killed", None, "ended by SIGKILL from outside")),
}


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr(store, "fetch", lambda data, experiments, name, say=None: data.models / name)
    return planted.lake(tmp_path, profiles={"local": {"training": {"memory_budget_gb": BUDGET}}})


def result_of(lake: Lake, kind: str, end: End) -> tuple[RunResult, Path]:
    """The result of the kind's last run."""
    good = ("pipelines.extras.export.child",) if kind == "bit widths" else ()
    starter = Scripts(end, good)
    # IndexError comes from a trial that ended well without a curve.
    with suppress(KeyboardInterrupt, DagsterExecutionInterruptedError, ArithmeticError, WorkError, IndexError):
        KINDS[kind](lake, RunHooks(say=lambda _: None, launcher=starter))
    return result_in(starter.folders[-1]), starter.folders[-1]


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_run_ends_alike(lake: Lake, kind: str, name: str):
    end, (status, reason, words) = ENDS[name]
    result, folder = result_of(lake, kind, end)
    assert (result.status, result.reason) == (status, reason), result
    assert words in result.detail
    assert result.finished_at and result.model == "tiny"
    assert not (folder / disk.ROOM).exists(), "the space reserved for the last message is released"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trial"])
def test_weights_that_cannot_be_had_make_a_run_unavailable(lake: Lake, monkeypatch: pytest.MonkeyPatch, kind: str):
    def refuse(data: object, experiments: object, name: str, say: object = None) -> Path:
        raise UnavailableError(f"{name}: gated; accept its terms first")

    monkeypatch.setattr(store, "fetch", refuse)
    starter = Scripts(End({"status": "ok"}))
    KINDS[kind](lake, RunHooks(say=lambda _: None, launcher=starter))
    assert not starter.folders, "nothing was started"
    results = [path.parent for path in lake.data.lake.rglob("result.json")]
    made = [result_in(folder) for folder in results if not folder.name.endswith(PLANTED)]
    assert made
    assert {(one.status, one.detail) for one in made} == {("unavailable", "tiny: gated; accept its terms first")}


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_a_cell_that_lost_its_node_is_run_once_more(lake: Lake, kind: str):
    end, _ = ENDS["a lost node"]
    starter = Scripts(end)
    KINDS[kind](lake, RunHooks(say=lambda _: None, launcher=starter))
    first, second = starter.folders
    assert result_in(first).reason == result_in(second).reason == "node_lost"
    if kind == "training":
        assert spec_in(first).after is None and spec_in(second).after == LOST
        assert result_in(second).detail.startswith(f"begun before: {LOST}")


def test_two_data_roots_share_the_device(tmp_path: Path, lake: Lake):
    """Training in another data root is waited for, since two at once falsify each other's
    speeds."""
    lines: list[str] = []
    ended = threading.Event()

    def go() -> None:
        train(lake.resolved(), KEY, hooks=RunHooks(say=lines.append, launcher=Scripts(End({"status": "ok"}))))
        ended.set()

    other = tmp_path / "another root"
    with locked(device_locks() / f"{machine.device_slug()}.lock", f"a cell of {other}"):
        threading.Thread(target=go, daemon=True).start()
        while not lines:
            time.sleep(0.01)
        assert not ended.is_set() and f"a cell of {other}" in lines[0]
    assert ended.wait(600)
    assert [attempt.status for attempt in attempts(lake.data, KEY)] == ["ok"]


def test_a_lock_whose_file_was_tidied_away_is_taken_anew(tmp_path: Path):
    path = tmp_path / "device.lock"
    with locked(path, "one"):
        path.unlink()
        with locked(path, "two", wait=False), pytest.raises(InUseError, match="two"), locked(path, "three", wait=False):
            pass


def test_a_spec_is_read_as_it_was_written_and_older_or_newer_files_too(tmp_path: Path):
    spec = RunSpec(
        "run", "tiny", "full", 7, recipe={"kind": "full"}, devices=2, sharding="ddp", more={"tokens": {"bos": 1}}
    )
    spec.write(tmp_path)
    assert spec_in(tmp_path) == spec
    write_json(tmp_path / "spec.json", {"model": "tiny", "from_tomorrow": [1], "fingerprints": None})
    assert spec_in(tmp_path) == RunSpec(model="tiny", more={"from_tomorrow": [1]})
    (tmp_path / "spec.json").write_text("{half")
    assert spec_in(tmp_path) == RunSpec()


def test_a_result_is_read_as_it_was_written_and_older_or_newer_files_too(tmp_path: Path):
    result = RunResult("timed_out", "train", "slow", measured={"steps": 3}, seconds=1.5)
    assert RunResult.from_json(result.to_json()) == result
    write_json(tmp_path / "result.json", {"status": "ok", "from_tomorrow": 1})
    assert result_in(tmp_path) == RunResult("ok")
