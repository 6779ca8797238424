"""Backfills in a real UI with a real daemon.

Each picked cell is run or says why not, and no cell makes a backfill fail.
"""

from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.definitions.asset_key import AssetCheckKey

from assets.checks import CELL_IS_OK, EVALUATION_IS_OK
from assets.picked import NOTHING
from pipelines.runs import cells
from tests.project import MODEL, TinyProject
from tests.running_ui import graphql_answer, running_ui, until

BACKFILL = """
mutation Backfill($assets: [AssetKeyInput!]!, $cells: [String!]!) {
  launchPartitionBackfill(backfillParams: {assetSelection: $assets, partitionNames: $cells}) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
CELL = ("cell_inputs", "trained_model", "evaluation")


@pytest.fixture
def ui(project: TinyProject) -> Iterator[str]:
    """`make ui` on cleaned data: `base` fits, `full` does not, and `lora-r8` was added by hand
    outside every profile."""
    project.change(
        profiles={"local": {"methods": ["base", "full"]}},
        models={MODEL: {"overrides": {"full": {"memory_budget_gb": 0.2}}}},
        dagster={"methods": ["lora-r8"]},
    )
    with running_ui() as address:
        yield address


def backfilled(address: str, *methods: str) -> str:
    """The final status of a backfill of these methods' cells."""
    chosen = [f"{method}|{MODEL}" for method in methods]
    launched = graphql_answer(address, BACKFILL, assets=[{"path": [name]} for name in CELL], cells=chosen)
    made = launched["data"]["launchPartitionBackfill"].get("backfillId")
    assert made, launched
    with dg.DagsterInstance.get() as instance:

        def status() -> str:
            backfill = instance.get_backfill(made)
            assert backfill is not None
            return backfill.status.value

        until(lambda: status() not in ("REQUESTED", "FAILING"), "the backfill")
        runs = instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": made}))
        assert len(runs) == len(methods) and all(run.is_success for run in runs)
        return status()


def checks(name: str, asset: str) -> dict[str, tuple[bool, str]]:
    """Each partition's newest result, with its words."""
    key, results = AssetCheckKey(dg.AssetKey(asset), name), {}
    with dg.DagsterInstance.get() as instance:
        for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=100):
            event = record.event.dagster_event if record.event else None
            evaluation = event.event_specific_data if event else None
            if record.partition and isinstance(evaluation, dg.AssetCheckEvaluation):
                text = " ".join(f"{label} {value.value}" for label, value in evaluation.metadata.items())
                results.setdefault(record.partition.split("|")[0], (evaluation.passed, text))
    return results


@pytest.mark.slow
def test_everything_and_picks_end_green_and_every_cell_says_what_became_of_it(project: TinyProject, ui: str) -> None:
    assert backfilled(ui, "base", "full", "lora-r8") == "COMPLETED_SUCCESS"
    trained = checks(CELL_IS_OK, "trained_model")
    assert {method: passed for method, (passed, _) in trained.items()} == {
        "base": True,
        "full": False,
        "lora-r8": False,
    }
    assert "seeds ok 1 of 1" in trained["base"][1] and "out_of_memory" in trained["full"][1]
    assert f"profile local does not name {MODEL} × lora-r8" in trained["lora-r8"][1]
    evaluated = checks(EVALUATION_IS_OK, "evaluation")
    assert "bits per byte" in evaluated["base"][1]
    assert not evaluated["full"][0] and "the cell is out_of_memory" in evaluated["full"][1]
    assert not evaluated["lora-r8"][0] and "does not name" in evaluated["lora-r8"][1]
    assert cells.latest(project.data, project.key("lora-r8")) is None
    with dg.DagsterInstance.get() as instance:
        for asset in ("trained_model", "evaluation"):
            records_filter = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[f"full|{MODEL}"])
            (record,) = instance.fetch_materializations(records_filter, limit=1).records
            made = record.asset_materialization
            assert made and (made.tags or {})["dagster/data_version"] == NOTHING
            assert "out_of_memory" in str([value.value for value in made.metadata.values()])

    assert backfilled(ui, "full", "lora-r8") == "COMPLETED_SUCCESS"
    attempt = cells.latest(project.data, project.key("lora-r8"))
    assert attempt and attempt.status == "ok" and attempt.evaluations()[-1].ok, "picked, so it is run"
    assert checks(CELL_IS_OK, "trained_model")["lora-r8"][0] and checks(EVALUATION_IS_OK, "evaluation")["lora-r8"][0]
