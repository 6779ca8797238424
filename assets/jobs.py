"""What can be started as a whole, every night, and by itself."""

import dagster as dg

from assets.cleaning import sft_examples
from assets.comparing import comparison
from assets.generating import corpus_records, generated_records, local_records
from assets.project import grid, partition_of, stage_now
from assets.providers import provider_comparison
from assets.training import evaluation, trained_model
from pipelines import experiments as configuration
from pipelines.compare.compare import lake_version

data = dg.define_asset_job(
    "data",
    selection=dg.AssetSelection.assets(
        corpus_records, local_records, generated_records, sft_examples, provider_comparison
    ),
    description="Make and clean the examples. What is current is reused.",
)
training = dg.define_asset_job(
    "training",
    selection=dg.AssetSelection.assets(trained_model, evaluation),
    description="Train and evaluate the chosen cells (method × model). What is current is reused.",
)
everything = dg.define_asset_job(
    "everything",
    selection=dg.AssetSelection.all(),
    description="Data, the chosen cells, and the comparison. What is current is reused.",
)
publish = dg.define_asset_job(
    "publish",
    selection=dg.AssetSelection.assets(comparison),
    description="Rebuild the comparison from the lake: seconds, no training.",
)


@dg.schedule(
    job=everything,
    cron_schedule=grid().nightly.cron,
    execution_timezone=grid().nightly.timezone,
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def nightly(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    """One run per cell of the nightly profile. A run reuses whatever is current, so an unchanged night trains nothing."""
    experiments = configuration.load()
    name = configuration.profile_name(experiments, experiments.nightly.profile)
    profile = experiments.profile(name)
    night = context.scheduled_execution_time.date().isoformat()
    return [
        dg.RunRequest(run_key=f"{night}/{model}/{method}", partition_key=partition_of(model, method))
        for model in profile.models
        for method in profile.methods
    ]


@dg.sensor(job=publish, minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def lake_has_changed(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Publishes the comparison whenever the lake holds something new: a cell ended, also badly, or examples changed."""
    stage = stage_now()
    version = lake_version(stage.data)
    if context.cursor == version:
        return dg.SkipReason("nothing new in the lake")
    if not (stage.data.clean / "current.json").exists():
        return dg.SkipReason("nothing was cleaned yet")
    context.update_cursor(version)
    return dg.RunRequest(run_key=version)
