"""The times of requests: rules over given times, and a simulated minute against several kinds of
limiters."""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable

import pytest

from pipelines.generate.pacing import CUT, FIRST_PACE, Pacer, RateLimit

# Returns whether a request is admitted now, the numbers in the headers, and the wait.
Limiter = Callable[[float], tuple[bool, RateLimit, float]]


def token_bucket(rate: float, capacity: float) -> Limiter:
    held, last = capacity, 0.0

    def take(now: float) -> tuple[bool, RateLimit, float]:
        nonlocal held, last
        held, last = min(capacity, held + (now - last) * rate), now
        allowed = held >= 1
        held -= allowed
        return allowed, RateLimit(capacity, math.floor(held), (capacity - held) / rate), max(0.0, (1 - held) / rate)

    return take


def fixed_window(limit: int, seconds: float) -> Limiter:
    window, count = -1, 0

    def take(now: float) -> tuple[bool, RateLimit, float]:
        nonlocal window, count
        if int(now / seconds) != window:
            window, count = int(now / seconds), 0
        allowed = count < limit
        count += allowed
        left = (window + 1) * seconds - now
        return allowed, RateLimit(limit, limit - count, left), left

    return take


def sliding_window(limit: int, seconds: float) -> Limiter:
    let_in: deque[float] = deque()

    def take(now: float) -> tuple[bool, RateLimit, float]:
        while let_in and let_in[0] <= now - seconds:
            let_in.popleft()
        allowed = len(let_in) < limit
        if allowed:
            let_in.append(now)
        return allowed, RateLimit(limit, limit - len(let_in), let_in[-1] + seconds - now), let_in[0] + seconds - now

    return take


def simulate(
    limiter: Limiter | None, *, requests: int, headers: bool = True, retry_after: str | None = "exact"
) -> tuple[float, int]:
    """Seconds and 429s until `requests` are answered, at most 64 at a time, each taking a second;
    refusals are immediate."""
    rng, pacer = random.Random(1), Pacer(slots=64)
    events: list[tuple[float, int, str, float, RateLimit | None, float]] = []
    now, left, under_way, done, refused, number = 0.0, requests, 0, 0, 0, 0
    while done < requests:
        delay = pacer.delay(now, under_way) if left else math.inf
        number += 1
        if delay <= 0:
            pacer.sent(now)
            left, under_way = left - 1, under_way + 1
            heapq.heappush(events, (now + 0.002 * rng.uniform(0.5, 2), number, "arrives", now, None, 0.0))
        elif not events or now + delay < events[0][0]:
            now += delay + rng.uniform(0, 0.001)
        else:
            at, _, kind, sent_at, limit, wait = heapq.heappop(events)
            now = max(now, at)
            if kind == "arrives":
                allowed, hint, wait = limiter(now) if limiter else (True, None, 0.0)
                after = 1 + rng.uniform(0, 0.02) if allowed else 0.002
                heapq.heappush(events, (now + after, number, "answered" if allowed else "refused", sent_at, hint, wait))
                continue
            under_way -= 1
            limits = (limit,) if limit and headers else ()
            if kind == "answered":
                done += 1
                pacer.answered(sent_at, now, limits)
            else:
                left, refused = left + 1, refused + 1
                retry_seconds = {"exact": wait, "whole seconds": math.ceil(wait), None: None}[retry_after]
                pacer.throttled(sent_at, now, limits, retry_seconds)
    return now, refused


FORMS = [(headers, form) for headers in (True, False) for form in ("exact", "whole seconds", None)]


@pytest.mark.parametrize(("headers", "retry_after"), FORMS)
@pytest.mark.parametrize("burst", [20, 40])
def test_a_token_bucket_is_used_to_its_limit_with_hardly_a_refusal(
    burst: int, headers: bool, retry_after: str | None
) -> None:
    seconds, refused = simulate(token_bucket(20, burst), requests=1200, headers=headers, retry_after=retry_after)
    assert refused <= 12
    assert seconds <= 1.05 * ((1200 - burst) / 20 + 1)


@pytest.mark.parametrize(("headers", "retry_after"), FORMS)
@pytest.mark.parametrize("limiter", [fixed_window, sliding_window])
def test_windows_of_a_second_are_kept_with_few_refusals(
    limiter: Callable[[int, float], Limiter], headers: bool, retry_after: str | None
) -> None:
    seconds, refused = simulate(limiter(20, 1), requests=1200, headers=headers, retry_after=retry_after)
    assert refused <= 12
    assert seconds <= 1.15 * 60


def test_a_limit_of_a_minute_that_is_used_up_is_waited_for() -> None:
    seconds, refused = simulate(fixed_window(400, 20), requests=1200, headers=False, retry_after=None)
    assert refused <= 24
    assert seconds <= 1.2 * (40 + 400 / 64 + 1)


