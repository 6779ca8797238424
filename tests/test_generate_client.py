"""The wire format in our terms: fates of errors, limits from headers, bodies as the SDKs send them,
and no key anywhere."""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from pipelines.generate.answers import Answer, CallError, Usage, read_anthropic, read_openai, text_of
from pipelines.generate.client import call_error, fate_of, limits_in, retry_after_in, without
from pipelines.generate.clients import client_for
from pipelines.generate.journal import Request
from pipelines.generate.pacing import RateLimit
from pipelines.settings.providers import Provider
from tests.fakes.llm_server import Answers, ChatServer, Reply, chat_server, completion

KEY = "sk-planted-0123456789abcdef"
REQUEST = Request(
    provider="mine",
    model="tiny",
    messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A book for tonight?"}],
    parameters={"max_tokens": 64},
    schema={"type": "object", "properties": {"output": {"type": "string", "maxLength": 9}}},
)
GOOD = Reply(completion('{"output": "Stoner"}'))


@pytest.fixture(scope="module")
def running() -> Iterator[ChatServer]:
    with chat_server(always(GOOD)) as server:
        yield server


@pytest.fixture
def server(running: ChatServer) -> ChatServer:
    running.answer_with(always(GOOD))
    return running


def always(reply: Reply) -> Answers:
    return lambda *_: reply


def provider(server: ChatServer, **settings: Any) -> Provider:
    return Provider.model_validate(
        {"kind": "openai-compatible", "model": "tiny", "base_url": server.url, "timeout_seconds": 600, **settings}
    )


async def ask(settings: Provider, request: Request = REQUEST) -> Answer:
    async with client_for(settings) as client:
        return await client.answer(request)


def refusal(settings: Provider, request: Request = REQUEST) -> CallError:
    with pytest.raises(CallError) as raised:
        asyncio.run(ask(settings, request))
    return raised.value


# --- requests


