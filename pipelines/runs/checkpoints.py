"""Checkpoints on disk: the folder `checkpoints/step-<n>/` of an attempt, written under another name and renamed."""

from pathlib import Path

FOLDER, STATE, TENSORS, CURVE = "checkpoints", "state.json", "tensors.safetensors", "curve.jsonl"
BEST = "best.safetensors"  # in a checkpoint: the best step's weights, where early stopping keeps them
SEARCH = "search.jsonl"  # its trials, each as soon as it has ended
START = ".start.partial"  # weights that a search for the learning rate goes back to


def whole(attempt: Path) -> list[Path]:
    """The whole checkpoints of an attempt's folder, oldest first."""
    return sorted(path for path in (attempt / FOLDER).glob("step-*") if (path / STATE).exists())


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def searched(attempt: Path) -> bool:
    """Whether the attempt's search for a learning rate finished a trial."""
    file = attempt / SEARCH
    return file.exists() and file.stat().st_size > 0
