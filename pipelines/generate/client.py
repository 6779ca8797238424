"""One small protocol for every provider: send a request once, then return its answer or raise its
fate.

The official SDKs do the talking, but their retries are off: they would obey a `retry-after` of
hours, retry exhausted quotas and spend past a budget. This module holds what both clients share. It
classifies errors, reads rate-limit headers, and keeps keys out of messages.
"""

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Protocol, Self

import httpx2

from pipelines.generate.answers import Answer, CallError, Fate, Usage
from pipelines.generate.bodies import EXCERPT_BYTES, Cap, CappedStream, TooLarge
from pipelines.generate.journal import Request
from pipelines.generate.keys import without
from pipelines.generate.pacing import Limits, RateLimit

# Not the word "billing" alone: messages of ordinary rate limits link to the billing page.
QUOTA = re.compile(
    r"insufficient_quota|billing_(error|hard_limit|not_active)|credit balance|spend_limit|exceeded your current quota",
    re.I,
)
REFUSED_BY_FILTER = ("content_filter", "content_policy_violation")
TOO_LONG = ("context_length_exceeded", "string_above_max_length", "request_too_large", "exceed_context_size_error")
# How Anthropic, OpenAI (with a 429 that never passes), vLLM and others say that one request is too
# long.
TOO_LONG_MESSAGE = re.compile(
    r"prompt is too long|request too large|(exceed|maximum) context|context (length|size|limit)", re.I
)
# A gateway gave up; the provider behind it may have answered.
MAYBE_BILLED = {408, 499, 502, 504, *range(520, 528)}
TURNED_AWAY = {503, 529}
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
# Exception → the problem in words, subclasses before their base classes.
CONNECTION_PROBLEMS: dict[type[Exception], str] = {
    httpx2.ConnectTimeout: "no connection in time",
    httpx2.TimeoutException: "no answer in time",
    httpx2.ConnectError: "cannot connect",
    httpx2.NetworkError: "the connection broke off",
    httpx2.RemoteProtocolError: "the connection broke off",
}
EXCERPT_CHARS = 300
KEEPALIVE_SECONDS = 4.0


class Client(Protocol):
    """One provider's API."""

    async def answer(self, request: Request) -> Answer:
        """Send `request` once.

        Raises:
            CallError: no answer came; its `fate` tells what happened to the request.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def http_client(base_url: str | None, *, slots: int, cap: Cap, key: str | None) -> httpx2.AsyncClient:
    """An HTTP client for `slots` requests at once. A loopback server is reached without the
    environment's proxies.

    It decodes bodies up to `cap` and removes `key` from response headers, which the SDKs may log.
    """
    loopback = base_url is not None and httpx2.URL(base_url).host in ("127.0.0.1", "localhost", "::1")
    # Many servers close a connection after 5 idle seconds. A request sent at that moment would be
    # in doubt.
    limits = httpx2.Limits(
        max_connections=slots + 4, max_keepalive_connections=slots + 4, keepalive_expiry=KEEPALIVE_SECONDS
    )

    async def guard(response: httpx2.Response) -> None:
        encodings = [
            value.strip().lower() for value in response.headers.get_list("content-encoding", split_commas=True)
        ]
        response.stream = CappedStream(response.stream, encodings, cap)
        # These headers describe the compressed body, but this body is already decompressed.
        ours = ("content-encoding", "content-length")
        headers = [(name, without(value, key)) for name, value in response.headers.multi_items() if name not in ours]
        response.headers = httpx2.Headers([(name.encode(), value.encode()) for name, value in headers])

    return httpx2.AsyncClient(
        trust_env=not loopback,
        # So that SSL_CERT_FILE applies to a loopback server, too.
        verify=httpx2.create_ssl_context(),
        limits=limits,
        follow_redirects=False,
        headers={"accept-encoding": "gzip, deflate"},
        event_hooks={"response": [guard]},
    )


async def timed_answer(
    create: Callable[[], Awaitable[Any]], parse: Callable[[str], Answer], *, key: str | None, timeout_seconds: float
) -> Answer:
    """Call the SDK once within `timeout_seconds` in all; answers and errors come without `key`.

    Raises:
        CallError: no answer came.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_seconds):
            response = await create()
    except TimeoutError:
        raise CallError(f"no answer within {timeout_seconds:g} s", "unknown") from None
    except Exception as error:
        if hasattr(error, "status_code"):
            return refusal_or_error(error, key)
        raise _connection_error(error, key) from None
    raw = without(response.http_response.text, key)
    try:
        answer = parse(raw)
    except ValueError as problem:
        # A proxy's page or half a body: the request may have been billed all the same.
        message = f"HTTP {response.http_response.status_code}, but no answer in it ({problem}): {raw[:EXCERPT_CHARS]!r}"
        raise CallError(message, "unknown", raw=raw[:EXCERPT_BYTES]) from None
    milliseconds = (time.monotonic() - started) * 1000
    return replace(answer, latency_ms=milliseconds, limits=limits_in(response.http_response.headers, answer.usage))


