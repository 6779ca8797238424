"""Cells in Dagster: which are partitions, which picked cells are run, and the result of each cell's
own check.

Partitioned checks are a preview of Dagster, and a backfill's content is read from names that are
not public. Both were tried on the version below.
"""

import ast
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_key import AssetCheckKey
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.execution.context.system import StepExecutionContext
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionResolvedStatus as Status
from dagster._core.storage.asset_check_state import AssetCheckState, bulk_update_asset_check_state
from dagster._core.storage.event_log import EventLogStorage

from assets.checks import CELL_IS_OK, EVALUATION_IS_OK, cell_is_ok, evaluation_is_ok
from assets.definitions import defs
from assets.instance import why_homeless
from assets.launchpad import NO_CAP, CellConfig, Spending, seen_by
from assets.partitions import CELLS
from assets.picked import NOTHING, is_of_everything, reason_not_run
from assets.project import partition_of
from assets.shown import shown_names, shown_profiles
from assets.tags import BACKFILL, SEEN
from pipelines.errors import UsageError
from pipelines.lake.paths import PROJECT
from pipelines.runs import cells
from pipelines.settings.experiments import load
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.project import MODEL, TinyProject

# The version of Dagster on which the calls below that are not public were tried.
TRIED_ON = "1.13.27"
TRAINED = dg.AssetKey("trained_model")
# Names that are private or undocumented.
PRIVATE = (
    (dg.DagsterInstance, "event_log_storage"),
    (EventLogStorage, "free_concurrency_slots_for_run"),
    (EventLogStorage, "set_concurrency_slots"),
    (dg.DagsterInstance, "get_backfill"),
    (PartitionBackfill, "asset_backfill_data"),
    (PartitionBackfill, "partition_names"),
    (AssetBackfillData, "target_subset"),
    (dg.AssetExecutionContext, "get_step_execution_context"),
    (StepExecutionContext, "fetch_external_input_asset_version_info"),
    (dg.AssetExecutionContext, "set_requires_typed_event_stream"),
    (dg.AssetExecutionContext, "op_execution_context"),
    (dg.DagsterInstance, "create_run_for_job"),
    (ReconstructableJob, "get_python_origin"),
    (DefaultRunLauncher, "_instance"),
    (DefaultRunLauncher, "supports_check_run_worker_health"),
    (DefaultRunLauncher, "check_run_worker_health"),
)
NUMBERS = itertools.count()
CELL_CHECK = AssetCheckKey(TRAINED, CELL_IS_OK)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    made = planted.lake(tmp_path)
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(tmp_path / "experiments.yaml"))
    return made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def test_the_version_is_the_one_that_private_calls_were_tried_on() -> None:
    assert dg.__version__ == TRIED_ON, "try what PRIVATE names on the new version, then name that version here"


def private_imports() -> set[tuple[str, str]]:
    """(file, name) of every import of assets/ from Dagster's private modules, at the top or within
    a function."""
    return {
        (path.name, alias.name)
        for path in (PROJECT / "assets").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and re.match(r"dagster\w*(\.\w+)*\._", node.module or "")
        for alias in node.names
    }


def private_attributes() -> set[tuple[str, str]]:
    """(file, name) of every attribute with an underscore that assets/ reads and no class of that
    file sets."""
    accesses = set()
    for path in (PROJECT / "assets").glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        used = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
        own = {node.attr for node in used if isinstance(node.ctx, ast.Store)}
        own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        accesses |= {(path.name, node.attr) for node in used if node.attr not in own}
    return accesses


def test_every_private_name_of_dagster_that_we_use_is_known_and_there() -> None:
    assert private_imports() == {
        ("launcher.py", "CheckRunHealthResult"),
        ("launcher.py", "DefaultRunLauncher"),
        ("launcher.py", "WorkerStatus"),
        ("location.py", "LoadableTargetOrigin"),
        ("location.py", "ManagedGrpcPythonEnvCodeLocationOrigin"),
        ("location.py", "RemoteJobOrigin"),
        ("location.py", "RemoteRepositoryOrigin"),
        ("location.py", "execute_run"),
        ("picked.py", "AssetCheckEvaluationTargetMaterializationData"),
    }
    assert private_attributes() == {("launcher.py", "_instance"), ("project.py", "_exit")}, "the latter is os's"
    text = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "assets").glob("*.py"))
    for owner, name in PRIVATE:
        assert hasattr(owner, name) and re.search(rf"\b{name}\b", text), f"{owner.__name__}.{name}"


