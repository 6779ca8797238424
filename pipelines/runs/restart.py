"""Which checkpoint a new attempt goes on from, and which are of no use any more. Nothing here needs torch.

A checkpoint is gone on from where all fingerprints are equal: data, recipe, code, machine.
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
FINAL = ("ok", "diverged")  # the same steps would end the same way


def resumable(attempts: Sequence[Attempt], expected: Mapping[str, Any], root: Path) -> dict[str, Any] | None:
    """What a new attempt's spec says of the one it goes on from: `run_id`, `checkpoint` (relative to `root`), `peaks` (the
    largest of each since that one); None where there is nothing to go on from. `attempts` come oldest first."""
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
    """The newest attempt's trials of learning rates (relative to `root`), where it was ended too early and nothing has changed
    since; None where there are none."""
    for attempt in reversed(attempts):
        if attempt.status in FINAL or attempt.spec.fingerprints != dict(expected):
            return None
        if searched(attempt.folder):
            return str((attempt.folder / SEARCH).relative_to(root))
    return None


def clear(attempts: Sequence[Attempt], *, keep: str | None = None) -> None:
    """Remove all checkpoints and half-written files of `attempts` but those of the attempt `keep`."""
    for attempt in attempts:
        if attempt.run_id != keep:
            shutil.rmtree(attempt.folder / FOLDER, ignore_errors=True)
        for partial in (".model.partial", START):
            shutil.rmtree(attempt.folder / partial, ignore_errors=True)
