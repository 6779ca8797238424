"""The comparison's rows from cells planted on disk: known values, NULLs with their reasons, and
staleness with its cause."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.compare import compare, lake_version, published_rows
from pipelines.compare.table import Row, comparison_rows, worst
from pipelines.errors import UsageError
from pipelines.lake import warehouse
from pipelines.lake.files import write_json
from pipelines.lake.paths import DataRoot
from pipelines.project import Project
from pipelines.runs.cells import all_attempts
from pipelines.runs.status import SEVERITY
from tests.fakes import planted
from tests.fakes.planted import Lake

CONTRACT = re.findall(
    r"\w+",
    """
    model method status phase status_detail is_stale stale_because seeds seeds_ok train_loss eval_loss eval_bits_per_byte
    eval_bits_per_byte_low eval_bits_per_byte_high eval_bits_per_byte_std base_bits_per_byte train_seconds speedup_vs_full
    tokens_per_second load_seconds quantize_seconds examples_to_target seconds_to_target train_usd learning_rate optimizer
    weights_dtype layers hidden_size truncated_share peak_memory_gb memory_vs_full estimated_memory_gb memory_budget_gb
    process_memory_mean_mb process_memory_std_mb process_memory_min_mb process_memory_max_mb gpu_allocated_peak_gb
    gpu_allocated_pct gpu_memory_access_pct trainable_params total_params artifact_mb bleu chrf rouge_l meteor
    judge_correctness judge_helpfulness answer_tokens p50_latency_ms is_pareto advice data_fingerprint recipe_fingerprint
    code_version device finished_at run_id
    """,
)
RATIOS = ("speedup_vs_full", "memory_vs_full")
UNMEASURED = [column.name for column in COMPARISON.columns if column.type in ("DOUBLE", "BIGINT")]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


@pytest.fixture
def full_grid(lake: Lake) -> Lake:
    """Every cell ok and evaluated: base 1.0 bits per byte, full 0.8 in 100 s and 4 GB, LoRA and
    QLoRA in half of each."""
    lake.cell("base", bits=1.0)
    lake.cell("full", bits=0.8, train_seconds=100.0, peak_memory_gb=4.0)
    lake.cell("lora-r8", bits=0.85, train_seconds=50.0, peak_memory_gb=2.0)
    lake.cell("qlora-r8", bits=0.9, train_seconds=200.0, peak_memory_gb=1.0)
    return lake


def rows(lake: Lake) -> dict[str, Row]:
    """The comparison's rows by method."""
    return {row["method"]: row for row in comparison_rows(lake.resolved())}


def stale(lake: Lake) -> dict[str, str | None]:
    """The cause of staleness of each stale method."""
    by_method = rows(lake)
    assert all(bool(r["is_stale"]) == (r["stale_because"] is not None) for r in by_method.values())
    return {method: r["stale_because"] for method, r in by_method.items() if r["is_stale"]}


# the contract


def test_every_column_of_the_contract_exists_and_comes_first_in_its_order() -> None:
    assert list(COMPARISON.by_name)[: len(CONTRACT)] == CONTRACT


def test_one_row_per_configured_cell_in_the_order_of_the_configuration(lake: Lake) -> None:
    lake.cell("qlora-r8")
    lake.cell("full")
    table = comparison_rows(lake.resolved())
    assert [r["method"] for r in table] == ["base", "full", "lora-r8", "qlora-r8"]
    assert all(list(r) == list(COMPARISON.by_name) for r in table)


def test_before_anything_is_cleaned_it_says_what_to_do(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="featherweight clean"):
        comparison_rows(Project(DataRoot(tmp_path / "empty"), lake.project.experiments, "local").resolve())


# statuses


def test_a_cell_never_run_is_missing_and_has_no_numbers(full_grid: Lake) -> None:
    more = full_grid.configured(
        methods={"lora-r64": {"kind": "lora", "rank": 64}}, profiles={"local": {"methods": ["full", "lora-r64"]}}
    )
    missing = rows(more)["lora-r64"]
    assert (missing["status"], missing["seeds"], missing["seeds_ok"], missing["run_id"]) == ("missing", 1, 0, None)
    assert [name for name in UNMEASURED if missing[name] is not None] == []
    assert "featherweight train tiny lora-r64" in missing["advice"]


