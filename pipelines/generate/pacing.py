"""When the next request may leave: one provider's pace, learned from its answers and its rate-limit
headers.

Two limits adapt separately. The *pace* (requests a second) responds to rate limits. A 429 cuts it
to a share of the admitted pace. Then it rises again along the cubic curve of RFC 9438: slowly near
the refused pace, faster beyond it. Headers that show how fast the limit refills set it directly.

The *window* (requests under way) responds to overload. A 529, a 5xx or a time-out halves it, and
each answer widens it a little (additive increase, multiplicative decrease: Chiu and Jain 1989).

Times are arguments, so the rules can be tested and simulated without waiting.
"""

import math
import random
from collections import deque
from dataclasses import dataclass

# Requests a second before anything is known: slow enough that a refusal of the first requests stops
# the rest.
FIRST_PACE = 200.0
# The window over which the admitted pace is measured.
MEASURED_SECONDS = 1.0
# Requests a second, the lowest estimate after a first refusal: very early refusals tell little
# about the pace.
LEAST_GUESS = 5.0
# Share of the admitted pace that a 429 leaves.
CUT = 0.85
# The same factor, used if a similar pace was refused before, so the limit is known.
CUT_AT_KNOWN = 0.95
# Relative difference of two refused paces that count as the same.
SAME_PACE = 0.15
# Time after a cut until the refused pace is reached again. It doubles each time that the limit is
# known.
PLATEAU_SECONDS = 6.0
LONGEST_PLATEAU_SECONDS = 60.0
# How much of a timer's delay is caught up; more would be a burst.
LATE_SECONDS = 0.005
# Share of a limit in the headers that we use.
MARGIN = 0.98
# A limit is scarce when less than this share of it remains.
SCARCE = 0.2
# For a limit that takes longer to refill, the pace slows down before the limit is reached; else
# only after.
LONG_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 60.0
# One burst may cause this many refusals in a row. Each further one doubles the pause.
FREE_REFUSALS = 5


@dataclass(frozen=True)
class RateLimit:
    """One limit from the headers: `remaining` of `limit` (requests or tokens), full again after
    `reset_seconds`.

    `per_request` is the use of one request: 1, or its tokens.
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
        """Requests a second at which the limit refills; None while too little is used to tell."""
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
        # None until the first 429.
        self._refused_pace: float | None = None
        self._cut_to, self._plateau = CUT, PLATEAU_SECONDS
        # When the latest requests left, without those that got a 429.
        self._sent: deque[float] = deque()
        self._refusals_in_a_row = 0

    def delay(self, now: float, under_way: int) -> float:
        """Seconds until the next request may leave; infinite while the window is full."""
        if under_way >= max(1, int(self.window)):
            return math.inf
        return max(0.0, self._next_at - now, self._paused_until - now)

    def sent(self, now: float) -> None:
        self._sent.append(now)
        self._forget(now)
        if math.isfinite(self.pace):
            # A daily limit that is nearly used up would give a pace near zero. Sending on lets the
            # provider refuse visibly.
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
            progress = (now - self._cut_at) / self._plateau
            self.pace = max(self.pace, self._refused_pace * (1 + (1 - self._cut_to) * (progress - 1) ** 3))

    def throttled(self, sent_at: float, now: float, limits: Limits = (), retry_after: float | None = None) -> None:
        """A 429 came to the request of `sent_at`: a rate limit. Those of one burst count once."""
        self._refusals_in_a_row += 1
        self._refused_at = now
        if sent_at in self._sent:
            self._sent.remove(sent_at)
        # Cut once per burst. Refusals with nothing admitted in between tell how long to wait, not
        # how fast to send.
        if self._cut_at == -math.inf or (sent_at > self._cut_at and self._sent and self._sent[-1] > self._cut_at):
            self._cut(now, limits)
        if retry_after is None:
            retry_after = self._pause(limits)
        self._paused_until = max(self._paused_until, now + min(retry_after, self._longest_wait))

    def failed(self, sent_at: float, now: float, retry_after: float | None = None) -> None:
        """The request of `sent_at` ended with a 529, a 5xx, a cut connection or a time-out:
        overload."""
        if sent_at > self._halved_at:
            self.window = max(1.0, self.window / 2)
            self._halved_at = now
        if retry_after:
            self._paused_until = max(self._paused_until, now + min(retry_after, self._longest_wait))

    def backoff(self, failures: int) -> float:
        """Seconds until a request is tried again after `failures` of its own: exponential, with
        jitter."""
        longest = min(self._longest_wait, FIRST_BACKOFF_SECONDS * 2 ** (failures - 1))
        return longest * self._jitter.uniform(0.5, 1.0)

    def _cut(self, now: float, limits: Limits) -> None:
        # Headers that state a lower pace decide.
        self._forget(now)
        header_pace = _header_pace(limits)
        if header_pace and header_pace < self.pace:
            self._follow(header_pace, now)
            return

        # Otherwise the pace just admitted is the best estimate of the limit, and a second estimate
        # close to the first confirms it.
        admitted = max(LEAST_GUESS, len(self._sent) / MEASURED_SECONDS)
        before = self._refused_pace
        self._refused_pace = admitted if before is None else min(self.pace, max(admitted, CUT * self.pace))
        known = before is not None and abs(self._refused_pace / before - 1) < SAME_PACE
        self._cut_to = CUT_AT_KNOWN if known else CUT
        self._plateau = min(LONGEST_PLATEAU_SECONDS, 2 * self._plateau) if known else PLATEAU_SECONDS
        self.pace = self._cut_to * self._refused_pace
        self._cut_at = now

    def _follow(self, header_pace: float | None, now: float) -> None:
        """Adopt the pace from the headers if it is lower than ours."""
        if header_pace and header_pace < self.pace:
            self.pace = self._refused_pace = header_pace
            self._cut_at = now

    def _pause(self, limits: Limits) -> float:
        """Seconds to pause after a refusal without `retry-after`: longer with each in a row, or
        until the limit is full."""
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
    """The pace at which none of these header limits would run out; None if they do not tell."""
    paces = [limit.pace for limit in limits if limit.pace]
    return MARGIN * min(paces) if paces else None
