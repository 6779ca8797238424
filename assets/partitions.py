"""Cells and models as partitions.

Separate from assets/project.py, because importing this module fails for an invalid configuration.
"""

import dagster as dg

from assets.shown import grid, shown_names, shown_profiles
from pipelines.lake.paths import data_root

# The names at the time when the code location loaded. A reload updates them; `make ui` triggers it.
MODEL_NAMES, METHOD_NAMES = shown_names(grid(), data_root(), shown_profiles(grid()))
# A cell is one model trained by one method.
CELLS = dg.MultiPartitionsDefinition(
    {"method": dg.StaticPartitionsDefinition(METHOD_NAMES), "model": dg.StaticPartitionsDefinition(MODEL_NAMES)}
)
MODELS = dg.StaticPartitionsDefinition(MODEL_NAMES)


def shown_cells() -> list[tuple[str, str]]:
    """Every partition, as (model, method)."""
    return [(model, method) for model in MODEL_NAMES for method in METHOD_NAMES]
