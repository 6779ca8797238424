"""Where the trials of a learning-rate search are stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.lake.files import stable_hash
from pipelines.project import Resolved
from pipelines.runs.cells import CellKey

# The lock file in a study's folder.
LOCK = "tune.lock"
# Settings of the recipe that a search decides or ignores.
SEARCHED = ("learning_rate", "learning_rate_default", "search_share", "search_cap")


def study_folder(resolved: Resolved, key: CellKey) -> Path:
    """The folder of the cell's trials, named by a hash of all their inputs except the learning
    rate."""
    plan = resolved.plan(key)
    prints = {**plan.fingerprints, "recipe": stable_hash(without_rate(plan.recipe))}
    return resolved.data.lake / "tune" / key.model / key.method / stable_hash([prints, key.seed])


def without_rate(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the settings that a search decides or ignores."""
    return {name: value for name, value in recipe.items() if name not in SEARCHED}
