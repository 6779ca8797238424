"""Who is told when something went wrong: a webhook, where FEATHERWEIGHT_WEBHOOK_URL names one."""

import dagster as dg

from pipelines.lake.paths import data_root
from pipelines.nightly import alert, news


@dg.run_failure_sensor(
    # switched on by itself where somebody is to be told: its ticks cost something on an idle machine, too
    default_status=dg.DefaultSensorStatus.RUNNING if alert.is_configured() else dg.DefaultSensorStatus.STOPPED,
    minimum_interval_seconds=60,
    description=f"Posts every failed run to the webhook that {alert.WEBHOOK} names; off while there is none.",
)
def failure_alert(context: dg.RunFailureSensorContext) -> None:
    """Posts every failed run to the configured webhook. A cell that is out of memory is no failed run; the night tells of it."""
    partition = context.partition_key
    what = f"{context.dagster_run.job_name}{f' ({partition})' if partition else ''}"
    text = f"featherweight: run {context.dagster_run.run_id[:8]} of {what} failed: {context.failure_event.message}"
    if problem := news.tell(data_root(), text):
        context.log.warning(f"{problem}; the news is kept and sent when the webhook is back")
