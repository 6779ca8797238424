"""The graph in Dagster: its definitions, its reuse of current results, and outcomes as data instead
of failures."""

import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.events import DagsterEventType, EngineEventData
from pydantic import ValidationError

from assets import alerts
from assets.cleaning import sft_examples
from assets.comparing import comparison
from assets.definitions import defs
from assets.generating import corpus_records, generated_records, local_records
from assets.inputs import cell_inputs
from assets.instance import OWNER, SHIPPED_BEFORE, end_orphaned_runs, owner_tags, prepare_home
from assets.jobs import training
from assets.launcher import WatchedRunLauncher
from assets.project import partition_of
from assets.providers import provider_comparison
from assets.training import evaluation, trained_model
from pipelines.compare.compare import published_rows
from pipelines.lake.paths import PROJECT
from pipelines.nightly.alert import WEBHOOK
from pipelines.runs import cells
from pipelines.settings.experiments import load
from pipelines.settings.nightly import Nightly
from tests.project import MODEL, TinyProject

DATA = [corpus_records, local_records, generated_records, sft_examples, provider_comparison]
CELL = [cell_inputs, trained_model, evaluation]


@pytest.fixture
def instance(project: TinyProject) -> Iterator[dg.DagsterInstance]:
    home = project.data.root / "dagster"
    home.mkdir(parents=True)
    with dg.DagsterInstance.local_temp(str(home)) as made:
        yield made


