"""The time at which a change in the lake is published: after a quiet period, or, if changes keep
coming, once the first one has waited long enough.

Each check of the lake leaves a note; the next check decides from that note and its own clock.
"""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

# Cells of one run, or files that somebody copies, arrive in shorter intervals.
QUIET = timedelta(minutes=2)
# The longest time between the first unpublished change and the publication.
LONGEST = timedelta(minutes=15)


@dataclass(frozen=True)
class Changes:
    """The unpublished state of the lake.

    `published` is its published version, and `version` the current one. `since` is the time from
    which on they differ, and `at` the time of the current version. Times are ISO 8601.
    """

    published: str | None
    version: str
    since: str
    at: str

    @classmethod
    def noted(cls, before: str | None, published: str | None, version: str, now: datetime) -> "Changes":
        """The note of this check, from `before`, the text of an earlier one.

        The wait starts again after a publication, or if `before` comes from a clock that is ahead
        of this one.
        """
        earlier, time = _read(before), now.isoformat()
        if earlier is None or earlier.published != published or datetime.fromisoformat(earlier.at) > now:
            return cls(published, version, time, time)
        return earlier if earlier.version == version else replace(earlier, version=version, at=time)

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def due(self) -> datetime:
        """The time at which to publish."""
        return min(datetime.fromisoformat(self.at) + QUIET, datetime.fromisoformat(self.since) + LONGEST)


def _read(text: str | None) -> Changes | None:
    """The note in `text`; None if it is not a valid note."""
    try:
        changes = Changes(**json.loads(text or ""))
        moments = [datetime.fromisoformat(moment) for moment in (changes.since, changes.at)]
    except (TypeError, ValueError):
        return None
    return changes if all(moment.tzinfo for moment in moments) and moments[0] <= moments[1] else None
