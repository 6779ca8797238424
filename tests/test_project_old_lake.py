"""An upgrade costs nobody a grid: a data root of older code opens, shows and publishes as before.

`tests/fakes/plant_lake.py` says what lies in the archive. Newer code may call a result stale, and
may say things in other words. It must not lose a row, change a status or a measured number, or ask
again for an answer that the journal holds.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipelines import cli
from pipelines.cli.working import project_now
from pipelines.compare import compare as comparing
from pipelines.evaluate.cell import evaluate
from pipelines.lake.paths import DataRoot
from pipelines.nightly.due import due_cells
from pipelines.nightly.night import begin
from pipelines.runs import cells, checkpoints, restart
from pipelines.runs.cells import CellKey
from pipelines.runs.run import RunHooks
from tests.in_process import InProcess

ARCHIVE = Path(__file__).parent / "fakes" / "lake-2026-11.tar.xz"
TABLES = (
    "comparison", "training_runs", "training_curve", "evaluation_answers", "evaluation_records", "serving",
    "quantized_inference", "picks", "history", "sft_examples", "sft_rejects", "cleaning_summary", "llm_calls",
    "provider_comparison", "provider_duels",
)  # fmt: skip
# Only today's code decides whether the code has changed since.
OF_TODAY = ("is_stale", "stale_because")
# Sentences written by the publication: each must still exist, in any words.
SENTENCES = ("advice", "judge_because", "left_out", "model_note", "note", "ratios_because", "reason", "worse")
# No decision uses a speed that was measured beside other programs; the old code used it.
OF_SPEED = ("speedup_vs_full", "is_pareto", "ratios_because")
# Today's rules decide which row is picked, if any.
OF_RULES = {"picks": ["pick"]}
# The old code resampled two training runs; today t gives their variation.
INTERVALS = ("eval_bits_per_byte", "delta_base", "delta_full")
STATUSES = {
    "base": "ok", "full": "ok", "lora-r8": "ok", "qlora-r8": "ok", "lora-r8-searched": "ok", "lora-r4": "killed",
    "full-small-card": "out_of_memory", "full-hurried": "timed_out", "full-hot": "diverged", "lora-r8-mine": "unavailable",
    "lora-r16": "missing", "teacher": "ok",
}  # fmt: skip

Row = dict[str, Any]


@contextmanager
def unpacked(folder: Path) -> Iterator[DataRoot]:
    """The archive's data root in `folder`, as the one that every command works on."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    data = DataRoot(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATHERWEIGHT_DATA", str(data.root))
        patch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(folder / "experiments.yaml"))
        patch.setenv("FEATHERWEIGHT_PROFILE", "local")
        patch.setenv("HF_HUB_OFFLINE", "1")
        # experiments.yaml names the user's file relative to the current folder.
        patch.chdir(folder)
        # The lake holds predictions of memory for one processor, which newer code would make
        # again.
        patch.setattr(comparing, "keep_predictions", lambda _stage: None)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield data


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataRoot]:
    with unpacked(tmp_path_factory.mktemp("old-lake")) as data:
        yield data


@pytest.fixture(scope="module")
def publications(lake: DataRoot) -> tuple[Path, Path]:
    """The old publication, and the one that today's code makes of the same lake."""
    old = lake.warehouse.resolve()
    assert cli.main(["compare"]) == 0
    return old, lake.warehouse.resolve()


def rows_of(warehouse: Path, table: str) -> list[Row]:
    with duckdb.connect(str(warehouse), read_only=True) as db:
        cursor = db.execute(f'SELECT * FROM "{table}"')
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def in_order(rows: list[Row], names: list[str]) -> list[Row]:
    return sorted(rows, key=lambda row: [str(row[name]) for name in names])


def naming(rows: list[Row]) -> list[str]:
    """The columns that say which row it is: nothing measured, and nothing of today's wording."""
    names = sorted(set(rows[0]) - {*OF_TODAY, *SENTENCES})
    return [name for name in names if not any(isinstance(row[name], float) for row in rows)]


def differences(old: Row, new: Row) -> Row:
    """What of the old row is not so any more: name → (old, new). A new column is nobody's loss."""
    return {name: (value, new[name]) for name, value in old.items() if not _alike(name, value, new[name], old)}


# complexity: one case for each column that newer code writes differently
def _alike(name: str, old: Any, new: Any, row: Row) -> bool:
    said_now = name in SENTENCES or (name == "status_detail" and row.get("finished_at") is None)
    if name in OF_TODAY:
        return True
    if name in OF_SPEED and row.get("speed_disturbed"):
        return new is None or name == "ratios_because"
    # The journal always held this value; its row shows it since.
    if name == "p50_latency_ms" and row.get("method") == "teacher":
        return old is None and new > 0
    if said_now or old is None or new is None:
        return (old is None) == (new is None)
    # The interval of six ties was a point then, and has a width now.
    if name in ("win_rate_low", "win_rate_high"):
        return new < old if name == "win_rate_low" else new > old
    measured, _, end = name.rpartition("_")
    if measured in INTERVALS and end in ("low", "high") and row.get("seeds_ok") != 1:
        return new <= row[measured] if end == "low" else new >= row[measured]
    # `train_usd` covered only the steps then, and covers the whole cell now.
    if name == "train_usd":
        return new > old
    return new == (pytest.approx(old, rel=1e-9) if isinstance(old, float) else old)


