"""Cells and models as partitions.

Beside assets/project.py, since a configuration that makes no sense is an error here as soon as this is imported.
"""

import dagster as dg

from assets.shown import grid, shown_names, shown_profiles
from pipelines.lake.paths import data_root

# As they were when the code location loaded; a reload brings what has come since (`make ui` asks for one by itself)
MODEL_NAMES, METHOD_NAMES = shown_names(grid(), data_root(), shown_profiles(grid()))
# A cell is one model trained by one method
CELLS = dg.MultiPartitionsDefinition(
    {"method": dg.StaticPartitionsDefinition(METHOD_NAMES), "model": dg.StaticPartitionsDefinition(MODEL_NAMES)}
)
MODELS = dg.StaticPartitionsDefinition(MODEL_NAMES)


def shown_cells() -> list[tuple[str, str]]:
    """Every partition, as (model, method)."""
    return [(model, method) for model in MODEL_NAMES for method in METHOD_NAMES]