def test_an_out_of_memory_row_says_what_fits_and_the_others_keep_their_ratios(lake: Lake) -> None:
    for method, gigabytes in (("full", 2.9), ("qlora-r8", 2.1)):
        lake.cell(method, budget=3.0, peak_memory_gb=gigabytes, train_seconds=60.0)
    lake.trained("lora-r8", "out_of_memory", phase="train", detail="tried 1 GB", budget=3.0, peak_memory_gb=3.05)
    by_method = rows(lake)
    dead = by_method["lora-r8"]
    assert (dead["status"], dead["phase"], dead["status_detail"]) == ("out_of_memory", "train", "tried 1 GB")
    assert (dead["peak_memory_gb"], dead["memory_budget_gb"], dead["eval_bits_per_byte"]) == (3.05, 3.0, None)
    assert dead["advice"].startswith("it had 3.05 GB of 3 GB when it failed: qlora-r8 needs 2.10 GB")
    assert [dead[name] for name in (*RATIOS, "is_pareto")] == [None, None, None]
    assert by_method["qlora-r8"]["memory_vs_full"] == pytest.approx(2.1 / 2.9)
    assert by_method["qlora-r8"]["speedup_vs_full"] == 1.0


def test_out_of_memory_advice_names_no_cell_of_another_budget(lake: Lake) -> None:
    lake.cell("qlora-r8", peak_memory_gb=2.1)
    lake.trained("full", "out_of_memory", phase="train", budget=3.0, peak_memory_gb=3.05)
    assert "qlora-r8 needs" not in rows(lake)["full"]["advice"]


def test_running_and_lost_cells_are_told_apart(lake: Lake) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    lake.started("full")
    lake.started("lora-r8", pid=gone.pid)
    lake.killed_at_start("qlora-r8")
    by_method = rows(lake)
    assert [by_method[method]["status"] for method in ("full", "lora-r8", "qlora-r8")] == ["running", "lost", "lost"]


def test_a_lost_row_says_what_train_would_do(lake: Lake) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    attempt = lake.started("lora-r8", pid=gone.pid)
    assert "the next run starts it again" in rows(lake)["lora-r8"]["status_detail"]
    write_json(attempt.folder / "checkpoints" / "step-00000040" / "state.json", {})
    row = rows(lake)["lora-r8"]
    assert row["status_detail"].endswith("ended without a word; the next run goes on after step 40")
    assert row["advice"].endswith("the next run goes on after step 40")
    changed = rows(lake.configured(methods={"lora-r8": {"dropout": 0.3}}))["lora-r8"]
    assert changed["status_detail"].endswith("the next run starts it again, since it has changed: recipe")
    assert changed["advice"].endswith("since it has changed: recipe")


def test_the_newest_attempt_counts_not_the_best(lake: Lake) -> None:
    lake.cell("full", bits=0.5)
    newest = lake.trained("full", "diverged", phase="train", detail="loss nan")
    row = rows(lake)["full"]
    assert (row["status"], row["run_id"], row["eval_bits_per_byte"]) == ("diverged", newest.run_id, None)


def test_a_trained_cell_without_evaluation_is_ok_stale_and_says_so(lake: Lake) -> None:
    lake.trained("full")
    row = rows(lake)["full"]
    assert (row["status"], row["eval_bits_per_byte"], row["stale_because"]) == ("ok", None, "evaluation")
    assert "not evaluated" in row["advice"]


def test_an_evaluation_that_ended_badly_is_the_rows_status(lake: Lake) -> None:
    lake.evaluated(lake.trained("full"), "out_of_memory", detail="tried 9 GB")
    row = rows(lake)["full"]
    assert (row["status"], row["phase"], row["status_detail"]) == ("out_of_memory", "evaluate", "tried 9 GB")
    assert row["eval_bits_per_byte"] is None


def test_a_failed_repetition_does_not_hide_a_good_current_evaluation(lake: Lake) -> None:
    attempt = lake.cell("full", bits=0.7)
    lake.evaluated(attempt, "killed")
    row = rows(lake)["full"]
    assert (row["status"], row["eval_bits_per_byte"], row["is_stale"]) == ("ok", 0.7, False)


