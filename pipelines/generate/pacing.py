"""When the next request may leave: one provider's pace, learned from its answers, and from its rate-limit headers if it sends any.

Two things are held down apart. The *pace* (requests a second) answers to rate limits: a 429 cuts it to a share of what was
admitted, then it rises again, slowly near the pace that was refused and faster beyond it (the cubic curve of RFC 9438); headers
that tell what comes back in a second set it outright. The *window* (requests under way) answers to overload: a 529, a 5xx or a
time-out halves it, answers widen it again one by one (additive increase, multiplicative decrease: Chiu and Jain 1989).

Time is handed in, so that the rules can be tested, and simulated, without waiting.
"""

import math
import random
from collections import deque
from dataclasses import dataclass

FIRST_PACE = 200.0  # a second: slow enough that a refusal of the first requests stops the rest
MEASURED_SECONDS = 1.0  # what was admitted is measured over so long
LEAST_GUESS = 5.0  # a second: a refusal of one of the very first requests tells little about the pace
CUT = 0.85
CUT_AT_KNOWN = 0.95  # where a pace like the last one is refused again: the limit is known then
SAME_PACE = 0.15
PLATEAU_SECONDS = (
    6.0  # after a cut, until the pace that was refused is reached again; twice as long where the limit is known
)
LONGEST_PLATEAU_SECONDS = 60.0
LATE_SECONDS = 0.005  # so much of a timer's delay is made up for; more would be a burst
MARGIN = 0.98  # of a limit that the headers tell
SCARCE = 0.2  # share of a limit that is left
LONG_SECONDS = 5.0  # a limit that takes longer to be whole is slowed down for before it is reached, a shorter one after
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 60.0
FREE_REFUSALS = 5  # refusals in a row that one burst may bring; each further one doubles the pause


@dataclass(frozen=True)
class RateLimit:
    """One limit as headers tell it: `remaining` of `limit` (requests or tokens), whole again after `reset_seconds`.

    `per_request` is what one request takes of it: 1, or its tokens.
    """

    limit: float
    remaining: float
    reset_seconds: float
    per_request: float = 1.0

    @property
    def share_left(self) -> float:
        return self.remaining / self.limit

    @property
    def pace(self) -> float | None:
        """Requests a second that come back; None while too little was used for that to be told."""
        used = 1 - self.share_left
        if used < 0.5 or self.reset_seconds < 0.2:
            return None
        return used * self.limit / self.reset_seconds / self.per_request


Limits = tuple[RateLimit, ...]


