"""A cell that was run by hand outside the profile: a marked row that is never picked."""

from pathlib import Path
from typing import Any

import pytest

from assets.comparing import _best, _every_cell_is_ok
from assets.grid import grid_of, newest_rows
from assets.metadata import table
from pipelines.cli import main
from pipelines.compare.compare import compare, published_rows
from pipelines.compare.decide import Limits, decide
from pipelines.compare.show import render
from pipelines.compare.table import Row, comparison
from pipelines.errors import UsageError
from tests.fakes import planted
from tests.fakes.planted import Lake

NAMED = ["base", "full", "lora-r8"]


def narrowed(lake: Lake) -> Lake:
    return lake.configured(profiles={"local": {"methods": NAMED}})


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """qlora-r8 is the best in everything, and outside the profile."""
    made = planted.lake(tmp_path)
    made.cell("base", bits=1.0)
    made.cell("full", bits=0.80, peak_memory_gb=4.0, train_seconds=600.0)
    made.cell("lora-r8", bits=0.81, peak_memory_gb=2.0, train_seconds=300.0)
    made.cell("qlora-r8", bits=0.70, peak_memory_gb=1.0, train_seconds=60.0)
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(tmp_path / "experiments.yaml"))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    # Predictions would start a process of their own each time.
    monkeypatch.setattr("pipelines.compare.compare.keep_predictions", lambda _resolved: None)
    return narrowed(made)


def rows_of(lake: Lake) -> dict[str, Row]:
    return {row["method"]: row for row in comparison(lake.resolved()).rows}


def test_it_is_the_last_row_compared_like_the_others_and_changes_none_of_them(lake: Lake, tmp_path: Path) -> None:
    rows = rows_of(lake)
    assert {method: row["outside_profile"] for method, row in rows.items()} == {
        "base": False, "full": False, "lora-r8": False, "qlora-r8": True,
    }  # fmt: skip
    row = rows["qlora-r8"]
    assert (row["status"], row["base_bits_per_byte"], row["seeds"]) == ("ok", 1.0, 1)
    assert row["delta_base_high"] < -0.2 and row["memory_vs_full"] == 0.25
    assert row["is_pareto"] is None and rows["full"]["is_pareto"] and rows["lora-r8"]["is_pareto"]
    (tmp_path / "other").mkdir()
    without = planted.lake(tmp_path / "other", profiles={"local": {"methods": NAMED}})
    without.cell("base", bits=1.0)
    without.cell("full", bits=0.80, peak_memory_gb=4.0, train_seconds=600.0)
    without.cell("lora-r8", bits=0.81, peak_memory_gb=2.0, train_seconds=300.0)
    own = ("run_id", "finished_at")
    expected = {method: {k: v for k, v in row.items() if k not in own} for method, row in rows_of(without).items()}
    assert {method: {k: v for k, v in rows[method].items() if k not in own} for method in NAMED} == expected


def test_it_is_never_picked_and_the_picks_say_so(lake: Lake) -> None:
    publication = compare(lake.project)
    assert {pick["method"] for pick in publication.picks} <= {"full", "lora-r8", None}
    assert all("qlora-r8" not in (pick["candidates"] or "") for pick in publication.picks)
    assert {pick["left_out"] for pick in publication.picks} == {"1 outside the profile"}
    assert publication.stamp["cells"] == "3, 3 ok, 1 outside the profile"
    assert [row["method"] for row in published_rows(lake.data) if row["outside_profile"]] == ["qlora-r8"]
    report = publication.report.read_text(encoding="utf-8")
    assert "<td>ok, outside profile</td>" in report
    assert "run by hand, and not named by profile local: compared, but never picked" in report
    assert "A triangle is a cell outside the profile." in report


def test_the_text_table_marks_its_status(lake: Lake) -> None:
    shown = render(comparison(lake.resolved()).rows, "text")
    (line,) = [line for line in shown.splitlines() if line.startswith("tiny   qlora-r8")]
    assert "ok, outside profile" in line and shown.count("ok, outside profile") == 1
    assert "outside profile: run by hand, and not named by profile local" in shown


def test_decide_leaves_it_out_unless_it_is_named(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    result = comparison(lake.resolved())
    assert decide(result, Limits()).method == "lora-r8"
    assert decide(result, Limits(), [("tiny", "qlora-r8")]).method == "qlora-r8"
    with pytest.raises(UsageError, match="tiny/qlora-r9: no such row"):
        decide(result, Limits(), [("tiny", "qlora-r9")])
    assert main(["decide"]) == 0
    assert capsys.readouterr().out.startswith("use tiny × lora-r8\n")
    assert main(["decide", "--also", "tiny/qlora-r8"]) == 0
    assert capsys.readouterr().out.startswith("use tiny × qlora-r8\n")
    with pytest.raises(SystemExit, match="2"):
        main(["decide", "--also", "qlora-r8"])
    assert "expected MODEL/METHOD" in capsys.readouterr().err


def test_the_grid_marks_it_and_checks_and_plots_are_of_the_profile(lake: Lake) -> None:
    rows = comparison(lake.resolved()).rows
    for shown in (rows, newest_rows(lake.project)):
        text = str(grid_of(shown)["grid"].value)
        (line,) = [line for line in text.splitlines() if line.startswith("| qlora-r8")]
        assert "outside profile · 0.700 bits/byte · 1.00 GB" in line and text.count("outside profile") == 1
    assert "| ok, outside profile |" in str(table(rows, ["method", "status"]).value)
    assert _best(rows) == {"cells ok": 3, "best bits per byte": 0.8, "least peak memory, GB": 2.0}
    failed: list[dict[str, Any]] = [row | {"status": "killed"} if row["outside_profile"] else row for row in rows]
    assert _every_cell_is_ok(failed).passed


def test_what_another_profile_ran_or_experiments_yaml_no_longer_names_is_no_row(tmp_path: Path) -> None:
    made = planted.lake(tmp_path, profiles={"other": {"models": ["tiny"], "methods": ["full"], "seeds": [1]}})
    made.cell("base", bits=1.0)
    Lake(type(made.project)(made.data, made.project.experiments, "other")).cell("full", bits=0.8)
    (made.data.cells / "tiny" / "gone" / "1" / "20260101T000000001-aaaaaa").mkdir(parents=True)
    only = made.configured(profiles={"local": {"methods": ["base"]}})
    assert list(rows_of(only)) == ["base"]


def test_a_model_outside_the_profile_is_compared_with_its_own_base_and_an_unfinished_cell_is_a_row(lake: Lake) -> None:
    more = lake.configured(models={"small": {"source": {"hub": "planted/small"}, "prompt": "chat"}})
    for method in ("base", "full"):
        folder, target = more.data.cells / "tiny" / method, more.data.cells / "small" / method
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
        for spec in target.glob("*/*/spec.json"):
            spec.write_text(spec.read_text(encoding="utf-8").replace('"tiny"', '"small"'), encoding="utf-8")
    more.started("qlora-r8", seed=2)
    rows = {(row["model"], row["method"]): row for row in comparison(more.resolved()).rows}
    assert rows["small", "full"]["outside_profile"] and rows["small", "full"]["delta_base"] == pytest.approx(-0.2)
    assert rows["tiny", "full"]["status"] == "missing" and rows["tiny", "lora-r8"]["delta_base"] is None
    assert (rows["tiny", "qlora-r8"]["status"], rows["tiny", "qlora-r8"]["seeds"]) == ("running", 2)
    compare(more.project)