def test_partitions_are_the_profiles_those_ever_run_and_those_that_were_added(project: TinyProject) -> None:
    experiments, data = project.now().experiments, project.data
    local = experiments.profile("local")
    in_order = [name for name in experiments.methods if name in local.methods]
    assert shown_names(experiments, data, shown_profiles(experiments)) == (local.models, in_order)
    for folder in ("gone/dora-r8/1", "no|name/full/1", "smollm2-360m/.hidden/1"):
        (data.cells / folder).mkdir(parents=True)
    (data.cells / "a-file").write_text("", encoding="utf-8")
    project.change(dagster={"models": ["gpt2-xl"], "methods": ["lora-r256"]})
    more = project.now().experiments
    models, methods = shown_names(more, data, shown_profiles(more))
    assert models == [name for name in more.models if name in {*local.models, "smollm2-360m", "gpt2-xl"}] + ["gone"]
    assert methods == [name for name in more.methods if name in {*local.methods, "dora-r8", "lora-r256"}]


def test_a_night_on_a_profile_of_its_own_has_its_cells_as_partitions() -> None:
    experiments = load()
    nights = experiments.model_copy(update={"nightly": experiments.nightly.model_copy(update={"profile": "gpu"})})
    models = [model for profile in shown_profiles(nights) for model in profile.models]
    assert models == [*experiments.profile("local").models, *experiments.profile("gpu").models]


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ({"owners": ["nobody"]}, "team:NAME"),
        ({"owners": ["team:"]}, "team:NAME"),
        ({"docs": "docs/"}, "dagster.docs"),
        ({"models": ["gpt5"]}, "gpt5"),
        ({"methods": ["lora-r"]}, "lora-r"),
        ({"owner": []}, "owner"),
    ],
)
def test_settings_of_the_pages_that_make_no_sense_are_refused(
    project: TinyProject, block: dict[str, Any], word: str
) -> None:
    project.change(dagster=block)
    with pytest.raises(UsageError, match=word):
        load(project.experiments)


def test_every_owner_that_the_settings_take_is_one_that_dagster_takes(project: TinyProject) -> None:
    owners = ["ada@example.org", "a.b+c@x-y.example", "team:research", "team:모델 팀"]
    project.change(dagster={"owners": owners})
    assert dg.AssetSpec("one", owners=load(project.experiments).dagster.owners).owners == owners


class Run:
    """The run of a step's context."""

    def __init__(self, instance: dg.DagsterInstance, method: str, *, model: str = MODEL, **tags: str) -> None:
        self.instance, self.partition_key, self.asset_key = instance, partition_of(model, method), TRAINED
        self.assets_def = defs.resolve_assets_def("trained_model")
        self.run = dg.DagsterRun("training", tags={f"dagster/{name}": value for name, value in tags.items()})


def backfilled(instance: dg.DagsterInstance, keys: list[str]) -> str:
    data = AssetBackfillData.from_asset_partitions(
        asset_graph=defs.resolve_asset_graph(),
        partition_names=keys,
        asset_selection=[TRAINED],
        dynamic_partitions_store=instance,
        backfill_start_timestamp=0.0,
        all_partitions=False,
    )
    name, status = f"of {len(keys)}, {next(NUMBERS)}", BulkActionStatus.REQUESTED
    made = PartitionBackfill(name, status, False, {}, 0.0, asset_selection=[TRAINED], asset_backfill_data=data)
    instance.add_backfill(made)
    return made.backfill_id


