"""Which of the chosen cells run, and how a backfill of them ends.

A cell outside the profile runs if it was chosen explicitly, and is skipped if everything was
chosen. Dagster marks a backfill as failed if a partition was not materialized, even if every run
succeeded. In a backfill, a cell that is skipped or does not end ok is therefore materialized with
only the reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from assets.project import cell_of
from assets.tags import BACKFILL
from pipelines.project import Project

# The data version of a partition without a result.
NOTHING = "nothing"


def reason_not_run(context: dg.AssetExecutionContext, project: Project, outside_profile: bool) -> str | None:
    """Why this step skips its partition, a cell or a model; None if it runs."""
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
    """A message on the names that experiments.yaml lacks; None if it has both."""
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
    """Whether the run belongs to a backfill of every partition of this asset; True if the backfill
    is gone."""
    backfill_id = context.run.tags.get(BACKFILL)
    if backfill_id is None:
        return False
    chosen = _chosen(context, backfill_id)
    every = context.assets_def.partitions_def.get_partition_keys() if context.assets_def.partitions_def else []
    return chosen is None or len(chosen) >= len(every)


def _chosen(context: dg.AssetExecutionContext, backfill_id: str) -> Sequence[str] | None:
    """The partitions of this asset in the backfill. This uses private names of Dagster."""
    backfill = context.instance.get_backfill(backfill_id)
    if backfill is None:
        return None
    # Only the backfill of a job has no asset data.
    if backfill.asset_backfill_data is None:
        return backfill.partition_names
    target = backfill.asset_backfill_data.target_subset
    return list(target.get_partitions_subset(context.asset_key).get_partition_keys())


def is_requested(context: dg.AssetExecutionContext, asset: str) -> bool:
    """Whether the run belongs to a backfill that includes `asset`."""
    return BACKFILL in context.run.tags and dg.AssetKey(asset) in (context.run.asset_selection or ())


def record_no_result(context: dg.AssetExecutionContext, asset: str, metadata: Mapping[str, Any]) -> None:
    """In a backfill that includes `asset`, materialize this partition with the reason in
    `metadata`."""
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
    """Do the same for an asset whose step is skipped, and record a failed check with the reason."""
    if not is_requested(context, asset):
        return
    record_no_result(context, asset, {"not run": why})
    records_filter = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[context.partition_key])
    (record,) = context.instance.fetch_materializations(records_filter, limit=1).records
    target = AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id=context.run.run_id, timestamp=record.timestamp
    )
    # Any, because the annotation of log_event omits checks.
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
