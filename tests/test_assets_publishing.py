"""The sensor that follows the lake.

A burst makes one publication, none disturbs a cell, and the last change is never lost.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets import comparing, nightly
from assets.comparing import LAKE, PROFILE, comparison
from assets.definitions import defs
from pipelines.compare import compare as publishing
from pipelines.compare.compare import lake_version, published_rows
from pipelines.errors import InUseError
from pipelines.lake.files import locked, write_json
from pipelines.nightly.publishing import LONGEST, QUIET, Changes
from pipelines.runs import devices
from pipelines.runs.devices import watched_locks
from tests.fakes import planted
from tests.fakes.planted import Lake

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
SENSOR = "lake_has_changed"
# No process has such an id.
DEAD = 2**22 + 1


@dataclass
class Daemon:
    """The sensor's ticks at times that a test sets."""

    lake: Lake
    instance: dg.DagsterInstance
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    cursor: str | None = None
    skip_reason: str = ""

    def tick(self, seconds: float = 15) -> list[dg.RunRequest]:
        self.now += timedelta(seconds=seconds)
        repository = defs.get_repository_def()
        context = dg.build_sensor_context(
            self.instance, cursor=self.cursor, repository_def=repository, sensor_name=SENSOR
        )
        decided = defs.resolve_sensor_def(SENSOR).evaluate_tick(context)
        self.cursor, self.skip_reason = decided.cursor, decided.skip_message or ""
        return list(decided.run_requests or [])

    def ticks(self, minutes: float) -> list[dg.RunRequest]:
        """Two ticks within this many minutes; the daemon's other ticks would decide the same."""
        return [request for _ in range(2) for request in self.tick(30 * minutes)]

    def due(self) -> list[dg.RunRequest]:
        """The tick that sees a change, and the one that may publish it."""
        return [*self.tick(), *self.tick(QUIET.total_seconds())]

    def publish(self, request: dg.RunRequest | None = None) -> bool:
        """Execute the requested run, or one by hand; returns whether it succeeded."""
        tags = {k: v for k, v in request.tags.items() if not k.startswith("dagster/")} if request else {}
        done = defs.resolve_job_def("publish").execute_in_process(
            instance=self.instance, run_config=request.run_config if request else None, tags=tags, raise_on_error=False
        )
        return done.success

    def note_published(self) -> None:
        """Record a publication of the current lake."""
        metadata = {LAKE: lake_version(self.lake.data), PROFILE: "local"}
        self.instance.report_runless_asset_event(dg.AssetMaterialization(comparison.key, metadata=metadata))

    def publications(self) -> int:
        return len(self.instance.fetch_materializations(comparison.key, limit=100).records)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A published lake with two cells, on an idle device."""
    lake = planted.lake(tmp_path)
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(tmp_path / "experiments.yaml"))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    monkeypatch.setenv("FEATHERWEIGHT_LOCKS", str(tmp_path / "locks"))
    # Predictions would start a process of their own each time.
    monkeypatch.setattr(publishing, "keep_predictions", lambda _resolved: None)
    lake.cell("base")
    lake.cell("full")
    with dg.DagsterInstance.ephemeral() as instance:
        made = Daemon(lake, instance)
        monkeypatch.setattr(nightly, "_now", lambda: made.now)
        made.note_published()
        yield made


def device() -> Path:
    return watched_locks()[0]


def test_while_nothing_changes_a_tick_opens_none_of_dagsters_databases(daemon: Daemon) -> None:
    daemon.tick()
    # A context without an instance, which the sensor would open itself.
    without = dg.build_sensor_context(cursor=daemon.cursor)
    decided = defs.resolve_sensor_def(SENSOR).evaluate_tick(without)
    assert decided.skip_message == "nothing new in the lake"
    daemon.lake.trained("full")
    assert not daemon.tick() and daemon.skip_reason.startswith("the lake has changed")
    daemon.note_published()
    assert not daemon.tick() and daemon.skip_reason == "nothing new in the lake"


def test_a_burst_of_results_makes_one_publication(daemon: Daemon) -> None:
    assert not daemon.tick() and daemon.skip_reason == "nothing new in the lake"
    requests = []
    # Six results within 7.5 minutes, as the cells of a small run end.
    for number in range(6):
        daemon.lake.trained(("full", "lora-r8")[number % 2])
        requests += daemon.ticks(1.25)
    assert requests == []
    daemon.lake.started("qlora-r8")
    (request,) = daemon.ticks(2)
    assert daemon.publish(request) and daemon.publications() == 2
    statuses = {row["method"]: row["status"] for row in published_rows(daemon.lake.data)}
    assert statuses["lora-r8"] == "ok" and statuses["qlora-r8"] == "running", "whatever stands in the lake is shown"
    assert daemon.ticks(40) == [] and daemon.skip_reason == "nothing new in the lake"


def test_that_a_cell_waits_or_runs_or_a_curve_grows_is_no_change(daemon: Daemon) -> None:
    attempt = daemon.lake.started("lora-r8")
    (attempt.folder / "curve.jsonl").write_text("{}\n")
    assert daemon.ticks(20) == [] and daemon.skip_reason == "nothing new in the lake"


def test_where_changes_keep_coming_it_is_published_every_fifteen_minutes(daemon: Daemon) -> None:
    request_times = []
    # One result every 100 seconds.
    for number in range(20):
        daemon.lake.trained("full")
        if requests := daemon.tick(100):
            request_times.append(number * 100 / 60)
            assert len(requests) == 1
            daemon.note_published()
    assert request_times == [15, pytest.approx(15 + 5 / 3 + 15)], (
        "the first change after a publication waits for as long"
    )


def test_nothing_is_published_while_a_device_is_held_and_all_of_it_right_after(daemon: Daemon) -> None:
    with locked(device(), "smollm2 × full of another root"):
        daemon.lake.cell("lora-r8")
        assert daemon.ticks(60) == []
        assert "smollm2 × full of another root" in daemon.skip_reason
    assert len(daemon.tick()) == 1


def test_what_is_changed_by_the_last_cell_alone_is_published_too(daemon: Daemon) -> None:
    daemon.lake.cell("lora-r8")
    assert not daemon.tick() and daemon.skip_reason.startswith("the lake has changed: publication at ")
    assert not daemon.tick(119) and daemon.tick(1)


@pytest.mark.parametrize("status", ["killed", "failed"])
def test_a_cell_that_ended_badly_is_a_change(daemon: Daemon, status: Any) -> None:
    daemon.lake.trained("lora-r8", status, phase="train")
    assert daemon.due()


def test_a_cell_whose_process_is_gone_is_a_change_once(daemon: Daemon) -> None:
    before = lake_version(daemon.lake.data)
    daemon.lake.started("lora-r8")
    assert lake_version(daemon.lake.data) == before
    daemon.lake.started("qlora-r8", pid=DEAD)
    assert lake_version(daemon.lake.data) != before
    assert daemon.due()
    daemon.note_published()
    assert daemon.ticks(20) == []


def test_a_publication_by_hand_is_followed_by_no_other(daemon: Daemon) -> None:
    daemon.lake.cell("lora-r8")
    daemon.tick()
    # `make run` notes a publication after each cell and at its end.
    daemon.note_published()
    assert daemon.ticks(20) == [] and daemon.skip_reason == "nothing new in the lake"


@pytest.mark.slow
def test_a_cell_that_begins_first_puts_the_publication_off_and_it_is_asked_for_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "PATIENCE", 0.0)
    daemon.lake.cell("lora-r8")
    (request,) = daemon.due()
    with locked(device(), "tiny × full"):
        assert daemon.publish(request) and daemon.publications() == 1, "no failed run, and nothing published"
    assert daemon.ticks(10) == [] and "within the last 15 minutes" in daemon.skip_reason
    (again,) = daemon.tick(600)
    assert again.run_key == f"{str(request.run_key)[:-1]}1", "Dagster runs each key once"
    assert daemon.publish(again) and daemon.publications() == 2
    assert daemon.ticks(20) == []


@pytest.mark.slow
def test_a_cell_that_begins_while_it_is_published_waits(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str | None] = []
    compare = comparing.compare

    def looked(project: Any) -> Any:
        held.append(devices.holder(watched_locks()))
        return compare(project)

    monkeypatch.setattr(comparing, "compare", looked)
    daemon.lake.cell("lora-r8")
    (request,) = daemon.due()
    assert daemon.publish(request) and daemon.publish()
    assert "the publication (process " in str(held[0]) and held[1] is None, "a publication by hand does not wait"
    assert devices.holder(watched_locks()) is None


@pytest.mark.slow
def test_a_publication_that_fails_is_tried_once_more_and_then_waits_for_a_change(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_project: Any) -> Any:
        raise OSError("no such disk")

    with monkeypatch.context() as broken:
        broken.setattr(comparing, "compare", fails)
        daemon.lake.cell("lora-r8")
        (request,) = daemon.due()
        assert not daemon.publish(request) and not daemon.tick(60), "not at once"
        (request,) = daemon.tick(1200)
        assert not daemon.publish(request)
        assert daemon.ticks(60) == [] and "the publication failed 2 times" in daemon.skip_reason
    daemon.lake.cell("qlora-r8")
    # The first change has waited long enough.
    (request,) = daemon.tick()
    assert daemon.publish(request) and daemon.ticks(20) == []


@pytest.mark.parametrize("status", ["STARTING", "STARTED"])
def test_while_one_is_under_way_no_other_is_asked_for(daemon: Daemon, status: str) -> None:
    job = defs.resolve_job_def("publish")
    run = daemon.instance.create_run_for_job(job, status=dg.DagsterRunStatus[status])
    daemon.lake.cell("lora-r8")
    assert daemon.ticks(20) == [] and daemon.skip_reason == "a publication is under way"
    daemon.instance.report_run_failed(run)
    assert daemon.tick(), "its process was killed"


def test_a_daemon_that_was_away_publishes_what_it_finds(daemon: Daemon) -> None:
    daemon.lake.cell("lora-r8")
    daemon.tick()
    assert len(daemon.tick(seconds=3600)) == 1
    daemon.cursor = "not ours"
    assert daemon.tick() == [] and len(daemon.tick(seconds=121)) == 1, "as if it had just been seen"


def test_a_lock_ends_with_its_holder_whatever_stands_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "cpu.lock"
    assert devices.holder([path]) is None and not path.exists(), "a look creates no file"
    with locked(path, "tiny × full"):
        pass
    program = (
        "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        assert "tiny × full" in str(devices.holder([path]))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "tiny × full" in path.read_text() and devices.holder([path]) is None


def test_all_devices_are_held_or_none(tmp_path: Path) -> None:
    card, processors = tmp_path / "cuda-0.lock", tmp_path / "cpu.lock"
    with locked(processors, "a cell"):
        with pytest.raises(InUseError, match="a cell"), devices.held([card, processors], "we", seconds=0):
            raise AssertionError
        assert devices.holder([card]) is None, "no lock is held while another is awaited"
    with devices.held([card, processors], "we", seconds=0):
        assert "we" in str(devices.holder([card])) and "we" in str(devices.holder([processors]))
        assert devices.holder([card]), "a look removes nothing"
    assert devices.holder([card, processors]) is None


def test_when_changes_are_due() -> None:
    first = Changes.noted(None, None, "a", NOON)
    assert first.due == NOON + QUIET
    later = NOON + timedelta(minutes=1)
    assert Changes.noted(first.text, None, "a", later) == first, "it has not changed since"
    second = Changes.noted(first.text, None, "b", later)
    assert second.due == later + QUIET and second.since == first.since
    late = NOON + LONGEST - timedelta(seconds=1)
    assert Changes.noted(second.text, None, "c", late).due == NOON + LONGEST
    assert Changes.noted(second.text, "b", "c", late).due == late + QUIET, "the others have been published"


# A time from a clock that ran ahead.
AHEAD = (NOON + timedelta(days=9)).isoformat()


@pytest.mark.parametrize(
    "text",
    [
        None, "", "{", "[]", "null", "7", '{"version": "a"}',
        json.dumps({"published": None, "version": "a", "since": "noon", "at": "noon"}),
        json.dumps({"published": None, "version": "a", "since": 5, "at": None}),
        json.dumps({"published": None, "version": "a", "since": "2026-11-25T11:00:00", "at": "2026-11-25T11:00:00"}),
        json.dumps({"published": None, "version": "a", "since": AHEAD, "at": "2026-11-25T11:00:00+00:00"}),
        Changes(None, "a", AHEAD, AHEAD).text,
    ],
)  # fmt: skip
def test_a_note_that_tells_nothing_begins_the_wait_anew(text: str | None) -> None:
    assert Changes.noted(text, None, "a", NOON) == Changes(None, "a", NOON.isoformat(), NOON.isoformat())


def test_examples_are_a_change(daemon: Daemon) -> None:
    current = daemon.lake.data.clean / "current.json"
    before = lake_version(daemon.lake.data)
    write_json(current, json.loads(current.read_text()) | {"read": 6})
    assert lake_version(daemon.lake.data) != before