def test_advice_says_of_the_next_run_what_the_detail_says(lake: Lake) -> None:
    for outlook in ("the next run goes on after step 28", "the next run starts it again"):
        lake.trained("full", "killed", detail=f"ended by SIGKILL from outside; {outlook}")
        assert rows(lake)["full"]["advice"] == f"it did not come to its end: {outlook}"


@pytest.mark.parametrize("status", SEVERITY)
def test_every_status_gets_its_advice(lake: Lake, status: Any) -> None:
    if status != "missing":
        lake.trained("full", status, phase="train", detail="what happened")
    assert (row := rows(lake)["full"])["status"] == status
    assert row["advice"]


def test_a_worse_status_wins() -> None:
    assert worst(["ok", "killed", "missing"]) == "killed"
    assert worst(["ok", "missing"]) == "missing"
    assert worst(["ok", "ok"]) == "ok"


# ratios


def test_ratios_are_taken_against_full(full_grid: Lake) -> None:
    by_method = rows(full_grid)
    ratios = {method: (r["speedup_vs_full"], r["memory_vs_full"]) for method, r in by_method.items()}
    assert ratios == {"base": (None, None), "full": (1.0, 1.0), "lora-r8": (2.0, 0.5), "qlora-r8": (0.5, 0.25)}
    assert {r["ratios_because"] for r in by_method.values()} == {None}
    assert [by_method[m]["delta_full"] for m in by_method] == [None, None, pytest.approx(0.05), pytest.approx(0.1)]
    assert by_method["lora-r8"]["delta_full_low"] > 0
    advice = by_method["lora-r8"]["advice"]
    assert (
        "0.050 above full (both trained at one shared learning rate for each kind of method), with 50 % of its memory"
        in advice
    )
    assert advice.endswith(" and 2.00 times its speed")


@pytest.mark.parametrize(
    ("status", "because"), [("missing", "full is missing"), ("killed", "full is killed"), ("failed", "full is failed")]
)
def test_without_full_there_is_no_ratio_and_a_reason(lake: Lake, status: Any, because: str) -> None:
    lake.cell("lora-r8")
    if status != "missing":
        lake.trained("full", status)
    lora = rows(lake)["lora-r8"]
    assert [lora[name] for name in RATIOS] == [None, None]
    assert lora["ratios_because"] == because


def test_a_profile_without_full_has_no_ratio_and_a_reason(full_grid: Lake) -> None:
    lora = rows(full_grid.configured(profiles={"local": {"methods": ["lora-r8"]}}))["lora-r8"]
    assert (lora["memory_vs_full"], lora["ratios_because"]) == (None, "the profile has no method full")


def test_rows_of_two_data_versions_have_no_ratio_and_a_reason(full_grid: Lake) -> None:
    full_grid.examples(train=("a", "b", "c", "new"))
    full_grid.cell("lora-r8")
    by_method = rows(full_grid)
    assert by_method["lora-r8"]["delta_full"] is None
    assert by_method["lora-r8"]["delta_base"] == pytest.approx(-0.1), "the untouched model has no training data"
    assert [by_method["lora-r8"][name] for name in RATIOS] == [None, None]
    assert by_method["lora-r8"]["ratios_because"] == "full was measured with other data"
    # Both cells are of the older data.
    assert by_method["qlora-r8"]["memory_vs_full"] == 0.25


@pytest.mark.parametrize(
    ("other", "because"),
    [
        ({"eval_set": "another"}, "evaluation records"),
        ({"device": "NVIDIA T4"}, "device"),
        ({"budget": 3.0}, "memory budget"),
    ],
)
def test_rows_measured_otherwise_have_no_ratio_and_a_reason(full_grid: Lake, other: Row, because: str) -> None:
    full_grid.cell("lora-r8", **other)
    lora = rows(full_grid)["lora-r8"]
    assert [lora[name] for name in RATIOS] == [None, None]
    assert lora["ratios_because"] == f"full was measured with other {because}"


