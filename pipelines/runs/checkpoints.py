"""Checkpoints: folders `checkpoints/step-<n>/` of an attempt, renamed once complete."""

from pathlib import Path

FOLDER, STATE, TENSORS, CURVE = "checkpoints", "state.json", "tensors.safetensors", "curve.jsonl"
# In a checkpoint: the weights of the best step, which early stopping keeps.
BEST = "best.safetensors"
# The trials of a search for the learning rate; each is written as soon as it ends.
SEARCH = "search.jsonl"
# The weights that every trial of a search starts from.
START = ".start.partial"


def whole(attempt: Path) -> list[Path]:
    """The complete checkpoints in an attempt's folder, oldest first."""
    return sorted(path for path in (attempt / FOLDER).glob("step-*") if (path / STATE).exists())


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def searched(attempt: Path) -> bool:
    """Whether the attempt's search for a learning rate finished a trial."""
    file = attempt / SEARCH
    return file.exists() and file.stat().st_size > 0