def native_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` in the form that both APIs take: constraints that they do not enforce become
    descriptions.

    Raises:
        CallError: the schema has no such form.
    """
    from anthropic import transform_schema

    try:
        return transform_schema(schema)
    except Exception as error:
        # The SDK raises arbitrary exceptions for schemas that it does not support.
        raise CallError(f"the record's schema cannot be put in the API's form: {error}", "stopped") from None


def refusal_or_error(error: Any, key: str | None) -> Answer:
    """The answer, if the HTTP error is a content filter's refusal; any other error is raised.

    Raises:
        CallError: its fate follows from the status and the provider's own codes.
    """
    # Codes and message. The SDKs differ in whether `body` is the whole body or its `error` object.
    status, headers = error.status_code, error.response.headers
    body = _mapping(error.body)
    error_body = _mapping(body.get("error")) or body
    details = _mapping(error_body.get("details"))
    codes = {
        str(value) for value in (error_body.get("code"), error_body.get("type"), details.get("error_code")) if value
    }
    reason = error_body.get("message")
    if 300 <= status < 400:
        location = headers.get("location", "nowhere")[:EXCERPT_CHARS]
        reason = (
            f"it redirects to {location}, and no redirect is followed, since the key would go along: "
            "set base_url to where the API is"
        )
    message = without(f"HTTP {status}: {reason or error.message}", key)[: 4 * EXCERPT_CHARS]

    # A content filter's refusal is an answer that costs nothing.
    if status == 400 and codes & set(REFUSED_BY_FILTER):
        return Answer(
            raw=without(error.response.text, key), stop_reason="content_filter", usage=Usage(input=0, output=0)
        )
    fate = fate_of(status, codes, message)
    raise CallError(message, fate, retry_after=retry_after_in(headers), limits=limits_in(headers)) from None


def fate_of(status: int, codes: set[str], message: str) -> Fate:
    """The fate of a request that was answered with an error status. The order of the checks
    matters."""
    # A gateway timed out or lost the connection: the provider may have answered and billed the
    # request.
    if status in MAYBE_BILLED:
        return "unknown"

    # The provider has no capacity right now; the same request may succeed later.
    if status in TURNED_AWAY:
        return "overloaded"

    # This request is too long for the model, others are not. Checked before rate limits, since
    # OpenAI answers a request that is larger than the whole limit with a 429.
    if status == 413 or codes & set(TOO_LONG) or (status in (400, 429) and TOO_LONG_MESSAGE.search(message)):
        return "impossible"

    # The money or the quota is used up: no later request can succeed. Checked before rate limits,
    # since this comes as a 429, too.
    if QUOTA.search(" ".join([*codes, message])):
        return "stopped"
    if status == 429:
        return "throttled"

    # A server error or a conflict may pass, so the request is tried again. All other statuses (a
    # wrong key, an unknown model, an invalid form) would meet every request.
    return "failed" if status >= 500 or status == 409 else "stopped"


def call_error(error: Exception, key: str | None) -> CallError:
    """The CallError for an exception of either SDK."""
    if not hasattr(error, "status_code"):
        return _connection_error(error, key)
    try:
        refusal_or_error(error, key)
    except CallError as classified:
        return classified
    return CallError(without(str(error), key), "stopped")


def _connection_error(error: Exception, key: str | None) -> CallError:
    """The CallError for an exception without an HTTP status."""
    # A wrong certificate or protocol would meet every request, so the provider stops.
    # A connection that merely ended during TLS may work next time.
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return CallError(without(_tls_problem(cause), key), "stopped")

    # If the connection was never made, the request was not sent. In all other cases it may have
    # been billed.
    cause = next((one for one in causes if isinstance(one, httpx2.RequestError)), None)
    fate: Fate = "unsent" if isinstance(cause, NEVER_SENT) else "unknown"
    message = _in_words(cause or error)
    raw = without(cause.start.decode("utf-8", "replace"), key) if isinstance(cause, TooLarge) else None
    return CallError(without(message, key)[:EXCERPT_CHARS], fate, raw=raw)


def _in_words(error: Exception) -> str:
    """The problem in words, without class names of libraries. The error's own message may be empty,
    as for a time-out."""
    if isinstance(error, TooLarge):
        return str(error)
    problem = next(
        (words for kind, words in CONNECTION_PROBLEMS.items() if isinstance(error, kind)), "the request failed"
    )
    return f"{problem}: {error}" if str(error) else problem


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the nearest first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def too_large(error: BaseException) -> TooLarge | None:
    """The TooLarge error among the causes of an SDK's error, if any."""
    return next((cause for cause in _causes(error) if isinstance(cause, TooLarge)), None)


def _tls_problem(error: ssl.SSLError) -> str:
    """Why there is no encrypted connection. A further try would not help."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the server's certificate is not trusted ({error.verify_message}): set SSL_CERT_FILE to the file of the "
            "certificate that signed it, or correct base_url"
        )
    return f"no encrypted connection ({error.reason}): does the server speak https? If not, start base_url with http://"


def retry_after_in(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, None if it does not. The header holds seconds,
    milliseconds or a date."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if (seconds := _number(text)) is not None or text is None:
        return seconds
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def limits_in(headers: Mapping[str, str], usage: Usage = Usage()) -> Limits:  # noqa: B008 (frozen)
    """The rate limits in the headers of either API. `usage`: the tokens that this one request
    used."""
    total, tokens_in, tokens_out = (float(count or 1) for count in (usage.total, usage.input, usage.output))
    limits = []
    for pattern, per_request in (
        ("x-ratelimit-{}-requests", 1.0),
        ("x-ratelimit-{}-tokens", total),
        ("anthropic-ratelimit-requests-{}", 1.0),
        ("anthropic-ratelimit-tokens-{}", total),
        ("anthropic-ratelimit-input-tokens-{}", tokens_in),
        ("anthropic-ratelimit-output-tokens-{}", tokens_out),
    ):
        limit = _number(headers.get(pattern.format("limit")))
        remaining = _number(headers.get(pattern.format("remaining")))
        reset = _seconds(headers.get(pattern.format("reset")))
        if limit and remaining is not None and reset is not None:
            limits.append(RateLimit(limit, min(remaining, limit), reset, per_request))
    return tuple(limits)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None


def _seconds(text: str | None) -> float | None:
    """A duration such as 6m0s, 120ms or 1.5, or a time in RFC 3339, as seconds from now."""
    if text is None:
        return None
    if parts := re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+\.?\d*)s)?(?:(\d+\.?\d*)ms)?", text):
        scale = (86400, 3600, 60, 1, 0.001)
        if any(parts.groups()):
            return sum(float(part) * unit for part, unit in zip(parts.groups(), scale, strict=True) if part)
    if (number := _number(text)) is not None:
        return number
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
