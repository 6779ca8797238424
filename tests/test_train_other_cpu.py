"""The load of other programs while a cell trained, and the table's words about its speed."""

from pathlib import Path

import psutil
import pytest

from pipelines.compare.table import comparison_rows
from pipelines.compare.tables import all_tables
from pipelines.train.trainer.measure.other_cpu import OtherCpu
from tests.fakes import planted


class Clock:
    """A machine of two cores whose times are set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = dict.fromkeys(psutil.cpu_times()._fields, 0.0)
        self.own = 0.0
        fields = type(psutil.cpu_times())
        monkeypatch.setattr(psutil, "cpu_times", lambda: fields(**self.times))
        # Called for this process and its parent.
        monkeypatch.setattr("pipelines.train.trainer.measure.other_cpu._seconds", lambda _process: self.own / 2)

    def passes(self, *, own: float, others: float, idle: float) -> None:
        self.own += own
        self.times["user"] += own + others / 2
        self.times["system"] += others / 2
        self.times["idle"] += idle


def test_only_the_time_between_start_and_stop_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = OtherCpu()
    assert meter.percent is None
    clock.passes(own=1, others=50, idle=0)
    meter.start()
    clock.passes(own=10, others=2, idle=8)
    meter.stop()
    clock.passes(own=0, others=50, idle=0)
    assert meter.percent == pytest.approx(10.0)
    meter.start()
    clock.passes(own=20, others=0, idle=0)
    meter.stop()
    meter.stop()
    assert meter.percent == pytest.approx(5.0)


def test_a_run_that_goes_on_keeps_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = OtherCpu(others=5, available=10)
    meter.start()
    clock.passes(own=10, others=0, idle=0)
    meter.stop()
    assert meter.percent == pytest.approx(25.0)


@pytest.mark.parametrize(("percent", "is_disturbed"), [(None, None), (4.0, False), (10.0, False), (31.5, True)])
def test_a_speed_measured_beside_other_work_is_marked(
    tmp_path: Path, percent: float | None, is_disturbed: bool | None
) -> None:
    lake = planted.lake(tmp_path)
    lake.cell("full", other_cpu_pct=percent)
    row = next(row for row in comparison_rows(lake.resolved()) if row["method"] == "full")
    (run,) = all_tables(lake.data, lake.project.experiments, [])["training_runs"].to_pylist()
    for values in (row, run):
        assert (values["other_cpu_pct"], values["speed_disturbed"]) == (percent, is_disturbed)
