"""What comes back of a request: an answer, kept raw, or an error and what became of the request.

Both APIs' bodies are read leniently: what one says of itself (why it stopped, its tokens) is noted where it is there, and nothing
is validated before the raw body is stored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.generate.pacing import Limits
from pipelines.records.foreign_text import one_line

# What became of a request that got no answer:
Fate = Literal[
    "unsent",  # it never reached the provider: costs nothing, may be sent again
    "throttled",  # 429: turned away
    "overloaded",  # 529, 503: turned away
    "failed",  # 500: worked on without a result; providers do not bill those
    "unknown",  # timed out, cut off, or garbled: it may have been answered and billed
    "impossible",  # this one request can never be answered (too long); others can
    "stopped",  # key, quota, billing, model, form of the request: no further request has a chance
]


@dataclass(frozen=True)
class Usage:
    """Tokens as billed. `input` is all of them, those read from and written to a cache among them; None: not told."""

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
    """A provider's response as it came (`raw` is its body), with what it says of itself."""

    raw: str
    stop_reason: str | None = None
    stop_category: str | None = None
    usage: Usage = Usage()
    latency_ms: float | None = None
    limits: Limits = ()
    model: str | None = None  # that answered, by its own word
    odd_usage: str | None = None  # why its token counts are none

    @property
    def refused(self) -> bool:
        return self.stop_reason in REFUSALS


REFUSALS = ("refusal", "content_filter")
MOST_TOKENS = 10**12  # a count beyond it is none
TRUNCATIONS = ("max_tokens", "length", "model_context_window_exceeded")
ENDINGS = ("stop", "end_turn", "stop_sequence")


def ended(stop_reason: str | None) -> bool | None:
    """Whether an answer ended by itself; False where a limit of tokens cut it off, None where its reason says neither."""
    return True if stop_reason in ENDINGS else False if stop_reason in TRUNCATIONS else None


LONGEST_MESSAGE = 1500  # characters of a provider's message


class CallError(Exception):
    """The request got no answer; the message is the provider's own, without keys or headers, safe for a terminal or a log."""

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
    """What a chat completion says of itself.

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
    """What a message says of itself. All input tokens count: those read from and written to a cache are told apart by the API.

    Raises:
        ValueError: not the body of a message.
    """
    body = _object(raw)
    if not isinstance(body.get("content"), list):
        raise ValueError("no message")
    raw_usage = body.get("usage")
    usage = _mapping(raw_usage)
    read, written = _count(usage.get("cache_read_input_tokens")), _count(usage.get("cache_creation_input_tokens"))
    plain = _count(usage.get("input_tokens"))
    details = _mapping(usage.get("output_tokens_details"))
    stop = _mapping(body.get("stop_details"))
    return Answer(
        raw=raw,
        stop_reason=_text(body.get("stop_reason")),
        stop_category=_text(stop.get("category")),
        usage=Usage(
            input=None if plain is None else plain + (read or 0) + (written or 0),
            cached_input=read,
            cache_write=written,
            output=_count(usage.get("output_tokens")),
            reasoning=_count(details.get("thinking_tokens")),
        ),
        model=_text(body.get("model")),
        odd_usage=_odd_usage(raw_usage, ("input_tokens", "output_tokens")),
    )


def text_of(raw: str) -> str:
    """The text that the model wrote, out of either API's body.

    Raises:
        ValueError: there is none.
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
    """Which of the two counts that decide the price is missing, or is none; None where both can be read."""
    if not isinstance(usage, dict):
        return "it tells no token counts"
    for name in names:
        if _count(usage.get(name)) is None:
            return f"its {name} is {one_line(json.dumps(usage.get(name)), 40)}"
    return None


def _text(value: Any) -> str | None:
    """A word of the provider's own, such as why it stopped, as it may be shown."""
    return one_line(value.encode("utf-8", "replace").decode(), 200) if isinstance(value, str) else None
