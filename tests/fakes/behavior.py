"""The fake provider's settings, its rate limits and its ledger."""

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, get_args

Wire = Literal["openai", "anthropic"]
# Each is an HTTP error; fakes.wire.ERRORS has their form.
ErrorFault = Literal[
    "overloaded",
    "server_error",
    "unavailable",
    "rate_limited",
    "unauthorized",
    "forbidden",
    "unknown_model",
    "not_found",
    "invalid_request",
    "insufficient_quota",
    "credit_too_low",
    "spend_limit",
]
Fault = Literal[
    ErrorFault,
    # Never answers; nothing was processed.
    "hang",
    # Never answers, though the answer was made and is paid for.
    "hang_after",
    # The connection closes; nothing was processed.
    "cut_before",
    # The connection closes without a byte; the answer is paid for.
    "cut",
    # The connection closes in the middle of the body; the answer is paid for.
    "cut_body",
    # Status 200 with half of the body's JSON.
    "malformed",
    "breaks_schema",
    "refusal",
    "content_filter",
    # Half of the text, stopped by max_tokens.
    "truncated",
    "empty",
]
ERROR_FAULTS: tuple[ErrorFault, ...] = get_args(ErrorFault)
FAULTS: tuple[Fault, ...] = get_args(Fault)
OPTIONAL_NUMBERS = ("rate", "burst", "tokens_per_minute", "retry_after_seconds")
# These errors come after the latency, the others at once.
LATE_ERRORS = ("overloaded", "server_error", "unavailable")

# Arguments: the protocol, the prompt (the last message; "POST /v1/batches" and so on for other
# calls), and its count from 1.
Script = Callable[[Wire, str, int], Fault | None]
# Maps the result lines of a batch to the lines that are sent.
Lines = Callable[[Wire, list[str]], list[str]]
# Maps the prompt and the schema's verdicts to a verdict.
Judge = Callable[[str, list[Any]], Any]


