"""Names of runs and of versions, which sort by time."""

import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

# Ids have it cut to milliseconds.
STAMP = "%Y%m%dT%H%M%S%f"
_ID = re.compile(r"\d{8}T\d{9}-")


def new_run_id(folder: Path | None = None) -> str:
    """An id that sorts by time, and after every name in `folder`, even one from the future."""
    stamp = f"{datetime.now(UTC):{STAMP}}"[:-3]
    newest = max((name[: len(stamp)] for path in _entries(folder) if _ID.match(name := path.name)), default="")
    if stamp <= newest:
        later = datetime.strptime(newest + "000", STAMP) + timedelta(milliseconds=1)
        stamp = f"{later:{STAMP}}"[:-3]
    return f"{stamp}-{secrets.token_hex(3)}"


def _entries(folder: Path | None) -> list[Path]:
    return list(folder.iterdir()) if folder and folder.is_dir() else []