def test_with_other_micro_batches_quality_alone_is_compared_with_full(full_grid: Lake) -> None:
    full_grid.cell("full", bits=0.8, train_seconds=100.0, peak_memory_gb=2.0, micro_batch_tokens=512)
    by_method = rows(full_grid)
    assert [by_method[method]["micro_batch_tokens"] for method in ("base", "full", "lora-r8")] == [None, 512, 2048]
    lora = by_method["lora-r8"]
    assert [lora[name] for name in RATIOS] == [None, None]
    assert lora["ratios_because"] == "full was measured with other micro_batch_tokens"
    assert lora["delta_full"] == pytest.approx(0.05)
    assert lora["advice"].endswith(
        "0.050 above full (both trained at one shared learning rate for each kind of method)"
    )


def test_of_several_seeds_the_smallest_micro_batches_are_the_rows(lake: Lake) -> None:
    both = lake.configured(profiles={"local": {"seeds": [1, 2]}})
    both.cell("full", seed=1, micro_batch_tokens=2048)
    both.cell("full", seed=2, micro_batch_tokens=1024)
    assert rows(both)["full"]["micro_batch_tokens"] == 1024


def test_a_number_that_was_not_measured_gives_no_ratio(lake: Lake) -> None:
    lake.cell("full", train_seconds=None)
    lake.cell("lora-r8", peak_memory_gb=None)
    lora = rows(lake)["lora-r8"]
    assert [lora[name] for name in RATIOS] == [None, None]


def test_dollars_only_where_a_price_is_known(full_grid: Lake) -> None:
    assert rows(full_grid)["full"]["train_usd"] is None
    priced = full_grid.configured(profiles={"local": {"price_per_hour": 36.0}})
    by_method = rows(priced)
    # The cell loaded for one second.
    assert (by_method["full"]["train_usd"], by_method["base"]["train_usd"]) == (
        pytest.approx(1.01),
        None,
    )


def test_dollars_are_those_of_the_whole_cell(lake: Lake) -> None:
    parts: Any = {"quantize_seconds": 2.0, "probe_seconds": 4.0, "search_seconds": 8.0, "other_seconds": 16.0}
    lake.cell("full", train_seconds=100.0, load_seconds=1.0, **parts, seed=1)
    # Older code measured nothing else.
    lake.cell("full", train_seconds=200.0, load_seconds=1.0, seed=2)
    priced = lake.configured(profiles={"local": {"price_per_hour": 36.0, "seeds": [1, 2]}})
    (row,) = (row for row in comparison_rows(priced.resolved()) if row["method"] == "full")
    assert row["train_usd"] == pytest.approx((131 + 201) / 2 / 100)
    assert (row["train_seconds"], row["other_seconds"]) == (150.0, 16.0)


# the untouched model


def test_the_untouched_model_is_compared_on_the_same_records(full_grid: Lake) -> None:
    by_method = rows(full_grid)
    assert {r["base_bits_per_byte"] for r in by_method.values()} == {1.0}
    assert "20.0 % fewer bits per byte" in by_method["full"]["advice"]


def test_the_untouched_model_on_other_records_is_not_compared(full_grid: Lake) -> None:
    full_grid.cell("lora-r8", eval_set="three-records")
    by_method = rows(full_grid)
    assert (by_method["lora-r8"]["base_bits_per_byte"], by_method["full"]["base_bits_per_byte"]) == (None, 1.0)
    assert "not measured on the same records" in by_method["lora-r8"]["advice"]


def test_a_row_not_evaluated_has_no_untouched_model_to_compare(lake: Lake) -> None:
    lake.trained("base", phase="load")
    lake.trained("full")
    assert rows(lake)["full"]["base_bits_per_byte"] is None


def test_tuning_that_did_not_help_is_said(lake: Lake) -> None:
    lake.cell("base", bits=0.8)
    lake.cell("full", bits=0.9)
    lake.cell("lora-r8", bits=0.801, noise=0.1)
    by_method = rows(lake)
    assert "did not help" in by_method["full"]["advice"]
    verdict = "not told apart from the untouched model (0.801 and 0.800 bits per byte on 12 records)"
    assert by_method["lora-r8"]["advice"].startswith(verdict)


# staleness


