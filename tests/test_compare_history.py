"""A cell from night to night: on shared records only, with its interval, and a warning for losses
beyond the noise."""

from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest

from pipelines.compare.history import history_rows, usual_limit
from pipelines.compare.table import Row
from pipelines.runs.cells import all_attempts
from tests.fakes import planted
from tests.fakes.planted import Lake, losses


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


def night(lake: Lake, bits: float, *, records: int = 12, luck: str = "same", **training: Any) -> None:
    attempt = lake.trained("full", **training)
    lake.evaluated(attempt, eval_bits_per_byte=bits, losses=losses(bits, records=records, own=luck))


def history(lake: Lake) -> list[Row]:
    return history_rows(list(all_attempts(lake.data)))


def test_nights_are_compared_on_the_records_that_both_share(lake: Lake) -> None:
    night(lake, 0.9, records=8)
    lake.trained("full", "killed")
    night(lake, 0.9, records=12)
    first, second = history(lake)
    one, other = losses(0.9, records=8, own="same"), losses(0.9, records=12, own="same")[:8]
    before, after = (sum(v["scored_nats"] for v in values) / (800 * 0.6931471805599453) for values in (one, other))
    assert (first["shared_records"], first["delta_previous"], first["is_newest"]) == (8, None, False)
    assert (second["shared_records"], second["is_newest"]) == (8, True)
    assert second["bits_per_byte"] == pytest.approx(after)
    assert second["delta_previous"] == pytest.approx(after - before)
    assert second["low"] <= second["delta_previous"] <= second["high"]
    assert second["minutes"] == pytest.approx(100 / 60)


def test_nights_that_share_nothing_have_no_difference(lake: Lake) -> None:
    attempt = lake.trained("full")
    lake.evaluated(attempt, losses=losses(0.9, prefix="other"))
    night(lake, 2.0)
    second = history(lake)[-1]
    assert (second["shared_records"], second["bits_per_byte"], second["delta_previous"]) == (0, None, None)
    assert second["worse"] is None


def test_a_worse_night_is_worse_beyond_the_noise_only(lake: Lake) -> None:
    for luck in ("a", "b"):
        night(lake, 0.9, luck=luck)
    night(lake, 0.901, luck="c")
    assert history(lake)[-1]["worse"] is None
    night(lake, 0.95, luck="d")
    assert "0.0497 bits per byte above its last 3 runs" in history(lake)[-1]["worse"]
    night(lake, 0.95, luck="d")
    newest = history(lake)[-1]
    assert newest["delta_previous"] == pytest.approx(0)
    assert "above its last 4 runs" in newest["worse"], "equal to a bad night is still worse than its past"
    night(lake, 0.7, luck="e")
    assert history(lake)[-1]["worse"] is None
    assert history(lake)[-1]["high"] < 0


def test_what_changed_between_nights_is_named(lake: Lake) -> None:
    night(lake, 0.9)
    night(lake, 0.9, prints={"code": "another", "recipe": "another"})
    assert history(lake)[-1]["changed"] == "recipe, code"


def test_time_and_memory_beyond_the_spread_of_equal_runs(lake: Lake) -> None:
    for seconds in (100.0, 102.0, 98.0, 101.0):
        night(lake, 0.9, train_seconds=seconds)
    night(lake, 0.9, train_seconds=109.0, peak_memory_gb=2.3)
    assert history(lake)[-1]["worse"] == "2.30 GB, 2.00 in its 4 equal runs before"
    assert usual_limit([98.0, 100.0, 101.0, 102.0]) == pytest.approx(100.5 * 1.1)
    assert usual_limit([60.0, 100.0, 101.0, 140.0]) == pytest.approx(100.5 + 3 * 1.4826 * 20.0)


def test_the_asset_check_warns_of_it(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from assets import comparing

    night(lake, 0.9, luck="a")
    monkeypatch.setattr(comparing, "project_now", lambda: lake.project)
    assert cast(dg.AssetCheckResult, comparing.no_cell_got_worse()).passed
    night(lake, 0.99, luck="b")
    result = cast(dg.AssetCheckResult, comparing.no_cell_got_worse())
    assert (result.passed, result.severity.value) == (False, "WARN")
    assert "above its last 1 run " in str(result.metadata["worse"].value)
