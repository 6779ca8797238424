"""When a change in the lake is published: after a quiet while, or, where changes keep coming, once the first one has waited
long enough. Each check of the lake notes what it saw; the next one decides from that note and its own clock."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

QUIET = timedelta(minutes=2)  # cells of one run, or files that somebody copies, come closer together
LONGEST = timedelta(minutes=15)  # between the first change that is not published yet and the publication


@dataclass(frozen=True)
class Changes:
    """What is not published yet: the `published` version of the lake and the `version` it has now, `since` when it differs from
    what is published, and when (`at`) it came to this version. Times are ISO 8601."""

    published: str | None
    version: str
    since: str
    at: str

    @classmethod
    def noted(cls, before: str | None, published: str | None, version: str, now: datetime) -> "Changes":
        """What `before`, the text of an earlier check, becomes at this one. The wait begins anew where there has been a publication
        since, and where `before` was written by a clock that is ahead of this one."""
        earlier, time = _read(before), now.isoformat()
        if earlier is None or earlier.published != published or datetime.fromisoformat(earlier.at) > now:
            return cls(published, version, time, time)
        return earlier if earlier.version == version else replace(earlier, version=version, at=time)

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def due(self) -> datetime:
        """From when on it is to be published."""
        return min(datetime.fromisoformat(self.at) + QUIET, datetime.fromisoformat(self.since) + LONGEST)


def _read(text: str | None) -> Changes | None:
    """What `text` says; None where it is no such text."""
    try:
        changes = Changes(**json.loads(text or ""))
        moments = [datetime.fromisoformat(moment) for moment in (changes.since, changes.at)]
    except (TypeError, ValueError):
        return None
    return changes if all(moment.tzinfo for moment in moments) and moments[0] <= moments[1] else None