def test_the_old_publication_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with unpacked(tmp_path) as data, duckdb.connect(str(data.warehouse), read_only=True) as db:
        assert db.execute("SELECT count(*) FROM duckdb_tables()").fetchone() == (len(TABLES),)
        published = db.execute("SELECT method, status, eval_bits_per_byte, run_id FROM comparison").fetchall()
        assert cli.main(["table", "--format", "json"]) == 0
        shown = json.loads(capsys.readouterr().out)
    names = ("method", "status", "eval_bits_per_byte", "run_id")
    assert [tuple(row[name] for name in names) for row in shown] == published
    assert {row["method"]: row["status"] for row in shown} == STATUSES


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_published_again(table: str, publications: tuple[Path, Path]) -> None:
    old, new = (rows_of(warehouse, table) for warehouse in publications)
    assert old, "the archive has some in every table"
    assert set(old[0]) <= set(new[0]), "no column is renamed or removed"
    assert len(new) == len(old)
    if names := OF_RULES.get(table):
        old, new = ([{name: row[name] for name in names} for row in rows] for rows in (old, new))
    pairs = zip(in_order(old, naming(old)), in_order(new, naming(old)), strict=True)
    assert [difference for one, other in pairs if (difference := differences(one, other))] == []


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("table", "lora-r8-searched"),
        ("table --format markdown", "| tiny | full | ok |"),
        ("table --format csv", "tiny,qlora-r8,ok"),
        ("decide --max-loss 0.02", "tiny × "),
        ("prune", "in all; --yes removes them"),
        ("generate --estimate", "answers held already"),
        ("fetch tiny", "already in"),
        ("doctor", "weights are here"),
    ],
)
def test_commands_that_only_look_find_what_they_look_for(
    command: str, shown: str, publications: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command.split()) in (0, 3)
    assert shown in capsys.readouterr().out


def test_no_answer_that_is_held_is_asked_for_again(
    publications: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [row for row in rows_of(publications[0], "llm_calls") if row["purpose"] == "generate"]
    assert {row["status"] for row in calls} == {"answered", "failed", "in_doubt", "in_flight"}
    assert cli.main(["generate", "--estimate"]) == 0
    held = dict(re.findall(r"^(\w+) \(.*?(\d+) answers held", capsys.readouterr().out, re.MULTILINE))
    for provider in ("claude", "gpt"):
        assert int(held[provider]) == sum((row["provider"], row["status"]) == (provider, "answered") for row in calls)


def test_an_interrupted_attempt_keeps_what_it_can_be_gone_on_from(lake: DataRoot) -> None:
    tries = cells.attempts(lake, CellKey("tiny", "lora-r4", 1))
    assert [attempt.status for attempt in tries] == ["ok", "killed"]
    checkpoint = restart.resumable(tries, tries[-1].spec.fingerprints, lake.root)
    assert checkpoint is not None and checkpoint["run_id"] == tries[-1].run_id
    assert checkpoints.whole(tries[-1].folder) == [lake.root / checkpoint["checkpoint"]]
    assert "goes on after step 4" in tries[-1].result.detail


def test_a_kill_without_a_word_is_lost_and_was_gone_on_from(lake: DataRoot) -> None:
    lost, finished = cells.attempts(lake, CellKey("tiny", "lora-r8", 1))
    assert (lost.status, finished.status) == ("lost", "ok")
    assert (finished.spec.resume or {})["run_id"] == lost.run_id


def test_a_night_remembers_what_it_did_and_the_next_one_knows_what_is_due(lake: DataRoot) -> None:
    record = begin(lake, "2026-11-29T0200")
    assert record["ended_at"] and len(record["rounds"]) == 2
    assert record["outcome"]["tiny × full-hot"] == ["diverged", "diverged"]
    assert {"lora-r4", "lora-r16"} <= {cell.method for cell in due_cells(project_now().resolve())}


def test_its_good_rows_are_stale_by_code_alone(publications: tuple[Path, Path]) -> None:
    """An upgrade that made them stale for another reason would have the night make them all again.
    The machine may be another."""
    rows = [
        row for row in rows_of(publications[1], "comparison") if row["status"] == "ok" and row["is_stale"] is not None
    ]
    because = {name for row in rows for name in (row["stale_because"] or "").split(", ")}
    assert len(rows) > 4 and because - {"", "machine"} == {"code"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora-r8", "qlora-r8"])
def test_weights_that_were_saved_then_still_measure_the_same(method: str, tmp_path: Path) -> None:
    with unpacked(tmp_path) as data:
        (attempt,) = cells.attempts(data, CellKey("tiny", method, 2))
        before = attempt.evaluations()[-1].result.measured
        hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
        again, _ = evaluate(project_now().resolve(), attempt.key, force=True, hooks=hooks)
        assert again.ok, again.result.status_detail
        for name in ("eval_bits_per_byte", "general_bits_per_byte"):
            assert again.result.measured[name] == pytest.approx(before[name], rel=1e-4)