class Pacer:
    """One provider's pace and window. Times are seconds of a monotonic clock."""

    def __init__(self, *, slots: int, longest_wait: float = LONGEST_BACKOFF_SECONDS, seed: int = 0) -> None:
        self.window = float(slots)
        self.pace = FIRST_PACE
        self._slots = slots
        self._longest_wait = longest_wait
        self._jitter = random.Random(seed)
        self._next_at = self._paused_until = self._cut_at = self._halved_at = self._refused_at = -math.inf
        self._refused_pace: float | None = None  # None until a 429 comes
        self._cut_to, self._plateau = CUT, PLATEAU_SECONDS
        self._sent: deque[float] = deque()  # when the latest requests left, those that were turned away taken out again
        self._refusals_in_a_row = 0

    def delay(self, now: float, under_way: int) -> float:
        """Seconds until the next request may leave; infinite until one of those under way has ended."""
        if under_way >= max(1, int(self.window)):
            return math.inf
        return max(0.0, self._next_at - now, self._paused_until - now)

    def sent(self, now: float) -> None:
        self._sent.append(now)
        self._forget(now)
        if math.isfinite(self.pace):
            # a limit of a whole day that is nearly used up would stand still; let it refuse instead, and be seen
            self._next_at = max(self._next_at, now - LATE_SECONDS) + min(1 / self.pace, self._longest_wait)

    def answered(self, sent_at: float, now: float, limits: Limits = ()) -> None:
        """An answer came to the request of `sent_at`."""
        if sent_at > self._refused_at:
            self._refusals_in_a_row = 0
        self.window = min(self._slots, self.window + 1 / max(1.0, self.window))
        scarce = tuple(limit for limit in limits if limit.share_left < SCARCE and limit.reset_seconds > LONG_SECONDS)
        if scarce:
            self._follow(_header_pace(scarce), now)
        elif self._refused_pace is None:
            self.pace = math.inf
        else:
            along = (now - self._cut_at) / self._plateau
            self.pace = max(self.pace, self._refused_pace * (1 + (1 - self._cut_to) * (along - 1) ** 3))

    def throttled(self, sent_at: float, now: float, limits: Limits = (), retry_after: float | None = None) -> None:
        """A 429 came to the request of `sent_at`: a rate limit. Those of one burst count once."""
        self._refusals_in_a_row += 1
        self._refused_at = now
        if sent_at in self._sent:
            self._sent.remove(sent_at)
        # Once for a burst; and refusals with nothing admitted between them say how long to wait, not how fast to go.
        if self._cut_at == -math.inf or (sent_at > self._cut_at and self._sent and self._sent[-1] > self._cut_at):
            self._cut(now, limits)
        if retry_after is None:
            retry_after = self._pause(limits)
        self._paused_until = max(self._paused_until, now + min(retry_after, self._longest_wait))

    def failed(self, sent_at: float, now: float, retry_after: float | None = None) -> None:
        """A 529, a 5xx, a cut connection or a time-out came of the request of `sent_at`: overload."""
        if sent_at > self._halved_at:
            self.window = max(1.0, self.window / 2)
            self._halved_at = now
        if retry_after:
            self._paused_until = max(self._paused_until, now + min(retry_after, self._longest_wait))

    def backoff(self, failures: int) -> float:
        """Seconds until one request is tried again after so many failures of its own: exponential, with jitter."""
        longest = min(self._longest_wait, FIRST_BACKOFF_SECONDS * 2 ** (failures - 1))
        return longest * self._jitter.uniform(0.5, 1.0)

    def _cut(self, now: float, limits: Limits) -> None:
        self._forget(now)
        header_pace = _header_pace(limits)
        if header_pace and header_pace < self.pace:
            self._follow(header_pace, now)
            return
        admitted = max(LEAST_GUESS, len(self._sent) / MEASURED_SECONDS)
        before = self._refused_pace
        self._refused_pace = admitted if before is None else min(self.pace, max(admitted, CUT * self.pace))
        known = before is not None and abs(self._refused_pace / before - 1) < SAME_PACE
        self._cut_to = CUT_AT_KNOWN if known else CUT
        self._plateau = min(LONGEST_PLATEAU_SECONDS, 2 * self._plateau) if known else PLATEAU_SECONDS
        self.pace = self._cut_to * self._refused_pace
        self._cut_at = now

    def _follow(self, header_pace: float | None, now: float) -> None:
        """Take the pace that headers tell, if it is lower than ours."""
        if header_pace and header_pace < self.pace:
            self.pace = self._refused_pace = header_pace
            self._cut_at = now

    def _pause(self, limits: Limits) -> float:
        """How long nothing is sent after a refusal that does not say: longer with each in a row, or until the limit is whole."""
        longest = FIRST_BACKOFF_SECONDS * 2.0 ** min(10, self._refusals_in_a_row - FREE_REFUSALS)
        if self._refusals_in_a_row > FREE_REFUSALS and limits:
            longest = max(
                longest, *(limit.reset_seconds for limit in limits if limit.remaining < limit.per_request), 0.0
            )
        return longest * self._jitter.uniform(0.75, 1.0)

    def _forget(self, now: float) -> None:
        while self._sent and self._sent[0] < now - MEASURED_SECONDS:
            self._sent.popleft()


def _header_pace(limits: Limits) -> float | None:
    """The pace at which none of `limits` would run out, by the headers."""
    paces = [limit.pace for limit in limits if limit.pace]
    return MARGIN * min(paces) if paces else None