def test_nothing_is_stale_when_nothing_changed(full_grid: Lake) -> None:
    assert stale(full_grid) == {}


def test_a_changed_recipe_makes_its_own_row_stale_by_that_alone(full_grid: Lake) -> None:
    assert stale(full_grid.configured(methods={"lora-r8": {"rank": 16}})) == {"lora-r8": "recipe"}


def test_new_training_data_makes_every_trained_row_stale_by_that_alone(full_grid: Lake) -> None:
    full_grid.examples(train=("a", "b", "c", "new"))
    assert stale(full_grid) == {"full": "data", "lora-r8": "data", "qlora-r8": "data"}


def test_new_evaluation_records_make_every_row_stale_by_that_alone(full_grid: Lake) -> None:
    full_grid.examples(held_out=("y", "z", "new"))
    assert stale(full_grid) == dict.fromkeys(["base", "full", "lora-r8", "qlora-r8"], "evaluation")


def test_changed_evaluation_settings_make_every_row_stale_by_that_alone(full_grid: Lake) -> None:
    changed = full_grid.configured(profiles={"local": {"evaluation": {"max_new_tokens": 9}}})
    assert set(stale(changed).values()) == {"evaluation"}


@pytest.mark.parametrize("name", ["code", "machine"])
def test_other_code_or_another_machine_is_named(lake: Lake, name: str) -> None:
    lake.cell("full", prints={name: "another"})
    assert stale(lake) == {"full": name}


def test_several_changes_are_all_named(full_grid: Lake) -> None:
    full_grid.examples(train=("a", "new"), held_out=("z",))
    changed = full_grid.configured(methods={"full": {"epochs": 2}})
    assert stale(changed)["full"] == "data, recipe, evaluation"


def test_what_does_not_change_a_result_makes_nothing_stale(full_grid: Lake) -> None:
    training = {"time_limit_minutes": 5, "eval_every_steps": 3, "memory_budget_gb": 64}
    assert stale(full_grid.configured(training=training)) == {}


def test_a_second_evaluation_with_what_is_asked_now_makes_it_current(full_grid: Lake) -> None:
    full_grid.examples(held_out=("y", "z", "new"))
    (attempt,) = [a for a in all_attempts(full_grid.data) if a.key.method == "full"]
    full_grid.evaluated(attempt, eval_bits_per_byte=0.75)
    assert set(stale(full_grid)) == {"base", "lora-r8", "qlora-r8"}
    assert rows(full_grid)["full"]["eval_bits_per_byte"] == 0.75


def test_one_stale_seed_makes_its_row_stale(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path, profiles={"local": {"seeds": [1, 2]}})
    lake.cell("full", seed=1)
    changed = lake.configured(methods={"full": {"epochs": 2}})
    changed.cell("full", seed=2)
    assert stale(changed) == {"full": "recipe"}


# several seeds


@pytest.fixture
def two_seeds(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path, profiles={"local": {"seeds": [1, 2]}})


def test_two_seeds_give_mean_spread_and_the_latest_run(two_seeds: Lake) -> None:
    two_seeds.cell("full", bits=0.9, seed=2, train_seconds=30.0)
    newest = two_seeds.cell("full", bits=0.7, seed=1, train_seconds=10.0)
    row = rows(two_seeds)["full"]
    assert (row["status"], row["seeds"], row["seeds_ok"]) == ("ok", 2, 2)
    assert row["run_id"] == newest.run_id
    assert row["eval_bits_per_byte"] == pytest.approx(0.8)
    assert row["eval_bits_per_byte_std"] == pytest.approx(0.1414213562)
    assert row["eval_bits_per_byte_low"] < 0.7 < 0.9 < row["eval_bits_per_byte_high"], "records and seeds are resampled"
    assert row["train_seconds"] == pytest.approx(20.0)
    assert (row["weights_dtype"], row["eval_set"]) == ("float32", "two-records")


