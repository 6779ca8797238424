"""The result of a request: an answer, kept raw, or an error with the request's fate.

Both APIs' bodies are read leniently. Stop reason and token counts are noted if present, and nothing
is validated before the raw body is stored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.generate.pacing import Limits
from pipelines.records.foreign_text import one_line

# The fate of a request that got no answer.
Fate = Literal[
    # It never reached the provider: it costs nothing and may be sent again.
    "unsent",
    # The provider turned it away because of a rate limit (429).
    "throttled",
    # The provider turned it away because of its load (503, 529).
    "overloaded",
    # The provider failed while processing it (500) and does not bill it.
    "failed",
    # It timed out, was cut off, or got a garbled response: it may have been answered and billed.
    "unknown",
    # This request can never be answered (it is too long); others can.
    "impossible",
    # Key, quota, billing, model or form of the request is wrong: no further request can succeed.
    "stopped",
]


@dataclass(frozen=True)
class Usage:
    """Tokens as billed; None: not reported. `input` includes those read from and written to a
    cache."""

    input: int | None = None
    cached_input: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None

    @property
    def known(self) -> bool:
        return self.input is not None and self.output is not None

    @property
    def total(self) -> int:
        return (self.input or 0) + (self.output or 0)


@dataclass(frozen=True)
class Answer:
    """A provider's response. `raw` is its body as it came; the other fields are read from it.

    `model` is the model that answered, as the provider names it. `odd_usage` is why its token
    counts are unusable.
    """

    raw: str
    stop_reason: str | None = None
    stop_category: str | None = None
    usage: Usage = Usage()
    latency_ms: float | None = None
    limits: Limits = ()
    model: str | None = None
    odd_usage: str | None = None

    @property
    def refused(self) -> bool:
        return self.stop_reason in REFUSALS


REFUSALS = ("refusal", "content_filter")
# A larger count is not believed.
MOST_TOKENS = 10**12
TRUNCATIONS = ("max_tokens", "length", "model_context_window_exceeded")
ENDINGS = ("stop", "end_turn", "stop_sequence")


def ended(stop_reason: str | None) -> bool | None:
    """Whether an answer ended by itself: False if a token limit cut it off, None if its stop reason
    tells neither."""
    return True if stop_reason in ENDINGS else False if stop_reason in TRUNCATIONS else None


# Characters of a provider's message.
LONGEST_MESSAGE = 1500
# Why the usage of an answer is odd if it has none.
NO_COUNTS = "it reports no token counts"


class CallError(Exception):
    """The request got no answer. The message is the provider's own, without keys or headers, safe
    to print and log."""

    def __init__(
        self,
        message: str,
        fate: Fate = "failed",
        *,
        retry_after: float | None = None,
        limits: Limits = (),
        raw: str | None = None,
    ) -> None:
        super().__init__(one_line(message, LONGEST_MESSAGE))
        self.fate: Fate = fate
        self.retry_after = retry_after
        self.limits = limits
        self.raw = raw


def read_openai(raw: str) -> Answer:
    """The answer in the body of a chat completion.

    Raises:
        ValueError: not the body of a chat completion.
    """
    body = _object(raw)
    choices = body.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise ValueError("no chat completion")
    choice = choices[0] if choices else {}
    message = _mapping(choice.get("message"))
    stop = choice.get("finish_reason")
    if message.get("refusal"):
        stop = "refusal"
    raw_usage = body.get("usage")
    usage = _mapping(raw_usage)
    prompt, completion = _mapping(usage.get("prompt_tokens_details")), _mapping(usage.get("completion_tokens_details"))
    return Answer(
        raw=raw,
        stop_reason=_text(stop),
        usage=Usage(
            input=_count(usage.get("prompt_tokens")),
            cached_input=_count(prompt.get("cached_tokens")),
            cache_write=_count(prompt.get("cache_write_tokens")),
            output=_count(usage.get("completion_tokens")),
            reasoning=_count(completion.get("reasoning_tokens")),
        ),
        model=_text(body.get("model")),
        odd_usage=_odd_usage(raw_usage, ("prompt_tokens", "completion_tokens")),
    )


def read_anthropic(raw: str) -> Answer:
    """The answer in the body of a message. `input` sums all input tokens: the API reports cache
    reads and writes apart.

    Raises:
        ValueError: not the body of a message.
    """
    body = _object(raw)
    if not isinstance(body.get("content"), list):
        raise ValueError("no message")
    raw_usage = body.get("usage")
    usage = _mapping(raw_usage)
    cache_reads, cache_writes = (
        _count(usage.get("cache_read_input_tokens")),
        _count(usage.get("cache_creation_input_tokens")),
    )
    uncached = _count(usage.get("input_tokens"))
    details = _mapping(usage.get("output_tokens_details"))
    stop = _mapping(body.get("stop_details"))
    return Answer(
        raw=raw,
        stop_reason=_text(body.get("stop_reason")),
        stop_category=_text(stop.get("category")),
        usage=Usage(
            input=None if uncached is None else uncached + (cache_reads or 0) + (cache_writes or 0),
            cached_input=cache_reads,
            cache_write=cache_writes,
            output=_count(usage.get("output_tokens")),
            reasoning=_count(details.get("thinking_tokens")),
        ),
        model=_text(body.get("model")),
        odd_usage=_odd_usage(raw_usage, ("input_tokens", "output_tokens")),
    )


def text_of(raw: str) -> str:
    """The text that the model wrote, from either API's body.

    Raises:
        ValueError: the body holds no text.
    """
    body = _object(raw)
    if isinstance(content := body.get("content"), list):
        parts = [_mapping(block).get("text") for block in content if _mapping(block).get("type") == "text"]
        text = "".join(part for part in parts if isinstance(part, str)) if parts else None
    else:
        choices = body.get("choices")
        first = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
        text = _mapping(first.get("message")).get("content")
    if not isinstance(text, str):
        raise ValueError("the answer holds no text")
    return text


def _object(raw: str) -> Mapping[str, Any]:
    try:
        body = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(body, dict):
        raise ValueError("no JSON object")
    return body


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS else None


def _odd_usage(usage: Any, names: tuple[str, str]) -> str | None:
    """Which of the two counts that decide the price is missing or invalid; None if both can be
    read."""
    if not isinstance(usage, dict):
        return NO_COUNTS
    for name in names:
        if _count(usage.get(name)) is None:
            return f"its {name} is {one_line(json.dumps(usage.get(name)), 40)}"
    return None


def _text(value: Any) -> str | None:
    """A text of the provider's own, such as its stop reason, made safe to show."""
    return one_line(value.encode("utf-8", "replace").decode(), 200) if isinstance(value, str) else None
