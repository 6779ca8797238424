"""Which cells of those that somebody picked are run, and how a backfill of them ends.

A cell outside the profile is run where somebody picked it, and passed over where everything was picked. Dagster calls a backfill
failed when one of its partitions was not materialized, also where every run has succeeded; so in a backfill a cell that is passed
over, or that did not end ok, is materialized with the reason for its only content.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from assets.project import cell_of
from assets.tags import BACKFILL
from pipelines.project import Project

NOTHING = "nothing"  # the data version of a partition that holds no result


def reason_not_run(context: dg.AssetExecutionContext, project: Project, outside_profile: bool) -> str | None:
    """Why this step passes over its partition, a cell or a model; None where it runs it."""
    key = context.partition_key
    model, method = cell_of(key) if isinstance(key, dg.MultiPartitionKey) else (key, None)
    name = model if method is None else f"{model} × {method}"
    if why := unknown(project, model, method):
        return why
    profile = project.settings
    named = model in profile.models and (method is None or method in profile.methods)
    if named or outside_profile or not is_of_everything(context):
        return None
    return (
        f"profile {project.profile} does not name {name}, and everything was chosen: choose this partition, or fewer than all, "
        "or set outside_profile"
    )


def unknown(project: Project, model: str, method: str | None) -> str | None:
    """Which of the two names experiments.yaml does not hold; None where it holds both."""
    gone = [
        f"{kind} {name!r}"
        for kind, name, known in (
            ("model", model, project.experiments.models),
            ("method", method, project.experiments.methods),
        )
        if name is not None and name not in known
    ]
    return f"experiments.yaml no longer names {' and '.join(gone)}: put it back to run this again" if gone else None


def is_of_everything(context: dg.AssetExecutionContext) -> bool:
    """Whether the run belongs to a backfill of every partition of this asset; of a backfill that is gone nobody knows."""
    backfill_id = context.run.tags.get(BACKFILL)
    if backfill_id is None:
        return False
    chosen = _chosen(context, backfill_id)
    every = context.assets_def.partitions_def.get_partition_keys() if context.assets_def.partitions_def else []
    return chosen is None or len(chosen) >= len(every)


def _chosen(context: dg.AssetExecutionContext, backfill_id: str) -> Sequence[str] | None:
    """The partitions of this asset that the backfill holds. These are no public names of Dagster."""
    backfill = context.instance.get_backfill(backfill_id)
    if backfill is None:
        return None
    if backfill.asset_backfill_data is None:  # of a job
        return backfill.partition_names
    target = backfill.asset_backfill_data.target_subset
    return list(target.get_partitions_subset(context.asset_key).get_partition_keys())


def is_requested(context: dg.AssetExecutionContext, asset: str) -> bool:
    """Whether the run belongs to a backfill and is to make `asset`."""
    return BACKFILL in context.run.tags and dg.AssetKey(asset) in (context.run.asset_selection or ())


def record_no_result(context: dg.AssetExecutionContext, asset: str, metadata: Mapping[str, Any]) -> None:
    """In a backfill that asks for it, materialize this partition of `asset` with what became of it."""
    if is_requested(context, asset):
        context.log_event(
            dg.AssetMaterialization(
                asset,
                partition=context.partition_key,
                description="No result: recorded so that the backfill can end.",
                metadata=dict(metadata),
                tags={"dagster/data_version": NOTHING, "dagster/data_version_is_user_provided": "true"},
            )
        )


def record_skipped(context: dg.AssetExecutionContext, asset: str, check: str, why: str) -> None:
    """The same for an asset whose own step is skipped and says nothing; its check has not passed, and says why."""
    if not is_requested(context, asset):
        return
    record_no_result(context, asset, {"not run": why})
    records_filter = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[context.partition_key])
    (record,) = context.instance.fetch_materializations(records_filter, limit=1).records
    target = AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id=context.run.run_id, timestamp=record.timestamp
    )
    # Any: log_event takes checks, too, but its annotation does not say so
    event: Any = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=check,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"not run": dg.MetadataValue.text(why)},
        target_materialization_data=target,
        partition=context.partition_key,
    )
    context.log_event(event)