def test_without_a_limit_every_slot_is_used_from_the_start() -> None:
    seconds, refused = simulate(None, requests=1280)
    assert refused == 0
    assert seconds <= 1.05 * 20


def ready(pacer: Pacer, now: float, under_way: int = 0) -> bool:
    return pacer.delay(now, under_way) <= 0


def test_no_more_are_under_way_than_slots() -> None:
    pacer = Pacer(slots=2)
    assert ready(pacer, 0, 1)
    assert pacer.delay(0, 2) == math.inf


def test_overload_halves_the_window_once_for_what_was_under_way_and_answers_widen_it_again_one_by_one() -> None:
    pacer = Pacer(slots=16)
    pacer.failed(sent_at=1.0, now=2.0)
    assert pacer.window == 8
    pacer.failed(sent_at=1.5, now=2.1)
    assert pacer.window == 8, "it left before the window was halved"
    pacer.failed(sent_at=3.0, now=4.0)
    assert pacer.window == 4
    for n in range(4):
        pacer.answered(sent_at=5.0 + n, now=6.0 + n)
    assert 4.9 < pacer.window < 5
    for n in range(10_000):
        pacer.answered(sent_at=20.0 + n, now=21.0 + n)
    assert pacer.window == 16
    for n in range(10):
        pacer.failed(sent_at=30_000.0 + n, now=30_000.5 + n)
    assert pacer.window == 1 and ready(pacer, 40_000, 0)


def test_a_refusal_cuts_the_pace_to_what_was_admitted_and_silence_lets_it_rise_past_it() -> None:
    pacer = Pacer(slots=64)
    for n in range(30):
        pacer.sent(n / 60)
    pacer.throttled(sent_at=29 / 60, now=0.5, retry_after=0.1)
    assert pacer.pace == pytest.approx(CUT * 29)
    paces = []
    for second in range(1, 20):
        pacer.sent(second)
        pacer.answered(sent_at=second, now=second + 0.5)
        paces.append(pacer.pace)
    assert paces == sorted(paces)
    assert paces[5] < 1.1 * 29 < paces[-1]


def test_headers_of_a_long_limit_slow_it_down_before_it_is_used_up() -> None:
    pacer = Pacer(slots=64)
    pacer.answered(0.0, 1.0, (RateLimit(limit=1200, remaining=900, reset_seconds=15),))
    assert pacer.pace == math.inf
    pacer.answered(1.0, 2.0, (RateLimit(limit=1200, remaining=120, reset_seconds=54),))
    assert pacer.pace == pytest.approx(0.98 * 1080 / 54)


def test_a_limit_on_tokens_is_a_pace_by_the_tokens_of_a_request() -> None:
    pacer = Pacer(slots=64)
    pacer.answered(0.0, 1.0, (RateLimit(limit=60_000, remaining=6_000, reset_seconds=54, per_request=500),))
    assert pacer.pace == pytest.approx(0.98 * 1000 / 500)


def test_retry_after_is_obeyed_up_to_the_longest_wait() -> None:
    pacer = Pacer(slots=4, longest_wait=60)
    pacer.throttled(sent_at=0.0, now=1.0, retry_after=7200)
    assert pacer.delay(1.0, 0) == pytest.approx(60)
    pacer.failed(sent_at=0.0, now=2.0, retry_after=10)
    assert pacer.delay(2.0, 0) == pytest.approx(59), "a shorter wait does not undo a longer one"


def test_the_backoff_of_a_request_doubles_with_jitter_up_to_the_longest_wait() -> None:
    pacer = Pacer(slots=4, longest_wait=8)
    for failures, longest in ((1, 0.5), (2, 1), (4, 4), (9, 8)):
        waits = [pacer.backoff(failures) for _ in range(200)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert max(waits) - min(waits) > longest / 4


def test_the_first_requests_are_spread_so_that_a_refusal_can_stop_the_rest() -> None:
    pacer = Pacer(slots=64)
    left = 0
    while pacer.delay(0.0, left) <= 0:
        pacer.sent(0.0)
        left += 1
    assert left <= 2
    assert pacer.delay(0.0, left) == pytest.approx(1 / FIRST_PACE)


def test_a_limit_of_a_day_that_is_nearly_used_up_does_not_stand_still() -> None:
    pacer = Pacer(slots=64, longest_wait=60)
    pacer.answered(0.0, 1.0, (RateLimit(limit=200, remaining=20, reset_seconds=86_400),))
    pacer.sent(1.0)
    assert 59 < pacer.delay(1.0, 1) <= 60, "whatever is left is asked for, and a refusal says the rest"
