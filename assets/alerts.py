"""Alerts on failed runs, sent to the webhook in FEATHERWEIGHT_WEBHOOK_URL."""

import dagster as dg

from pipelines.lake.paths import data_root
from pipelines.nightly import alert, news


@dg.run_failure_sensor(
    # Runs by default only with a webhook, since its ticks cost time even on an idle machine.
    default_status=dg.DefaultSensorStatus.RUNNING if alert.is_configured() else dg.DefaultSensorStatus.STOPPED,
    minimum_interval_seconds=60,
    description=f"Posts every failed run to the webhook in {alert.WEBHOOK}; off without one.",
)
def failure_alert(context: dg.RunFailureSensorContext) -> None:
    """Post every failed run to the configured webhook.

    A cell that runs out of memory is not a failed run; the night's summary reports it.
    """
    partition = context.partition_key
    what = f"{context.dagster_run.job_name}{f' ({partition})' if partition else ''}"
    text = f"featherweight: run {context.dagster_run.run_id[:8]} of {what} failed: {context.failure_event.message}"
    if problem := news.tell(data_root(), text):
        context.log.warning(f"{problem}; the message is kept and sent when the webhook is back")
