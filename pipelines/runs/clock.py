"""Time as the lake writes it, and time as it is measured."""

import time
from datetime import UTC, datetime


def now() -> str:
    """UTC in ISO 8601 to the millisecond; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Stopwatch:
    """Seconds since it was made, or since `lap` was last called."""

    def __init__(self) -> None:
        self.began = self._lap = time.monotonic()

    def total(self) -> float:
        return time.monotonic() - self.began

    def lap(self) -> float:
        now = time.monotonic()
        passed, self._lap = now - self._lap, now
        return passed
