"""The code location: all of Dagster's definitions. Importing it does not load torch."""

import dagster as dg

from assets.alerts import failure_alert
from assets.cleaning import (
    enough_examples,
    every_record_is_accounted_for,
    language_mix,
    reject_share_per_source,
    sft_examples,
    train_and_eval_do_not_overlap,
)
from assets.comparing import comparison, every_cell_and_attempt_is_published, no_cell_got_worse
from assets.described import described
from assets.generating import corpus_records, generated_records, local_records
from assets.inputs import cell_inputs, evaluation_inputs
from assets.jobs import base, data, everything, publish, training
from assets.judging import judged_answers
from assets.nightly import inputs_have_changed, lake_has_changed, night_goes_on, nightly
from assets.nights import nights
from assets.providers import provider_comparison
from assets.training import base_evaluation, evaluation, trained_model

# What the fork server imports once for the processes of all steps. Each of them would import it
# anew: Dagster's storage with SQLAlchemy and Alembic, and what Arrow reads a table by.
PRELOADED = (
    "assets.definitions",
    "dagster._core.storage.event_log",
    "dagster._core.storage.runs",
    "dagster._core.storage.schedules",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._utils.test",
    "pandas",
    "pyarrow.dataset",
    "upath",
)

defs = dg.Definitions(
    assets=dg.map_asset_specs(
        described,
        [
            corpus_records,
            local_records,
            generated_records,
            sft_examples,
            provider_comparison,
            cell_inputs,
            trained_model,
            evaluation_inputs,
            base_evaluation,
            evaluation,
            judged_answers,
            comparison,
            nights,
        ],
    ),
    asset_checks=[
        every_record_is_accounted_for,
        train_and_eval_do_not_overlap,
        enough_examples,
        reject_share_per_source,
        language_mix,
        no_cell_got_worse,
        every_cell_and_attempt_is_published,
    ],
    jobs=[data, base, training, everything, publish],
    schedules=[nightly],
    sensors=[night_goes_on, lake_has_changed, inputs_have_changed, failure_alert],
    executor=dg.multiprocess_executor.configured(
        {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": list(PRELOADED)}}}
    ),
)
