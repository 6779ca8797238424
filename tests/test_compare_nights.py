"""The table of nights: files of any age, complete or not, and how they are shown."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.nights import nights, nights_metadata, report_nights
from pipelines.compare.columns.nights import NIGHTS
from pipelines.compare.nights import night_rows
from pipelines.compare.report import Content, write_report
from pipelines.compare.tables import all_tables
from pipelines.nightly import night
from pipelines.nightly.due import Due
from tests.fakes import planted
from tests.fakes.planted import Lake

CELL = {"because": {"1": "missing"}, "seen": {"1": ""}}
# A night as it was written before December 2026.
OLD: dict[str, Any] = {
    "night": "2026-11-27T0200", "started_at": "2026-11-27T02:00:00.000+09:00", "ended_at": "2026-11-26T18:30:00.000+00:00",
    "rounds": [
        {"at": "2026-11-26T17:01:00.000+00:00", "cells": [CELL | {"model": "tiny", "method": one} for one in ("full", "base")]},
        {"at": "2026-11-26T17:09:00.000+00:00", "cells": [CELL | {"model": "tiny", "method": "full"}]},
    ],
    "why": "all that was due is done", "spent_usd": 0.25,
    "outcome": {"tiny × base": ["ok", "ok"], "tiny × full": ["ok", "out_of_memory"]},
}  # fmt: skip


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = planted.lake(tmp_path)
    (made.data.lake / "nights").mkdir(parents=True)
    return made


def plant(lake: Lake, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (lake.data.lake / "nights" / f"{name}.json").write_text(text, encoding="utf-8")


def test_an_old_nights_file_is_a_row(lake: Lake) -> None:
    plant(lake, "2026-11-27T0200", OLD)
    assert night_rows(lake.data) == [
        {
            "night": "2026-11-27T0200", "started_at": "2026-11-27T02:00:00+09:00", "ended_at": "2026-11-26T18:30:00+00:00",
            "minutes": 90.0, "spent_usd": 0.25, "cells": 2, "cells_ok": 1, "cells_not_ok": 1, "outcome": "not ok",
            "reason": "all that was due is done", "run_ids": None,
        }
    ]  # fmt: skip
    table = all_tables(lake.data, lake.project.experiments, [])["nights"]
    (row,) = table.to_pylist()
    assert row["started_at"] == datetime(2026, 11, 26, 17, tzinfo=UTC)
    assert table.column_names == list(NIGHTS.by_name)


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (OLD | {"outcome": {"tiny × base": ["ok"], "tiny × full": ["ok"]}}, "ok"),
        (OLD | {"outcome": {"tiny × base": [], "tiny × full": ["ok"]}}, "not ok"),
        (OLD | {"outcome": {"tiny × base": ["ok"]}}, "not ok"),
        (OLD | {"rounds": [], "outcome": {}}, "ok"),
        (OLD | {"rounds": [], "outcome": {}, "why": f"{night.NO_DATA}: no cell was run"}, "failed"),
        ({"night": "x", "started_at": "2026-11-27T02:00:00+00:00", "ended_at": None, "rounds": []}, "abandoned"),
        ('{"night": "2026-11', "unreadable"),
        ("", "unreadable"),
        ([1], "unreadable"),
        ({}, "unreadable"),
        (OLD | {"started_at": "yesterday"}, "unreadable"),
        (OLD | {"rounds": [{"cells": [None]}]}, "unreadable"),
        (OLD | {"spent_usd": "much"}, "unreadable"),
        (OLD | {"why": 7}, "unreadable"),
        (OLD | {"outcome": ["ok"]}, "unreadable"),
    ],
)
def test_whatever_lies_there_is_a_row_and_the_other_nights_are_whole(lake: Lake, content: Any, outcome: str) -> None:
    plant(lake, "2026-11-26T0200", content)
    plant(lake, "2026-11-27T0200", OLD)
    first, second = night_rows(lake.data)
    assert (first["night"], first["outcome"], second["outcome"]) == ("2026-11-26T0200", outcome, "not ok")
    all_tables(lake.data, lake.project.experiments, [])
    nights_metadata(lake.data)


def test_a_folder_in_a_files_place_is_a_row_too(lake: Lake) -> None:
    (lake.data.lake / "nights" / "2026-11-26T0200.json").mkdir()
    (row,) = night_rows(lake.data)
    assert (row["outcome"], row["reason"]) == ("unreadable", "2026-11-26T0200.json is not the record of a night")


def test_a_night_is_under_way_until_it_publishes_and_then_says_what_it_did(lake: Lake) -> None:
    name = "2026-11-28T0200"
    night.note_round(lake.data, name, [Due("tiny", "full", {1: "missing"}, {1: ""})])
    (row,) = night_rows(lake.data)
    assert (row["outcome"], row["cells"], row["cells_ok"], row["minutes"]) == ("under way", 1, None, None)
    lake.cell("full")
    night.note_runs(lake.data, name, ["first", "second"])
    night.note_runs(lake.data, name, ["second", "third"])
    night.note_done(lake.project, name, "all that was due is done")
    (row,) = night_rows(lake.data)
    assert (row["outcome"], row["cells_ok"], row["cells_not_ok"], row["run_ids"]) == (
        "ok", 1, 0, '["first", "second", "third"]',
    )  # fmt: skip
    assert row["minutes"] is not None and not night.has_ended(lake.data, name)
    night.end(lake.project, name, "all that was due is done")
    assert night.has_ended(lake.data, name) and night_rows(lake.data)[0]["run_ids"] == row["run_ids"]


def test_the_page_has_the_newest_nights_first_with_links_to_their_runs(lake: Lake) -> None:
    plant(lake, "2026-11-27T0200", OLD | {"runs": ["0123456789abcdef", "a|b](http://x) <i>"]})
    plant(lake, "2026-11-28T0200", OLD | {"why": "*over* | done", "runs": [f"run-{number}" for number in range(15)]})
    with dg.DagsterInstance.ephemeral() as instance:
        report_nights(instance, lake.data)
        event = instance.get_latest_materialization_event(nights.key)
        assert event is not None and event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
    assert {name: metadata[name].value for name in ("dagster/row_count", "minutes", "dollars", "cells not ok")} == {
        "dagster/row_count": 2, "minutes": 90.0, "dollars": 0.25, "cells not ok": 1.0,
    }  # fmt: skip
    heading, _, first, second = str(metadata["nights"].value).splitlines()
    assert heading == "| night | began | minutes | dollars | cells | outcome | why it ended | runs |"
    assert first.startswith("| 2026-11-28T0200 | 2026-11-26 17:00 UTC")
    assert r" | 90.0 | 0.2500 | 2, 1 ok | not ok | \*over\* \| done | " in first
    newest = str(metadata["newest night"].value)
    assert len(newest) < 1000, "otherwise Dagster puts it behind a click"
    assert "| cells | 2, 1 ok |" in newest and "| runs | [run-0](/runs/run-0)" in newest
    assert "[run-0](/runs/run-0)" in first and "run-12" not in first and first.endswith("and 3 more |")
    assert "[01234567](/runs/0123456789abcdef)" in second
    assert second.endswith(r"[a\|b\](htt](/runs/a%7Cb%5D%28http%3A%2F%2Fx%29%20%3Ci%3E) |")


def test_without_a_night_the_page_says_so(lake: Lake) -> None:
    assert nights_metadata(lake.data)["nights"].value == "No night has started yet."


def test_the_report_shows_the_newest_nights(lake: Lake) -> None:
    for day in range(1, 18):
        plant(lake, f"2026-11-{day:02}T0200", OLD)
    tables = all_tables(lake.data, lake.project.experiments, [])
    write_report(lake.project, Content.of([], tables))
    page = lake.data.report.read_text(encoding="utf-8")
    section = page[page.index('<h2 id="nights">') :]
    shown = [day for day in range(1, 18) if f"2026-11-{day:02}T0200" in section]
    assert shown == list(range(4, 18)) and "3 more are left out" in section
    assert section.index("2026-11-17T0200") < section.index("2026-11-16T0200")
    assert "2026-11-26 17:00 UTC" in section