def test_one_bad_seed_is_the_rows_status_and_the_other_gives_the_numbers(two_seeds: Lake) -> None:
    two_seeds.trained("full", "killed", seed=1, phase="train", detail="SIGKILL", train_loss=9.0)
    newest = two_seeds.cell("full", bits=0.9, seed=2, train_loss=1.0)
    row = rows(two_seeds)["full"]
    assert (row["status"], row["phase"], row["status_detail"]) == ("killed", "train", "SIGKILL")
    assert (row["seeds"], row["seeds_ok"], row["run_id"]) == (2, 1, newest.run_id)
    assert (row["train_loss"], row["eval_bits_per_byte"]) == (1.0, 0.9)
    assert row["eval_bits_per_byte_std"] is None


def test_a_seed_never_run_makes_the_row_missing(two_seeds: Lake) -> None:
    two_seeds.cell("full", seed=1)
    row = rows(two_seeds)["full"]
    assert (row["status"], row["seeds"], row["seeds_ok"]) == ("missing", 2, 1)


def test_one_seed_has_no_spread(full_grid: Lake) -> None:
    assert rows(full_grid)["full"]["eval_bits_per_byte_std"] is None


def test_pareto_of_a_whole_lake(full_grid: Lake) -> None:
    pareto = {method: r["is_pareto"] for method, r in rows(full_grid).items()}
    assert pareto == {"base": None, "full": True, "lora-r8": True, "qlora-r8": True}
    full_grid.cell("qlora-r8", bits=0.9, train_seconds=200.0, peak_memory_gb=2.5)
    assert rows(full_grid)["qlora-r8"]["is_pareto"] is False


# publication


def test_what_is_published_is_what_was_computed(full_grid: Lake) -> None:
    full_grid.trained("lora-r8", "killed", phase="train", detail="SIGKILL")
    publication = compare(full_grid.project)
    published = published_rows(full_grid.data)
    finished = [str(r.pop("finished_at").timestamp()) for r in published]
    assert len(finished) == len(published) == 4
    assert published == [{k: v for k, v in r.items() if k != "finished_at"} for r in publication.rows]
    assert publication.warehouse.exists()
    assert publication.report.exists()


def test_every_attempt_and_its_curve_and_answers_stay_in_the_tables(lake: Lake) -> None:
    points = [{"step": n, "steps": 2, "examples": n * 4, "train_loss": None if n == 0 else 1.0 / n} for n in range(3)]
    for status in ("killed", "ok"):
        attempt = lake.trained("full", status, curve=[{**point, "eval_loss": None} for point in points])
    lake.evaluated(attempt, answers=[planted.answer("y", answer="줄\u2028바꿈"), planted.answer("z")])
    compare(lake.project)
    with warehouse.connect(lake.data) as db:
        runs = db.execute("SELECT status, last_step FROM training_runs ORDER BY run_id").fetchall()
        curve = db.execute("SELECT count(*), count(train_loss), count(DISTINCT run_id) FROM training_curve").fetchone()
        answers = db.execute("SELECT answer FROM evaluation_answers ORDER BY example_id").fetchall()
        examples = db.execute("SELECT count(*) FROM sft_examples").fetchone()
    assert runs == [("killed", 2), ("ok", 2)]
    assert curve == (6, 4, 2)
    assert answers == [("줄\u2028바꿈",), ("Hi",)]
    assert examples == (5,)


def test_the_lakes_version_changes_with_every_new_result_only(lake: Lake) -> None:
    versions = [lake_version(lake.data)]
    attempt = lake.trained("full")
    versions.append(lake_version(lake.data))
    lake.evaluated(attempt)
    versions.append(lake_version(lake.data))
    assert len(set(versions)) == 3
    assert lake_version(lake.data) == versions[-1]


def test_comparing_imports_nothing_heavy(full_grid: Lake) -> None:
    code = (
        "import sys; from pipelines.cli import main; code = main(['compare']); "
        "print(code, [name for name in ('torch', 'transformers', 'dagster') if name in sys.modules])"
    )
    env = {
        **os.environ, "FEATHERWEIGHT_DATA": str(full_grid.data.root), "FEATHERWEIGHT_PROFILE": "local",
        "FEATHERWEIGHT_EXPERIMENTS": str(full_grid.data.root / "experiments.yaml"), "COLUMNS": "300",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stderr
    assert re.search(r"lora-r8 +ok +0\.8500 +1\.0000", done.stdout)