@dataclass(frozen=True)
class Behavior:
    """All settings.

    Times are seconds, prices dollars per million tokens; shares and probabilities lie between 0
    and 1.
    """

    seed: int = 0
    # Seconds until a completion is answered; batches and files are answered at once.
    latency: float = 0.0
    # At most this many seconds are added to the latency.
    jitter: float = 0.0

    # Limits, separate for each protocol. A refused request uses nothing up and is answered at
    # once.

    # Requests per second; None: no limit.
    rate: float | None = None
    limiter: Literal["token_bucket", "fixed_window", "none"] = "token_bucket"
    # Capacity of the token bucket; None: the requests of one second, at least 1.
    burst: float | None = None
    # Seconds of the fixed window, which admits rate × window requests.
    window: float = 1.0
    # OpenAI: prompt and answer together; Anthropic: this many of either.
    tokens_per_minute: float | None = None
    # Whether a 429 says when to come again.
    retry_after: bool = True
    # A 429 names this wait instead of the true one.
    retry_after_seconds: float | None = None
    rate_headers: bool = True

    # Faults

    # The probability of each fault.
    faults: Mapping[Fault, float] = field(default_factory=dict)
    # The script decides before the probabilities do.
    script: Script | None = None
    refusal_category: str | None = "general_harms"
    # Empty: any key is good.
    api_keys: tuple[str, ...] = ()
    # Empty: any model exists.
    models: tuple[str, ...] = ()
    # Whether to refuse the schemas that the real provider refuses.
    strict_schemas: bool = True

    # Answers and what they cost

    # About how many words a string of an answer has.
    answer_words: int = 14
    judge: Literal["longer", "first", "random"] | Judge = "longer"
    # Part of every answer's tokens.
    reasoning_tokens: int = 0
    # Share of the prompt's tokens that is read from the cache.
    cached_share: float = 0.0
    cache_write_share: float = 0.0
    price_input: float = 3.0
    price_output: float = 15.0
    price_cache_read: float = 0.3
    price_cache_write: float = 3.75

    # Vectors in the order of the texts, in another order, or one too few.
    embeddings: Literal["plain", "shuffled", "too_few"] = "plain"

    # Batches, at half price

    # Seconds until a batch ends.
    batch_seconds: float = 0.2
    # Seconds from the request to cancel a batch until it ends.
    batch_cancel_seconds: float = 0.1
    batch_outcome: Literal["completed", "expired", "failed"] = "completed"
    batch_error_share: float = 0.0
    batch_expire_share: float = 0.0
    batch_lines: Lines | None = None

    def __post_init__(self) -> None:
        """Refuse settings without a meaning here; lists become tuples."""
        for setting in fields(self):
            value, default = getattr(self, setting.name), setting.default
            optional = setting.name in OPTIONAL_NUMBERS
            if (isinstance(default, int | float) or (optional and value is not None)) and not isinstance(
                value, int | float
            ):
                raise ValueError(f"{setting.name}: {value!r} is not a number")
        for name in ("script", "batch_lines"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ValueError(f"{name}: only code can give one")
        for name in ("api_keys", "models"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        _expect("faults", self.faults, FAULTS)
        _expect("limiter", [self.limiter], ("token_bucket", "fixed_window", "none"))
        _expect("batch_outcome", [self.batch_outcome], ("completed", "expired", "failed"))
        if not callable(self.judge):
            _expect("judge", [self.judge], ("longer", "first", "random"))

    def fault_for(self, wire: Wire, prompt: str, nth: int, *, drawn: bool = True) -> Fault | None:
        """The script's fault, else a random one; the same seed, prompt and `nth` always give the
        same fault."""
        scripted = self.script(wire, prompt, nth) if self.script else None
        if scripted or not (self.faults and drawn):
            return scripted
        chance = random.Random(f"{self.seed}/{wire}/{prompt}/{nth}/fault").random()
        for fault, share in self.faults.items():
            chance -= share
            if chance < 0:
                return fault
        return None

    def as_json(self) -> dict[str, Any]:
        return {name: None if callable(value) else value for name, value in vars(self).items()}


def _expect(name: str, words: Any, allowed: tuple[str, ...]) -> None:
    for word in words:
        if word not in allowed:
            raise ValueError(f"{name}: {word!r} is none of {', '.join(allowed)}")


class Limiter(Protocol):
    per_minute: int

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` fits, 0 if it does."""
        ...

    def take(self, amount: float, now: float) -> None: ...

    def left(self, now: float) -> int: ...

    def reset(self, now: float) -> float:
        """Seconds until the full amount is available again."""
        ...


class TokenBucket:
    """Holds `capacity`, refilled at `rate` per second; `take` may leave a debt."""

    def __init__(self, rate: float, capacity: float) -> None:
        self.per_minute = round(rate * 60)
        self._rate, self._capacity, self._level, self._at = rate, capacity, capacity, time.monotonic()

    def _now(self, now: float) -> float:
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level

    def wait(self, amount: float, now: float) -> float:
        return max(0.0, (min(amount, self._capacity) - self._now(now)) / self._rate)

    def take(self, amount: float, now: float) -> None:
        self._level = self._now(now) - amount

    def left(self, now: float) -> int:
        return max(0, int(self._now(now)))

    def reset(self, now: float) -> float:
        return (self._capacity - self._now(now)) / self._rate


class FixedWindow:
    """Admits `rate` × `seconds` in each window, counted from the start."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.per_minute = round(rate * 60)
        self._capacity, self._seconds, self._start = max(1, int(rate * seconds)), seconds, time.monotonic()
        self._window, self._taken = 0, 0.0

    def _now(self, now: float) -> float:
        window = int((now - self._start) / self._seconds)
        if window != self._window:
            self._window, self._taken = window, 0.0
        return self._capacity - self._taken

    def wait(self, amount: float, now: float) -> float:
        return 0.0 if min(amount, self._capacity) <= self._now(now) else self.reset(now)

    def take(self, amount: float, now: float) -> None:
        self._now(now)
        self._taken += amount

    def left(self, now: float) -> int:
        return max(0, int(self._now(now)))

    def reset(self, now: float) -> float:
        return self._seconds - (now - self._start) % self._seconds


class Limits:
    """The rate limits of one protocol."""

    def __init__(self, wire: Wire, behavior: Behavior) -> None:
        self.wire: Wire = wire
        self.requests = _requests_limiter(behavior)
        minute = behavior.tokens_per_minute
        self.input = TokenBucket(minute / 60, minute) if minute else None
        self.output = self.input if wire == "openai" or not minute else TokenBucket(minute / 60, minute)

    def admit(self, tokens: int) -> tuple[str, float] | None:
        """Take one request of this many tokens, or return the limit that stops it and the seconds
        to wait."""
        now = time.monotonic()
        amounts = (("requests", self.requests, 1), ("tokens", self.input, tokens), ("output tokens", self.output, 1))
        for name, limiter, amount in amounts:
            if limiter and (wait := limiter.wait(amount, now)) > 1e-9:
                return name, wait
        if self.requests:
            self.requests.take(1, now)
        if self.input:
            self.input.take(tokens, now)
        return None

    def answered(self, tokens: int) -> None:
        if self.output:
            self.output.take(tokens, time.monotonic())

    def headers(self) -> dict[str, str]:
        """Headers as the provider sends them: the limit is per minute, `reset` is the time of full
        capacity."""
        if self.wire == "openai":
            return self._openai_headers()
        kinds = (("requests", self.requests), ("input-tokens", self.input), ("output-tokens", self.output))
        return {name: value for kind, limiter in kinds if limiter for name, value in _anthropic_headers(kind, limiter)}

    def _openai_headers(self) -> dict[str, str]:
        headers, now = {}, time.monotonic()
        for kind, limiter in (("requests", self.requests), ("tokens", self.input)):
            if limiter:
                headers[f"x-ratelimit-limit-{kind}"] = str(limiter.per_minute)
                headers[f"x-ratelimit-remaining-{kind}"] = str(limiter.left(now))
                headers[f"x-ratelimit-reset-{kind}"] = duration(limiter.reset(now))
        return headers


def _requests_limiter(behavior: Behavior) -> Limiter | None:
    if not behavior.rate or behavior.limiter == "none":
        return None
    if behavior.limiter == "fixed_window":
        return FixedWindow(behavior.rate, behavior.window)
    return TokenBucket(behavior.rate, max(1.0, behavior.burst if behavior.burst is not None else behavior.rate))


def _anthropic_headers(kind: str, limiter: Limiter) -> list[tuple[str, str]]:
    now = time.monotonic()
    full = datetime.now(UTC) + timedelta(seconds=limiter.reset(now) + 0.999)
    return [
        (f"anthropic-ratelimit-{kind}-limit", str(limiter.per_minute)),
        (f"anthropic-ratelimit-{kind}-remaining", str(limiter.left(now))),
        (f"anthropic-ratelimit-{kind}-reset", full.strftime("%Y-%m-%dT%H:%M:%SZ")),
    ]


def duration(seconds: float) -> str:
    """A duration as OpenAI writes it: 120ms, 1s, 8.64s, 6m0s, 1h2m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return (f"{minutes // 60}h{minutes % 60}m" if minutes >= 60 else f"{minutes}m") + f"{rest}s"


@dataclass(frozen=True)
class Received:
    """One request for an answer, or one batch item, received at `at` (seconds since 1970)."""

    wire: Wire
    prompt: str
    at: float
    raw: bytes
    batch: bool = False

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    def as_json(self) -> dict[str, Any]:
        return {"wire": self.wire, "prompt": self.prompt, "at": self.at, "batch": self.batch, "body": self.body}


@dataclass
class Account:
    """The totals of one protocol.

    An answer counts, and is paid for, once it is made, even if it is not delivered.
    """

    # Requests for a completion, refused ones included.
    requests: int = 0
    answers: int = 0
    # Answers whose connection was then cut or left hanging.
    undelivered: int = 0
    # Batch items received.
    batch_items: int = 0
    batch_answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    # Number of 429 responses.
    limited: int = 0
    in_progress: int = 0
    most_at_once: int = 0
    # By prompt; refused requests and batch items count too.
    attempts: Counter[str] = field(default_factory=Counter)
    # By prompt, batch items included.
    answered: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    # Calls about files, batches and models, such as "POST /v1/batches".
    calls: Counter[str] = field(default_factory=Counter)


@dataclass
class Ledger:
    """All requests and answers since the start or the last reset."""

    openai: Account = field(default_factory=Account)
    anthropic: Account = field(default_factory=Account)
    received: list[Received] = field(default_factory=list)

    def of(self, wire: Wire) -> Account:
        return self.openai if wire == "openai" else self.anthropic

    def receive(self, received: Received) -> None:
        self.received.append(received)
        self.of(received.wire).attempts[received.prompt] += 1

    def as_json(self, *, bodies: bool) -> dict[str, Any]:
        sums: dict[str, Any] = {"openai": vars(self.openai), "anthropic": vars(self.anthropic)}
        if bodies:
            sums["received"] = [one.as_json() for one in self.received]
        return sums
