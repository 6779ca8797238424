"""Where the trials of a search over learning rates lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.lake.files import stable_hash
from pipelines.project import Resolved
from pipelines.runs.cells import CellKey

LOCK = "tune.lock"  # of a study's folder
# settings of the recipe that a search decides or does without
SEARCHED = ("learning_rate", "learning_rate_default", "search_share", "search_cap")


def study_folder(resolved: Resolved, key: CellKey) -> Path:
    """Where the trials of the cell lie, by all that decides them but the learning rate."""
    plan = resolved.plan(key)
    prints = {**plan.fingerprints, "recipe": stable_hash(without_rate(plan.recipe))}
    return resolved.data.lake / "tune" / key.model / key.method / stable_hash([prints, key.seed])


def without_rate(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe but for what a search decides."""
    return {name: value for name, value in recipe.items() if name not in SEARCHED}
