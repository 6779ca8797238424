"""The checkpoint that a new attempt resumes from, and the removal of useless ones. Nothing here
needs torch.

A checkpoint can be resumed if all fingerprints are equal: data, recipe, code, machine.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.runs.cells import Attempt
from pipelines.runs.checkpoints import FOLDER, SEARCH, START, searched, whole

PEAKS = (
    "peak_memory_gb", "host_peak_memory_gb", "gpu_allocated_peak_gb", "gpu_reserved_peak_gb", "gpu_device_peak_gb",
    "load_peak_memory_gb",
)  # fmt: skip
# Statuses that a rerun of the same steps would not change.
FINAL = ("ok", "diverged")


def resumable(attempts: Sequence[Attempt], expected: Mapping[str, Any], root: Path) -> dict[str, Any] | None:
    """The `resume` entry of a new attempt's spec, or None if there is no checkpoint to resume from.

    `run_id` is the attempt to resume, `checkpoint` is relative to `root`, and `peaks` has the
    largest value of each peak since that attempt. `attempts` are ordered oldest first.
    """
    peaks: dict[str, float] = {}
    for attempt in reversed(attempts):
        if attempt.status in FINAL or attempt.spec.fingerprints != dict(expected):
            return None
        measured = attempt.result.measured
        for name in PEAKS:
            if measured.get(name) is not None:
                peaks[name] = max(peaks.get(name, 0.0), measured[name])
        if checkpoints := whole(attempt.folder):
            return {"run_id": attempt.run_id, "checkpoint": str(checkpoints[-1].relative_to(root)), "peaks": peaks}
    return None


def search_to_resume(attempts: Sequence[Attempt], expected: Mapping[str, Any], root: Path) -> str | None:
    """The file of learning-rate trials (relative to `root`) of the newest attempt that ended too
    early, or None.

    None if any fingerprint has changed since.
    """
    for attempt in reversed(attempts):
        if attempt.status in FINAL or attempt.spec.fingerprints != dict(expected):
            return None
        if searched(attempt.folder):
            return str((attempt.folder / SEARCH).relative_to(root))
    return None


def clear(attempts: Sequence[Attempt], *, keep: str | None = None) -> None:
    """Remove half-written files of `attempts`, and checkpoints but those of `keep`."""
    for attempt in attempts:
        if attempt.run_id != keep:
            shutil.rmtree(attempt.folder / FOLDER, ignore_errors=True)
        for partial in (".model.partial", START):
            shutil.rmtree(attempt.folder / partial, ignore_errors=True)
