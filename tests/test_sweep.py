"""A sweep over ranks: cells like any others, a table and a picture, and no cell's outcome hides the others'."""

import json
from typing import Any

import pytest

from pipelines import sweep as sweeping
from pipelines.compare.plots import swept_ranks
from pipelines.compare.table import Row
from pipelines.errors import UsageError
from tests.planted import Lake, lake


@pytest.fixture
def planted_lake(tmp_path: Any) -> Lake:
    return lake(tmp_path)


def test_ranks_are_the_configured_methods_or_made_like_the_write_ups(planted_lake: Lake) -> None:
    swept = sweeping.with_ranks(planted_lake.project, "tiny", [256, 8, 8])
    methods = swept.project.experiments.methods
    assert swept.methods == {8: "lora-r8", 256: "lora-r256"} and swept.added == ["lora-r256"]
    assert (methods["lora-r256"].alpha, methods["lora-r256"].dropout) == (1024, 0.1)
    assert methods["lora-r8"] == planted_lake.project.experiments.methods["lora-r8"]
    assert swept.project.experiments.profile("local").methods == ["base", "lora-r8", "lora-r256"]
    with pytest.raises(UsageError, match="unknown model"):
        sweeping.with_ranks(planted_lake.project, "huge", [8])


def test_a_rank_that_is_out_of_memory_is_a_row_and_the_next_is_run(
    planted_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_lake.cell("base", bits=1.0)
    swept = sweeping.with_ranks(planted_lake.project, "tiny", [8, 128, 256])
    wide = Lake(swept.project)

    def train(_stage: Any, key: Any, **_: Any) -> tuple[Any, bool]:
        bad = key.method == "lora-r128"
        detail = "used 3.1 GB of a budget of 3 GB and was stopped"
        found = (
            wide.trained(key.method, "out_of_memory", phase="probe", detail=detail) if bad else wide.trained(key.method)
        )
        return found, False

    monkeypatch.setattr(sweeping, "train", train)
    monkeypatch.setattr(sweeping, "evaluate", lambda _stage, key, **_: wide.evaluated(_newest(wide, key)))
    said: list[str] = []
    rows = sweeping.run_sweep(swept, on_tick=lambda _attempt: None, tell=said.append)
    assert [(row["rank"], row["status"]) for row in rows] == [(8, "ok"), (128, "out_of_memory"), (256, "ok")]
    assert len(said) == 3 and "out_of_memory" in said[1]
    text = sweeping.table(rows, swept, "text")
    assert "lora-r128 is out_of_memory: used 3.1 GB" in text and "add to methods of profile local" in text
    assert json.loads(sweeping.table(rows, swept, "json"))[0]["minutes"] == pytest.approx(100 / 60)
    path = sweeping.write_picture(rows, swept)
    assert path.name == "rank-sweep-tiny.png" and path.read_bytes().startswith(b"\x89PNG")
    assert b"out of memory" in swept_ranks(rows) and swept_ranks([_nothing(rows[0])])


def _newest(wide: Lake, key: Any) -> Any:
    from pipelines.runs import cells

    return cells.latest(wide.data, key)


def _nothing(row: Row) -> Row:
    return {**dict.fromkeys(row), "rank": 8, "status": "missing"}