def make_data(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return dg.materialize(DATA, instance=instance)


def make_cell(instance: dg.DagsterInstance, method: str, model: str = MODEL) -> dg.ExecuteInProcessResult:
    return dg.materialize([*DATA, *CELL], selection=CELL, instance=instance, partition_key=partition_of(model, method))


def publish(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return dg.materialize([*DATA, *CELL, comparison], selection=[comparison], instance=instance)


def test_every_asset_says_what_it_makes_and_belongs_to_its_stage() -> None:
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    groups = {name: spec.group_name for name, spec in specs.items()}
    assert groups == {
        "corpus_records": "generate", "local_records": "generate", "generated_records": "generate", "sft_examples": "clean",
        "cell_inputs": "train", "trained_model": "train", "evaluation_inputs": "evaluate", "base_evaluation": "evaluate",
        "evaluation": "evaluate",
        "judged_answers": "evaluate",
        "provider_comparison": "compare", "comparison": "compare", "nights": "compare",
    }  # fmt: skip
    for name, spec in specs.items():
        assert spec.description and len(spec.description) > 40, name
        assert spec.kinds, name


def test_jobs_schedule_and_partitions_are_those_of_the_configuration() -> None:
    shipped = load(PROJECT / "experiments.yaml")
    assert {"data", "training", "everything"} <= {job.name for job in defs.resolve_all_job_defs()}
    schedule = defs.resolve_schedule_def("nightly")
    assert (schedule.cron_schedule, schedule.execution_timezone) == (shipped.nightly.cron, shipped.nightly.timezone)
    partitions = defs.resolve_asset_graph().get(dg.AssetKey("trained_model")).partitions_def
    # Only a subset is compared: the checkout's own lake may hold more partitions.
    local = shipped.profile("local")
    expected = {str(partition_of(model, method)) for model in local.models for method in local.methods}
    assert partitions is not None and expected <= set(map(str, partitions.get_partition_keys()))


def test_training_evaluation_and_the_local_server_share_one_place() -> None:
    graph = defs.resolve_asset_graph()
    pools = [graph.get(dg.AssetKey(name)).pools for name in ("local_records", "trained_model", "evaluation")]
    assert pools[0] == pools[1] == pools[2] and len(pools[0] or []) == 1
    # These assets ask APIs beside the training.
    for name in ("generated_records", "provider_comparison", "judged_answers"):
        assert not graph.get(dg.AssetKey(name)).pools, name


def test_loading_the_code_location_imports_no_heavy_library() -> None:
    heavy = ["torch", "transformers", "peft", "bitsandbytes", "datasets", "xllamacpp", "matplotlib"]
    program = f"import assets.definitions, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_definitions_validate_with_and_without_dagster_home(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    command = [str(Path(sys.executable).parent / "dagster"), "definitions", "validate", "-w", "workspace.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_schedule_and_sensors_are_on_by_default_and_the_alert_where_somebody_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = defs.get_repository_def()
    assert repository.get_schedule_def("nightly").default_status == dg.DefaultScheduleStatus.RUNNING
    on = dict.fromkeys(["night_goes_on", "lake_has_changed", "inputs_have_changed"], "RUNNING")
    assert {one.name: one.default_status.value for one in repository.sensor_defs} == {**on, "failure_alert": "STOPPED"}
    assert min(one.minimum_interval_seconds or 0 for one in repository.sensor_defs) >= 60, (
        "every tick costs time in an idle UI"
    )
    monkeypatch.setenv(WEBHOOK, "http://127.0.0.1:9/x")
    sensor = importlib.reload(alerts).failure_alert
    monkeypatch.undo()
    importlib.reload(alerts)
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING


@pytest.mark.slow
def test_the_untouched_model_is_a_dependency_and_no_other_cells_step_trains_it(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    make_data(instance)
    graph = defs.resolve_asset_graph()
    assert dg.AssetKey("base_evaluation") in graph.get(dg.AssetKey("evaluation")).parent_keys
    assert make_cell(instance, "lora-r8").success
    assert not cells.attempts(project.data, project.key("base")), "no run requested it"
    base = defs.resolve_job_def("base").execute_in_process(instance=instance, partition_key=MODEL)
    assert base.success and base.asset_materializations_for_node("base_evaluation")
    (attempt,) = cells.attempts(project.data, project.key("base"))
    assert attempt.evaluations()[-1].ok
    assert make_cell(instance, "base").success
    assert len(cells.attempts(project.data, project.key("base"))) == 1, "the cell is the same"


@pytest.mark.slow
def test_the_chain_fills_the_table_and_a_second_call_reuses_it(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    assert make_data(instance).success
    for method in ("base", "full", "lora-r8", "qlora-r8"):
        assert make_cell(instance, method).success
    published = publish(instance)
    metadata = published.asset_materializations_for_node("comparison")[0].metadata
    assert "data:image/png;base64," in str(metadata["loss curves"].value)
    assert "lora-r8" in str(metadata["comparison"].value)

    rows = {row["method"]: row for row in published_rows(project.data)}
    assert [rows[m]["status"] for m in ("base", "full", "lora-r8", "lora-r128", "qlora-r8")] == ["ok"] * 3 + [
        "missing",
        "ok",
    ]
    for method in ("full", "lora-r8", "qlora-r8"):
        row = rows[method]
        assert row["base_bits_per_byte"] == rows["base"]["eval_bits_per_byte"]
        for name in (
            "train_loss",
            "eval_loss",
            "tokens_per_second",
            "peak_memory_gb",
            "process_memory_mean_mb",
            "chrf",
        ):
            assert row[name] is not None and row[name] >= 0, (method, name)
    assert rows["full"]["trainable_params"] == rows["full"]["total_params"]
    assert rows["lora-r8"]["trainable_params"] < rows["full"]["trainable_params"]
    assert rows["lora-r128"]["eval_loss"] is None

    before = cells.attempts(project.data, project.key("lora-r8"))
    again = make_cell(instance, "lora-r8")
    assert cells.attempts(project.data, project.key("lora-r8")) == before
    assert again.asset_materializations_for_node("trained_model")[0].metadata["reused"].value is True
    assert not [event.step_key for event in again.all_events if event.is_step_failure]

    project.change(profiles={"local": {"training": {"learning_rate": 0.002}}})
    publish(instance)
    rows = {row["method"]: row for row in published_rows(project.data)}
    assert (rows["lora-r8"]["is_stale"], rows["lora-r8"]["stale_because"]) == (True, "recipe")
    assert rows["base"]["is_stale"] is False
    make_cell(instance, "lora-r8")
    assert len(cells.attempts(project.data, project.key("lora-r8"))) == len(before) + 1


def test_out_of_memory_is_a_row_and_a_warning_and_its_evaluation_is_skipped(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    make_data(instance)
    project.change(models={MODEL: {"overrides": {"lora-r8": {"memory_budget_gb": 0.2}}}})
    result = make_cell(instance, "lora-r8")
    assert result.success
    assert not result.asset_materializations_for_node("trained_model")
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "evaluation" in {event.step_key for event in result.all_events if event.is_step_skipped}
    (check,) = publish(instance).get_asset_check_evaluations()
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    # Markdown escapes are removed.
    listed = str(check.metadata["cells"].value).replace("\\", "")
    assert "lora-r8" in listed and "out_of_memory" in listed and "qlora-r8" in listed and "missing" in listed
    row = next(row for row in published_rows(project.data) if row["method"] == "lora-r8")
    assert row["status"] == "out_of_memory" and row["phase"] == "load" and row["memory_budget_gb"] == 0.2
    assert row["eval_bits_per_byte"] is None and row["advice"]


def test_a_model_that_cannot_be_fetched_is_unavailable_with_what_to_do(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    make_data(instance)
    project.out_of_reach()
    result = make_cell(instance, "full")
    assert result.success
    (attempt,) = cells.attempts(project.data, project.key("full"))
    assert attempt.status == "unavailable"
    assert "openai-community/gpt2-large" in attempt.result.detail


def test_hostile_text_in_metadata_is_text(project: TinyProject, instance: dg.DagsterInstance) -> None:
    hostile = "<script>alert(1)</script> ![x](http://evil) | </td> \x1b[31m"
    corpus = [
        {
            "instruction": f"Question number {i}? {hostile}",
            "input": "",
            "output": f"Answer {i} {i * 7919} is long enough {hostile}",
        }
        for i in range(40)
    ]
    (project.data.root).mkdir(parents=True, exist_ok=True)
    (project.data.root / "corpus.json").write_text(json.dumps(corpus), encoding="utf-8")
    result = dg.materialize([corpus_records], instance=instance)
    shown = str(result.asset_materializations_for_node("corpus_records")[0].metadata["first records"].value)
    assert "<script>" not in shown and "![x]" not in shown and "\x1b" not in shown


@pytest.mark.parametrize(("pid", "expected"), [(None, "RUNNING"), (2**22 + 1, "FAILED"), (1, "FAILED")])
def test_a_run_whose_process_is_gone_is_noticed(instance: dg.DagsterInstance, pid: int | None, expected: str) -> None:
    """A process with that id which started long before the run, such as 1, is another one: the
    machine was rebooted."""
    run = instance.create_run_for_job(defs.resolve_job_def("data"))
    # Without a pid, the event's process and time are those of this one.
    moment = time.time() if pid else psutil.Process().create_time()
    pid = pid or os.getpid()
    event = dg.DagsterEvent(
        DagsterEventType.ENGINE_EVENT.value,
        run.job_name,
        message=f"Started process for run (pid: {pid}).",
        event_specific_data=EngineEventData.in_process(pid),
    )
    entry = dg.EventLogEntry(None, "debug", "", run.run_id, moment, job_name=run.job_name, dagster_event=event)
    instance.handle_new_event(entry)
    launcher = WatchedRunLauncher()
    launcher.register_instance(instance)
    assert launcher.check_run_worker_health(run).status.value == expected


def test_the_settings_of_the_instance_are_valid_and_watch_its_runs(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_launcher, WatchedRunLauncher)
        assert instance.run_monitoring_enabled and instance.run_launcher.supports_check_run_worker_health
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_settings_that_nobody_edited_are_brought_up_to_date(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dagster.yaml").write_text("nux: {enabled: false}\n", encoding="utf-8")
    # The file is as an earlier version shipped it.
    monkeypatch.setattr("assets.instance.PROJECT", tmp_path)
    prepare_home()
    assert (home / "dagster.yaml").read_text() == "nux: {enabled: false}\n" and capsys.readouterr().err == ""
    monkeypatch.setattr("assets.instance.PROJECT", PROJECT)
    for message in (f"{home / 'dagster.yaml'}: updated, since nobody had edited it\n", ""):
        prepare_home()
        assert (home / "dagster.yaml").read_bytes() == (PROJECT / "dagster.yaml").read_bytes()
        assert capsys.readouterr().err == message


def test_settings_that_somebody_edited_stay_and_what_they_lack_is_said(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = yaml.safe_load((PROJECT / "dagster.yaml").read_text(encoding="utf-8"))
    edited = {**ours, "concurrency": {"runs": {"max_concurrent_runs": 9}}}
    del edited["run_launcher"]
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(edited), encoding="utf-8")
    prepare_home()
    headline, lines = capsys.readouterr().err.split("\n", 1)
    assert headline.startswith(f"{home / 'dagster.yaml'} was edited and stays as it is")
    assert yaml.safe_load(lines) == {
        "run_launcher": ours["run_launcher"],
        "concurrency": {"pools": ours["concurrency"]["pools"]},
    }, "its own limit of runs is kept"
    assert yaml.safe_load((home / "dagster.yaml").read_text(encoding="utf-8")) == edited


def test_what_was_shipped_before_is_known_as_ours() -> None:
    """Homes of earlier versions have no record of the written file; those versions are in the
    project's history."""
    assert len(set(SHIPPED_BEFORE)) == len(SHIPPED_BEFORE)
    assert hashlib.sha256((PROJECT / "dagster.yaml").read_bytes()).hexdigest() not in SHIPPED_BEFORE


def test_a_run_whose_process_is_gone_gives_its_place_back(instance: dg.DagsterInstance) -> None:
    job = defs.resolve_job_def("data")
    gone = {OWNER: "1@12.0"}
    dead = instance.create_run_for_job(job, tags=gone)
    alive = instance.create_run_for_job(job, tags=owner_tags())
    for run in (dead, alive):
        instance.report_run_canceling(run)
    assert end_orphaned_runs(instance) == 1
    statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses[dead.run_id] == dg.DagsterRunStatus.FAILURE
    assert statuses[alive.run_id] == dg.DagsterRunStatus.CANCELING


def test_every_schedule_that_experiments_yaml_may_name_is_one_that_dagster_loads() -> None:
    """Otherwise the check passes and the code location does not load."""
    items = [
        "*",
        "*",
        "0",
        "2",
        "12",
        "29",
        "31",
        "59",
        "sun",
        "fri-mon",
        "feb",
        "jan-mar",
        "00",
        "٣",
        "1-5/2",
        "*/15",
        "7",
        "3/4",
    ]
    chance, accepted = random.Random(17), 0
    for _ in range(1500):
        cron = " ".join(chance.choice(items) if chance.random() < 0.4 else "*" for _ in range(5))
        with suppress(ValidationError):
            accepted += dg.ScheduleDefinition(job=training, cron_schedule=Nightly(cron=cron).cron) is not None
    assert accepted > 100
