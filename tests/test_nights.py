"""Nights through Dagster: the schedule, the sensors, the runs; each night does what is due, once, and nothing else."""

from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from assets.definitions import defs
from assets.inputs import note_inputs
from assets.project import partition_of
from pipelines import cells
from pipelines.compare.compare import published_rows
from pipelines.compare.table import comparison_rows
from tests.nights import Nights, nights
from tests.project import MODEL, TinyProject


@pytest.fixture
def week(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    project.change(profiles={"local": {"methods": ["base", "lora-r8"]}})
    with nights(project, monkeypatch) as made:
        yield made


def attempts(week: Nights) -> int:
    return len(list(cells.all_attempts(week.project.data)))


def test_the_first_night_does_everything_and_an_unchanged_one_only_looks(week: Nights) -> None:
    assert week.night() == ["data", "base", "lora-r8", "publish"]
    assert {row["method"]: row["status"] for row in published_rows(week.project.data)} == {
        "base": "ok",
        "lora-r8": "ok",
    }
    assert not week.tick("lake_has_changed"), "the night has published what there is"
    made = attempts(week)
    assert week.night() == ["data", "publish"]
    assert attempts(week) == made
    week.project.change(methods={"lora-r8": {"learning_rate": 0.0005}})
    assert week.night() == ["data", "lora-r8", "publish"]
    assert week.statuses("lora-r8") == ["ok", "ok"] and week.statuses("base") == ["ok"]


def is_stale_in_dagster(week: Nights, method: str) -> bool:
    """What the UI shows of the cell: its model or its evaluation is stale."""
    context = LoadingContextForTest(week.instance)
    resolver = CachingStaleStatusResolver(week.instance, defs.resolve_asset_graph(), context)
    keys = [dg.AssetKey(name) for name in ("trained_model", "evaluation")]
    return any(resolver.get_status(key, str(partition_of(MODEL, method))) != StaleStatus.FRESH for key in keys)


def stale(week: Nights) -> set[str]:
    """The methods that our table calls stale. Dagster, once it has looked, must call the same ones stale."""
    note_inputs(week.instance, week.project.stage())
    rows = comparison_rows(week.project.stage())
    ours = {row["method"] for row in rows if row["is_stale"]}
    assert {row["method"] for row in rows if is_stale_in_dagster(week, row["method"])} == ours
    return ours


def test_dagster_and_the_table_call_the_same_cells_stale(week: Nights) -> None:
    project = week.project
    week.night()
    assert stale(week) == set()
    project.change(methods={"lora-r8": {"weight_decay": 0.5}})
    assert stale(week) == {"lora-r8"}
    project.change(methods={"lora-r8": {"weight_decay": 0.25}})
    week.cell("lora-r8")  # at once, before any sensor has looked
    assert stale(week) == set()
    project.change(profiles={"local": {"evaluation": {"answers": 1}}})
    assert stale(week) == {"base", "lora-r8"}
    project.change(profiles={"local": {"evaluation": {"answers": 2}, "max_train_examples": 7}})
    assert stale(week) == {"lora-r8"}, "base trains on nothing"
    project.change(profiles={"local": {"max_train_examples": 8}})
    assert stale(week) == set(), "as it was"