@pytest.mark.parametrize("kind", ["openai", "openai-compatible"])
def test_parameters_that_the_sdk_does_not_know_reach_the_server_as_they_are(
    server: ChatServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    parameters = {"max_tokens": 64, "top_k": 3, "min_p": 0.1, "timeout": 5, "extra_body": {"a": 1}, "temperature": 0.2}
    asyncio.run(ask(provider(server, kind=kind), replace(REQUEST, parameters=parameters)))
    (body,) = server.bodies
    limit = {"openai": "max_completion_tokens", "openai-compatible": "max_tokens"}[kind]
    expected = {limit if name == "max_tokens" else name: value for name, value in parameters.items()}
    assert {name: body[name] for name in expected} == expected
    assert body["messages"] == REQUEST.messages


def test_a_plain_text_request_asks_for_no_form(server: ChatServer) -> None:
    asyncio.run(ask(provider(server), replace(REQUEST, schema={})))
    assert "response_format" not in server.bodies[0]


def test_a_loopback_server_is_reached_past_a_proxy(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert asyncio.run(ask(provider(server))).stop_reason == "stop"


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
@pytest.mark.parametrize("schema", [{"type": ["object", "null"]}, {"properties": {"a": True}, "type": "object"}])
def test_a_schema_that_the_api_has_no_form_for_stops_the_provider_before_anything_is_sent(
    server: ChatServer, kind: str, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    error = refusal(provider(server, kind=kind), replace(REQUEST, schema=schema))
    assert error.fate == "stopped" and "schema cannot be put in the API's form" in str(error)
    assert server.bodies == []


# --- keys stay out


@pytest.mark.parametrize("written", [KEY, f"{KEY}\n", f"{KEY}\r\n", f"  {KEY}\t"])
def test_a_key_is_sent_without_the_line_end_that_came_along(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("MINE_KEY", written)
    asyncio.run(ask(provider(server, api_key_env="MINE_KEY")))
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}"]


@pytest.mark.parametrize("written", [f"{KEY}\nmore", f"{KEY}\x00", f"{KEY}é", "", "   "])
def test_what_no_header_could_carry_is_no_key(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    # An environment variable cannot hold a NUL at all.
    if "\x00" not in written:
        monkeypatch.setenv("MINE_KEY", written)
    asyncio.run(ask(provider(server, api_key_env="MINE_KEY")))
    assert [headers["authorization"] for headers in server.headers] == ["Bearer none"]


def test_another_server_gets_nothing_that_the_environment_holds_for_openai(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, f"x: {KEY}" if name.endswith("HEADERS") else KEY)
    asyncio.run(ask(provider(server)))
    assert not any(KEY in value for headers in server.headers for value in headers.values())


LEAKING = {
    "a page": Reply(f"<html>who is {KEY}?</html>", content_type="text/html"),
    "an error": Reply(json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}), status=401),
    "a long error": Reply(json.dumps({"error": {"message": "x" * 1180 + KEY}}), status=401),
    "a refusal": Reply(json.dumps({"error": {"message": f"no, {KEY}", "code": "content_filter"}}), status=400),
    "an answer": Reply(completion(f"Your key is {KEY}.")),
}


@pytest.mark.parametrize("name", LEAKING)
def test_a_key_that_the_server_repeats_is_taken_out(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MINE_KEY", KEY)
    server.answer_with(always(LEAKING[name]))
    try:
        shown = asyncio.run(ask(provider(server, api_key_env="MINE_KEY"))).raw
    except CallError as error:
        shown = f"{error} {error.raw} {error!r}"
    assert "…" in shown or name == "a long error"
    assert KEY[:12] not in shown, "not even its beginning"


@pytest.mark.parametrize(
    "url",
    ["http://me:hunter2@host/v1", "http://hunter2@host/v1", "ftp://host", "host:80", "http://host:99999", "http://"],
)
def test_an_address_with_a_password_or_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Provider.model_validate({"kind": "openai-compatible", "model": "m", "base_url": url})
    message = raised.value.errors()[0]["msg"]
    assert "hunter2" not in message


# --- responses

NO_COMPLETIONS = {
    "page": Reply("<html>Sign in to the proxy</html>", content_type="text/html"),
    "no JSON": Reply("{not json"),
    "empty": Reply(""),
    "list": Reply("[1]"),
    "null": Reply("null"),
    "odd choice": Reply('{"choices": [7]}'),
    "an error with status 200": Reply('{"error": {"message": "upstream"}}'),
    "deep": Reply("[" * 100_000),
}


@pytest.mark.parametrize("name", NO_COMPLETIONS)
def test_a_body_that_is_no_completion_may_have_been_billed_and_is_shown(server: ChatServer, name: str) -> None:
    server.answer_with(always(NO_COMPLETIONS[name]))
    error = refusal(provider(server))
    assert error.fate == "unknown"
    assert "HTTP 200, but no answer in it" in str(error)
    assert error.raw == NO_COMPLETIONS[name].body


def test_an_answer_that_takes_too_long_may_have_been_billed(server: ChatServer) -> None:
    server.answer_with(always(replace(GOOD, after=1)))
    error = refusal(provider(server, timeout_seconds=0.2))
    assert error.fate == "unknown" and "no answer within 0.2 s" in str(error)


def test_a_server_that_is_not_there_was_not_sent_anything() -> None:
    server = ChatServer(always(GOOD), url="http://127.0.0.1:9/v1")
    assert refusal(provider(server)).fate == "unsent"


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with chat_server(always(GOOD)) as other, chat_server(always(Reply("", 307, location=other.url))) as server:
        assert refusal(provider(server)).fate == "stopped"
    assert other.bodies == []


@pytest.mark.parametrize(
    ("status", "code", "message", "fate"),
    [
        (401, "invalid_api_key", "Incorrect API key provided", "stopped"),
        (403, "", "not allowed", "stopped"),
        (404, "model_not_found", "The model does not exist", "stopped"),
        (400, "", "Invalid request", "stopped"),
        (402, "billing_error", "a problem with billing", "stopped"),
        (429, "insufficient_quota", "You exceeded your current quota", "stopped"),
        (400, "", "Your credit balance is too low to access the API", "stopped"),
        (429, "enforced_spend_limit_reached", "You have reached your specified spend limit", "stopped"),
        (400, "billing_hard_limit_reached", "Billing hard limit has been reached.", "stopped"),
        (429, "billing_not_active", "Your account is not active", "stopped"),
        (429, "rate_limit_exceeded", "Rate limit reached for gpt-x on requests per min (RPM): Limit 3.", "throttled"),
        (
            429,
            "rate_limit_exceeded",
            "Limit 3, Used 3. You can add a payment method at https://platform.openai.com/account/billing.",
            "throttled",
        ),
        (429, "rate_limit_exceeded", "Request too large for gpt-x on tokens per min (TPM): Limit 30000", "impossible"),
        (400, "context_length_exceeded", "too long", "impossible"),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", "impossible"),
        (400, "", "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000", "impossible"),
        (400, "BadRequestError", "This model's maximum context length is 4096 tokens.", "impossible"),
        (400, "exceed_context_size_error", "the request exceeds the available context size", "impossible"),
        (413, "request_too_large", "Request exceeds the maximum size", "impossible"),
        (503, "", "overloaded", "overloaded"),
        (529, "overloaded_error", "Overloaded", "overloaded"),
        (500, "api_error", "Internal server error", "failed"),
        (409, "", "conflict", "failed"),
        (408, "", "request timeout", "unknown"),
        (502, "", "Bad gateway", "unknown"),
        (504, "", "Gateway timeout", "unknown"),
        (524, "", "A timeout occurred", "unknown"),
    ],
)
def test_the_fate_of_a_request_by_its_error(
    server: ChatServer, status: int, code: str, message: str, fate: str
) -> None:
    assert fate_of(status, {code} - {""}, f"HTTP {status}: {message}") == fate
    body = Reply(json.dumps({"error": {"message": message, "code": code or None}}), status=status)
    server.answer_with(always(body))
    error = refusal(provider(server))
    assert error.fate == fate and message in str(error)


ODD_BODIES: list[Any] = [
    None,
    [],
    "text",
    7,
    {"error": None},
    {"error": []},
    {"error": {"message": {"a": 1}, "code": 429}},
]


@pytest.mark.parametrize("body", ODD_BODIES)
def test_an_error_of_any_form_is_an_error_with_its_status(server: ChatServer, body: Any) -> None:
    server.answer_with(always(Reply(json.dumps(body), status=500)))
    error = refusal(provider(server))
    assert error.fate == "failed" and "500" in str(error)


def test_what_a_content_filter_refused_is_an_answer_that_costs_nothing(server: ChatServer) -> None:
    body = {"error": {"message": "filtered", "code": "content_filter"}}
    server.answer_with(always(Reply(json.dumps(body), status=400)))
    answer = asyncio.run(ask(provider(server)))
    assert answer.refused and answer.usage == Usage(input=0, output=0)


def test_half_a_character_and_counts_that_are_none_become_what_can_be_stored(server: ChatServer) -> None:
    body = json.loads(completion("a"))
    body["choices"][0]["finish_reason"] = "\ud83d"
    body["usage"] = {"prompt_tokens": 10**30, "completion_tokens": -1, "total_tokens": True}
    answer = read_openai(json.dumps(body))
    assert (answer.stop_reason, answer.usage) == ("?", Usage())
    assert without("half \ud83d of it", None) == "half ? of it"
    server.answer_with(always(Reply('{"error": {"message": "half \\ud83d of it"}}', status=500)))
    assert str(refusal(provider(server))) == "HTTP 500: half ? of it"


def test_anthropics_input_is_all_of_it() -> None:
    usage = {"input_tokens": 10, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 5, "output_tokens": 7}
    details = {"output_tokens_details": {"thinking_tokens": 3}}
    answer = read_anthropic(json.dumps({"content": [], "stop_reason": "end_turn", "usage": usage | details}))
    assert answer.usage == Usage(input=35, cached_input=20, cache_write=5, output=7, reasoning=3)
    assert read_anthropic('{"content": [], "usage": null}').usage.known is False


def test_the_text_of_an_answer_is_read_from_either_body() -> None:
    assert (
        text_of('{"content": [{"type": "thinking"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}')
        == "ab"
    )
    assert text_of(completion("c")) == "c"
    for empty in ('{"content": []}', '{"choices": []}', completion(None), "[]", "7"):
        with pytest.raises(ValueError, match=r"no text|no JSON object"):
            text_of(empty)


# --- headers


def test_headers_of_openai_are_limits() -> None:
    headers = {
        "x-ratelimit-limit-requests": "1200", "x-ratelimit-remaining-requests": "300", "x-ratelimit-reset-requests": "6m0s",
        "x-ratelimit-limit-tokens": "40000", "x-ratelimit-remaining-tokens": "39000", "x-ratelimit-reset-tokens": "120ms",
    }  # fmt: skip
    assert limits_in(headers, Usage(input=90, output=10)) == (
        RateLimit(1200, 300, 360),
        RateLimit(40000, 39000, 0.12, per_request=100),
    )


def test_headers_of_anthropic_are_limits() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2100-01-01T00:00:00Z", "anthropic-ratelimit-output-tokens-limit": "8000",
        "anthropic-ratelimit-output-tokens-remaining": "9000", "anthropic-ratelimit-output-tokens-reset": "2001-01-01T00:00:00Z",
    }  # fmt: skip
    requests, tokens = limits_in(headers, Usage(input=90, output=10))
    assert (requests.limit, requests.remaining) == (50, 0) and requests.reset_seconds > 1e9
    assert tokens == RateLimit(8000, 8000, 0, per_request=10), "never more than the limit, never in the past"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_how_long_to_wait_is_read_from_any_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_in(headers) == seconds


def test_headers_that_are_nonsense_tell_nothing_and_break_nothing() -> None:
    rng = random.Random(2)
    letters = [
        "0",
        "9",
        "1e999",
        ".",
        "-",
        "s",
        "m",
        "h",
        "d",
        "ms",
        "T",
        ":",
        "Z",
        "nan",
        " ",
        "٣",
        "Mon, ",
        "2026-",
        "é",
        ",",
    ]
    names = [f"x-ratelimit-{part}-requests" for part in ("limit", "remaining", "reset")]
    names += [f"anthropic-ratelimit-requests-{part}" for part in ("limit", "remaining", "reset")]
    for _ in range(3000):
        headers = {name: "".join(rng.choices(letters, k=rng.randint(0, 5))) for name in [*names, "retry-after"]}
        for limit in limits_in(headers):
            assert limit.limit > 0 and limit.reset_seconds >= 0
            assert limit.pace is None or limit.pace >= 0
        assert (retry_after_in(headers) or 0) >= 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx2.ReadTimeout(""), "no answer in time"),
        (httpx2.ConnectTimeout(""), "no connection in time"),
        (httpx2.ConnectError("refused"), "cannot connect: refused"),
        (httpx2.RemoteProtocolError("half an answer"), "the connection broke off: half an answer"),
        (RuntimeError("odd"), "the request failed: odd"),
    ],
)
def test_what_broke_is_said_without_the_name_of_a_class(error: Exception, message: str) -> None:
    assert str(call_error(error, None)) == message
