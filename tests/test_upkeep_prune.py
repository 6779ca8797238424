"""Pruning announces what it would remove, removes only what no row needs, and leaves every number
unchanged."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.history import forget, old_runs
from pipelines import cli
from pipelines.cli import looking_after
from pipelines.compare.table import comparison_rows
from pipelines.compare.tables import all_tables
from pipelines.estimate.question import questions
from pipelines.hardware.machine import own_identity
from pipelines.lake.files import locked, read_json, write_json
from pipelines.runs.cells import Attempt
from pipelines.runs.result import write_result
from pipelines.runs.status import Status
from pipelines.upkeep.prune import leftovers, listing, remove, superseded_exports
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.project import MODEL, TinyProject


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


def planted_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    return path


def with_examples(lake: Lake, attempt: Any, folder: str) -> None:
    spec = attempt.folder / "spec.json"
    write_json(spec, (read_json(spec) or {}) | {"examples": f"lake/clean/{folder}/examples.parquet"})


def measured(lake: Lake, attempt: Attempt, name: str, number: int, status: Status = "ok") -> Path:
    """The folder of one measurement of a result at one bit width."""
    cell = lake.data.lake / "bit_widths" / "tiny" / attempt.key.method / "1" / attempt.run_id
    folder = cell / name / f"2026010{number}T000000000-aaaaaa"
    write_json(folder / "spec.json", {"run_id": attempt.run_id})
    write_json(folder / "child.json", {"phase": "measure", "measured": {"bits_per_byte": float(number)}})
    write_result(folder, status, "measure", None)
    return folder


@pytest.fixture
def grown(lake: Lake) -> tuple[Lake, set[Path], set[Path]]:
    """A lake with removable and indispensable parts."""
    old = lake.cell("full")
    killed_before = lake.trained("full", "killed", phase="train")
    good = lake.cell("full")
    killed = lake.trained("lora-r8", "killed", phase="train")
    running = lake.started("qlora-r8")
    evaluating = lake.evaluated(lake.trained("base")).folder
    (evaluating / "result.json").unlink()
    write_json(evaluating / "state.json", {"status": "running", "phase": "evaluate", **own_identity()})
    with_examples(lake, old, "referred")
    goes = {
        planted_file(old.folder / "model" / "w").parent,
        planted_file(killed_before.folder / "checkpoints" / "step-4" / "state.json").parent.parent,
        planted_file(killed.folder / ".model.partial" / "w").parent,
        planted_file(killed.folder / ".child.json.4711.partial"),
        planted_file(killed.folder / "checkpoints" / ".step-5.partial" / ".w.4711.partial").parent,
        planted_file(killed.folder / ".start.partial" / "w").parent,
        planted_file(good.evaluations()[0].folder / ".answers.jsonl.4711.partial"),
        planted_file(lake.data.clean / "orphan" / "examples.parquet").parent,
        planted_file(lake.data.tried.clean / "0123456789abcdef" / "examples.parquet").parents[3],
        planted_file(lake.data.lake / "estimates" / "0123456789abcdef.json"),
        planted_file(
            lake.data.root / "exports" / "tiny" / "full" / "1" / "20250101T000000000-gone00" / "m" / "w"
        ).parent.parent,
        planted_file(
            lake.data.root / "exports" / "tiny" / "no-method" / "1" / "20250101T000000000-gone00" / "w"
        ).parent,
        measured(lake, good, "int8", 1),
        planted_file(lake.data.root / "warehouse" / "a.duckdb"),
        planted_file(lake.data.root / "warehouse" / "c.duckdb.wal"),
    }
    stays = {
        planted_file(good.folder / "model" / "w").parent,
        planted_file(killed.folder / "checkpoints" / "step-4" / "state.json").parent.parent,
        planted_file(running.folder / "model" / "w").parent,
        planted_file(running.folder / ".child.json.4711.partial"),
        planted_file(evaluating / ".answers.jsonl.4711.partial"),
        planted_file(lake.data.clean / "referred" / "examples.parquet").parent,
        planted_file(lake.data.root / "exports" / "tiny" / "full" / "1" / old.run_id / "merged" / "w"),
        planted_file(lake.data.root / "exports" / "tiny" / "full" / "1" / good.run_id / "merged" / "w"),
        planted_file(lake.data.root / "exports" / "mine.gguf"),
        measured(lake, good, "int8", 2),
        measured(lake, good, "int8", 3, "killed"),
        measured(lake, old, "fp32", 1),
        planted_file(lake.data.root / "warehouse" / "b.duckdb"),
        planted_file(lake.data.root / "warehouse" / "c.duckdb"),
    }
    lake.data.warehouse.symlink_to("warehouse/c.duckdb")
    return lake, goes, stays


def test_it_names_what_nobody_needs_and_nothing_else(grown: tuple[Lake, set[Path], set[Path]]) -> None:
    lake, goes, stays = grown
    assert {leftover.path for leftover in leftovers(lake.project)} == goes
    assert all(path.exists() for path in goes | stays), "naming removes nothing"


def test_a_prediction_of_a_configured_cell_stays_whether_a_profile_names_it_or_not(project: TinyProject) -> None:
    (question,) = questions(project.now(), [(MODEL, "lora-r256")], [1])
    write_json(question.file, {"model": MODEL, "method": "lora-r256"})
    assert "lora-r256" not in project.now().settings.methods and leftovers(project.now()) == []
    project.change(methods={"lora-r256": {"rank": 255}})
    assert [leftover.path for leftover in leftovers(project.now())] == [question.file]


def test_the_listing_counts_each_kind_and_names_some_of_it(lake: Lake) -> None:
    for number in range(5):
        planted_file(lake.data.clean / f"orphan-{number}" / "examples.parquet")
    output = "\n".join(listing(leftovers(lake.project), lake.data))
    assert re.search(r"0\.0 MB +5 places +examples that newer ones", output)
    assert "lake/clean/orphan-2\n" in output and "orphan-3" not in output and output.endswith("… and 2 more")
    assert "lake/clean/orphan-4" in "\n".join(listing(leftovers(lake.project), lake.data, every=True))


def test_removing_changes_no_row(grown: tuple[Lake, set[Path], set[Path]]) -> None:
    lake, goes, stays = grown

    def tables() -> list[Any]:
        rows = comparison_rows(lake.resolved())
        return [
            rows,
            {name: table.to_pylist() for name, table in all_tables(lake.data, lake.project.experiments, rows).items()},
        ]

    before = tables()
    assert [why for _, why in remove(leftovers(lake.project)) if why] == []
    assert not any(path.exists() for path in goes) and all(path.exists() for path in stays)
    assert tables() == before
    assert leftovers(lake.project) == []


def test_the_command_removes_with_yes_alone(
    grown: tuple[Lake, set[Path], set[Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, goes, _ = grown
    monkeypatch.setattr(looking_after, "project_now", lambda: lake.project)
    assert cli.main(["prune"]) == 0
    output = capsys.readouterr().out
    assert "--yes removes them" in output and all(path.exists() for path in goes)
    (export,) = superseded_exports(lake.data)
    assert export.path.exists() and f"{export.path.relative_to(lake.data.root)}\n" in output.partition("they stay")[2]
    assert cli.main(["prune", "--yes"]) == 0
    assert not any(path.exists() for path in goes) and export.path.exists()


def test_a_half_written_file_stays_while_somebody_holds_its_cell(lake: Lake) -> None:
    killed = lake.trained("full", "killed", phase="train")
    partial = planted_file(killed.folder / ".curve.jsonl.4711.partial")
    with locked(killed.key.folder(lake.data) / "cell.lock", "train it again"):
        ((_, why),) = remove(leftovers(lake.project))
        assert why and "train it again" in why and partial.exists()
    assert [why for _, why in remove(leftovers(lake.project))] == [None] and not partial.exists()


def test_old_runs_go_with_their_events_but_the_newest_word_on_an_asset_stays(tmp_path: Path) -> None:
    @dg.asset
    def made() -> None: ...

    @dg.asset(output_required=False)
    def observed(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        context.log_event(dg.AssetObservation("observed"))
        yield from ()

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        first = dg.materialize([made], instance=instance).run_id
        second = dg.materialize([made], instance=instance).run_id
        assert old_runs(instance, days=1) == []
        # As if a day had passed: covers everything that ends within the next second.
        long_ago = -1 / 86400
        (run,) = old_runs(instance, days=long_ago)
        assert run.dagster_run.run_id == first
        forget(instance, run)
        assert not instance.has_run(first) and instance.has_run(second)
        failed = dg.materialize([observed], instance=instance).run_id
        assert failed not in [one.dagster_run.run_id for one in old_runs(instance, days=long_ago)], "all there is of it"
        event = instance.get_latest_materialization_event(dg.AssetKey("made"))
        assert event is not None and event.run_id == second