def test_what_somebody_picks_is_run_and_of_everything_only_what_the_profile_names(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    project.change(profiles={"local": {"methods": ["base", "full"]}})
    now, every = project.now(), list(map(str, CELLS.get_partition_keys()))
    picked = backfilled(instance, every[:2])
    for tags in ({}, {"backfill": picked}):
        run: Any = Run(instance, "lora-r8", **tags)
        assert not is_of_everything(run) and reason_not_run(run, now, False) is None
    everything: Any = Run(instance, "lora-r8", backfill=backfilled(instance, every))
    assert is_of_everything(everything) and reason_not_run(everything, now, True) is None
    why = reason_not_run(everything, now, False)
    assert why and f"does not name {MODEL} × lora-r8" in why and "outside_profile" in why
    of_the_profile: Any = Run(instance, "full", backfill=backfilled(instance, every))
    assert reason_not_run(of_the_profile, now, False) is None
    deleted: Any = Run(instance, "lora-r8", backfill="deleted")
    assert is_of_everything(deleted), "the selection is no longer known"


def test_a_name_that_is_gone_is_said_and_nothing_fails(project: TinyProject, instance: dg.DagsterInstance) -> None:
    gone: Any = Run(instance, "no-method", model="no-model")
    why = reason_not_run(gone, project.now(), True)
    assert why and "model 'no-model' and method 'no-method'" in why


def test_a_check_has_numbers_also_where_it_has_passed(lake: Lake) -> None:
    lake.cell("full")
    attempts = cells.attempts(lake.data, cells.CellKey("tiny", "full", 1))
    check = cell_is_ok(attempts)
    assert check.passed and check.metadata["status"].value == "ok" and check.metadata["seeds ok"].value == "1 of 1"
    assert str(check.metadata["peak memory"].value).endswith(" GB")
    measured = evaluation_is_ok([attempts[0].evaluations()[-1]])
    assert (
        measured.passed
        and measured.metadata["bits per byte"].value
        and "GB" in str(measured.metadata["peak memory of training"].value)
    )


def _state(instance: dg.DagsterInstance, key: AssetCheckKey = CELL_CHECK) -> dict[str, Status]:
    """The status of each partition's check, as in the UI's grid."""
    state = bulk_update_asset_check_state(instance, [(key, CELLS)], {key: AssetCheckState.empty()})[key]
    return {
        partition: status
        for status, subset in state.subsets.items()
        for partition in subset.subset_value.get_partition_keys()
    }


def _evaluated(method: str | None, passed: bool) -> dg.AssetCheckEvaluation:
    partition = str(partition_of(MODEL, method)) if method else None
    return dg.AssetCheckEvaluation(
        asset_key=TRAINED, check_name=CELL_IS_OK, passed=passed, metadata={}, partition=partition
    )


def test_a_cells_bad_end_is_not_hidden_by_anothers_good_one_nor_by_results_from_before(
    instance: dg.DagsterInstance,
) -> None:
    # None stands for a version without partitioned checks.
    for method, passed in (
        ("full", False),
        (None, True),
        ("lora-r8", True),
    ):
        instance.report_runless_asset_event(_evaluated(method, passed))
    assert _state(instance) == {
        str(partition_of(MODEL, "full")): Status.FAILED,
        str(partition_of(MODEL, "lora-r8")): Status.SUCCEEDED,
    }


def test_in_a_backfill_a_cell_without_result_is_materialized_as_nothing(
    project: TinyProject, instance: dg.DagsterInstance
) -> None:
    project.change(profiles={"local": {"methods": ["base"]}})
    keys = [TRAINED, dg.AssetKey("evaluation")]
    job, full = defs.resolve_implicit_global_asset_job_def(), partition_of(MODEL, "full")
    chosen: dict[str, Any] = {"instance": instance, "partition_key": full, "asset_selection": keys}
    assert job.execute_in_process(**chosen, tags={BACKFILL: "deleted"}).success
    for key, check in zip(keys, (CELL_IS_OK, EVALUATION_IS_OK), strict=True):
        (record,) = instance.fetch_materializations(key, limit=10).records
        assert record.partition_key == full and record.asset_materialization
        assert (record.asset_materialization.tags or {})["dagster/data_version"] == NOTHING
        assert "does not name" in str(record.asset_materialization.metadata["not run"].value)
        assert _state(instance, AssetCheckKey(key, check)) == {str(full): Status.FAILED}, (
            "a green check still shows its text"
        )


def cell_config(**config: Any) -> CellConfig:
    return CellConfig.model_validate(config)


def test_the_launchpad_offers_every_limit_and_nothing_that_a_night_sets() -> None:
    defaults = cell_config().model_dump()
    assert all(value is not None for value in defaults.values()), "Dagster leaves a null out of what it offers"
    assert defaults["max_examples"] == 0 and defaults["budget_usd"] == NO_CAP
    assert not {"night", "seen"} & {*CellConfig.model_fields, *Spending.model_fields}
    assert cell_config().cap_usd is None and cell_config(budget_usd=None).cap_usd is None
    assert cell_config(budget_usd=0.0).cap_usd == 0.0, "the budget is zero"
    for wrong in ({"budget_usd": -2.0}, {"max_examples": -1}):
        with pytest.raises(ValueError, match="expected"):
            cell_config(**wrong)


def test_what_a_night_has_seen_travels_as_a_tag() -> None:
    assert seen_by(dg.DagsterRun("training", tags={SEEN: json.dumps({"1": "r"}), BACKFILL: "b"})) == {"1": "r"}
    assert seen_by(dg.DagsterRun("training")) == {}


def test_an_instance_without_a_home_is_told_what_to_export(tmp_path: Path) -> None:
    temporary = tmp_path / ".tmp_dagster_home_x1"
    temporary.mkdir()
    with dg.DagsterInstance.local_temp(str(temporary)) as instance:
        assert "export DAGSTER_HOME=" in (why_homeless(instance) or "")
        tick = defs.resolve_sensor_def("lake_has_changed").evaluate_tick(
            dg.build_sensor_context(instance, repository_def=defs.get_repository_def(), sensor_name="lake_has_changed")
        )
        assert "export DAGSTER_HOME=" in (tick.skip_message or "") and not tick.run_requests
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert why_homeless(instance) is None
