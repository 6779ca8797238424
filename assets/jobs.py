"""Jobs."""

import dagster as dg

from assets.cleaning import sft_examples
from assets.comparing import comparison
from assets.generating import corpus_records, generated_records, local_records
from assets.inputs import cell_inputs
from assets.judging import judged_answers
from assets.providers import provider_comparison
from assets.training import base_evaluation, evaluation, trained_model

data = dg.define_asset_job(
    "data",
    selection=dg.AssetSelection.assets(
        corpus_records, local_records, generated_records, sft_examples, provider_comparison
    ),
    description="Make and clean the examples. Current results are reused.",
)
training = dg.define_asset_job(
    "training",
    selection=dg.AssetSelection.assets(cell_inputs, trained_model, evaluation),
    description="Train and evaluate the chosen cells (method × model). Current results are reused.",
)
base = dg.define_asset_job(
    "base",
    selection=dg.AssetSelection.assets(base_evaluation),
    description="Evaluate the chosen models untouched, as the baseline of their trained cells. Current results are reused.",
)
everything = dg.define_asset_job(
    "everything",
    # base_evaluation has partitions by model, not by cell.
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets(base_evaluation),
    description="Data, the chosen cells, and the comparison. Current results are reused.",
)
publish = dg.define_asset_job(
    "publish",
    selection=dg.AssetSelection.assets(judged_answers, comparison),
    description="Judge new answers, if a judge is configured, and rebuild the comparison from the lake; no training.",
)
