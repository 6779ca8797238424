"""The fake provider, driven with the official SDKs: its answers, refusals, faults and counts."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import Message
from openai.types import Batch
from openai.types.chat import ChatCompletion

from tests.fakes.answers import compose, judged
from tests.fakes.batches import multipart, page
from tests.fakes.behavior import Behavior, Fault, FixedWindow, TokenBucket, Wire, duration
from tests.fakes.provider import SERVER, FakeProvider, fake_provider
from tests.fakes.wire import read_request

KEY = "sk-planted-0123456789abcdef"
WIRES: list[Wire] = ["openai", "anthropic"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "instruction": {"type": "string", "minLength": 10, "maxLength": 24},
        "output": {"type": "string", "minLength": 300},
        "level": {"enum": ["easy", "hard"]},
        "score": {"type": "integer", "minimum": 3, "maximum": 4},
        "sure": {"type": "boolean"},
        "notes": {"type": "array", "items": {"$ref": "#/$defs/note"}, "minItems": 1},
    },
    "required": ["instruction", "output", "level", "score", "sure", "notes"],
    "additionalProperties": False,
    "$defs": {
        "note": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "weight": {"anyOf": [{"type": "number"}, {"type": "null"}]}},
            "required": ["text", "weight"],
            "additionalProperties": False,
        }
    },
}
VERDICT: dict[str, Any] = {
    "type": "object",
    "properties": {"verdict": {"enum": ["A", "B", "tie"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
Done = TypeVar("Done")


@dataclass(frozen=True)
class Clients:
    """Both SDKs against one server."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    async def ask(self, wire: Wire, prompt: str = "Hello", schema: Any = None, **more: Any) -> str | None:
        """The answer's text."""
        if wire == "openai":
            return (await self.ask_openai(prompt, schema, **more)).choices[0].message.content
        return "".join(
            block.text for block in (await self.ask_anthropic(prompt, schema, **more)).content if block.type == "text"
        )

    async def ask_openai(self, prompt: str = "Hello", schema: Any = None, **more: Any) -> ChatCompletion:
        if schema:
            more["response_format"] = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema}}
        return await self.openai.chat.completions.create(
            model="some-model", messages=[{"role": "user", "content": prompt}], **more
        )

    async def ask_anthropic(self, prompt: str = "Hello", schema: Any = None, **more: Any) -> Message:
        if schema:
            more["output_config"] = {"format": {"type": "json_schema", "schema": anthropic.transform_schema(schema)}}
        more = {"max_tokens": 2000, **more}
        return await self.anthropic.messages.create(
            model="some-model", messages=[{"role": "user", "content": prompt}], **more
        )


def with_clients(server: FakeProvider, use: Callable[[Clients], Awaitable[Done]], *, timeout: float = 600.0) -> Done:
    async def run() -> Done:
        http = httpx2.AsyncClient(trust_env=False, limits=httpx2.Limits(max_connections=200))
        async with http:
            made = {"api_key": KEY, "max_retries": 0, "timeout": timeout, "http_client": http}
            return await use(
                Clients(
                    openai.AsyncOpenAI(base_url=server.openai_url, **made),
                    anthropic.AsyncAnthropic(base_url=server.anthropic_url, **made),
                )
            )

    return asyncio.run(run())


def scripted(*faults: Fault | None) -> Behavior:
    """Each prompt meets these faults, one after the other, and none afterwards."""
    return Behavior(script=lambda wire, prompt, nth: faults[nth - 1] if nth <= len(faults) else None)


def failing_call(name: str, fault: Fault) -> Behavior:
    return Behavior(script=lambda wire, prompt, nth: fault if (prompt, nth) == (name, 1) else None)


@pytest.fixture
def server(running: FakeProvider) -> FakeProvider:
    """A server without any requests."""
    running.behavior = Behavior()
    running.reset()
    return running


def assert_fits(text: str | None) -> None:
    record = json.loads(text or "")
    assert list(record) == SCHEMA["required"]
    assert 10 <= len(record["instruction"]) <= 24
    assert len(record["output"]) >= 300
    assert record["level"] in ("easy", "hard") and record["score"] in (3, 4) and isinstance(record["sure"], bool)
    assert record["notes"] and all(isinstance(note["weight"], float) for note in record["notes"])


@pytest.mark.parametrize("wire", WIRES)
def test_answers_fit_the_schema_and_differ(server: FakeProvider, wire: Wire) -> None:
    async def use(clients: Clients) -> list[str | None]:
        prompts = ["One", "Two", "Two", "In Korean, please"]
        return [await clients.ask(wire, prompt, SCHEMA) for prompt in prompts] + [await clients.ask(wire, "Plain")]

    *records, plain = with_clients(server, use)
    for record in records:
        assert_fits(record)
    assert len(set(records)) == 4
    assert any("가" <= letter <= "힣" for letter in records[3] or "")
    assert plain and not plain.startswith("{")


@pytest.mark.parametrize("wire", WIRES)
def test_every_answer_is_in_the_ledger(server: FakeProvider, wire: Wire) -> None:
    server.behavior = Behavior(
        reasoning_tokens=5, cached_share=0.5, cache_write_share=0.25, price_input=4.0, price_output=8.0
    )
    prompt = "안녕하세요, a prompt of some length that says nothing much at all"

    async def use(clients: Clients) -> tuple[int, int]:
        if wire == "openai":
            usage = (await clients.ask_openai(prompt, SCHEMA)).usage
            assert usage and usage.prompt_tokens_details and usage.completion_tokens_details
            assert usage.completion_tokens_details.reasoning_tokens == 5
            assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens // 2
            return usage.prompt_tokens, usage.completion_tokens
        spent = (await clients.ask_anthropic(prompt, SCHEMA)).usage
        written, read = spent.cache_creation_input_tokens or 0, spent.cache_read_input_tokens or 0
        assert written and read
        return spent.input_tokens + written + read, spent.output_tokens

    before = time.time()
    given, made = with_clients(server, use)
    schema = SCHEMA if wire == "openai" else anthropic.transform_schema(SCHEMA)
    assert given <= len((prompt + json.dumps(schema, ensure_ascii=False)).encode()) + 8
    account = server.ledger.of(wire)
    assert (account.requests, account.answers, account.input_tokens, account.output_tokens) == (1, 1, given, made)
    read, written = given // 2, given // 4
    plain = given - read - written
    assert account.dollars == pytest.approx((plain * 4 + read * 0.3 + written * 3.75 + made * 8) / 1e6)
    assert account.attempts == account.answered == Counter({prompt: 1})
    [received] = server.ledger.received
    assert received.body["messages"][0]["content"] == prompt and before <= received.at <= time.time()


@pytest.mark.parametrize("wire", WIRES)
def test_no_answer_is_longer_than_max_tokens(server: FakeProvider, wire: Wire) -> None:
    async def use(clients: Clients) -> tuple[str | None, int, str | None]:
        if wire == "openai":
            one = await clients.ask_openai("Hello", SCHEMA, max_completion_tokens=7)
            assert one.usage
            return one.choices[0].message.content, one.usage.completion_tokens, one.choices[0].finish_reason
        message = await clients.ask_anthropic("Hello", SCHEMA, max_tokens=7)
        [block] = message.content
        assert block.type == "text"
        return block.text, message.usage.output_tokens, message.stop_reason

    text, tokens, stop = with_clients(server, use)
    assert text and len(text.encode()) <= 28 and tokens == 7
    assert stop == ("length" if wire == "openai" else "max_tokens")


@pytest.mark.parametrize(
    ("judge", "prompt", "verdict"),
    [
        ("longer", "Which is better?\n\nAnswer A:\nshort\n\nAnswer B:\na good deal longer", "B"),
        ("longer", "<a>a good deal longer</a>\n<b>short</b>", "A"),
        ("longer", "[A]\none\n[B]\nfour", "B"),
        ("longer", "nothing to compare", "A"),
        ("first", "A: short\nB: a good deal longer", "A"),
    ],
)
def test_judges(server: FakeProvider, judge: Literal["longer", "first"], prompt: str, verdict: str) -> None:
    server.behavior = Behavior(judge=judge)
    for wire in WIRES:
        answer = with_clients(server, lambda clients, wire=wire: clients.ask(wire, prompt, VERDICT))
        assert json.loads(answer or "") == {"verdict": verdict}


def test_a_judge_may_be_a_function_or_chance() -> None:
    request = read_request("openai", {"model": "m", "messages": [{"content": "x"}]}, strict=True)
    request = replace(request, schema=VERDICT)
    verdicts = {compose(request, Behavior(judge="random"), nth, None).text for nth in range(50)}
    assert len(verdicts) == 3
    last = Behavior(judge=lambda prompt, verdicts: verdicts[-1])
    assert compose(request, last, 1, None).text == '{"verdict": "tie"}'
    assert judged(Behavior(), "First answer: a\nSecond answer: bcd", ["first", "second"], random.Random(1)) == "second"


def test_schemas_the_provider_refuses(server: FakeProvider) -> None:
    async def use(clients: Clients) -> None:
        unchanged: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
        with pytest.raises(anthropic.BadRequestError, match="maxLength"):
            await clients.ask_anthropic(output_config=unchanged)
        loose = {"type": "object", "properties": {"a": {"type": "string"}}}
        strict = {"type": "json_schema", "json_schema": {"name": "r", "schema": loose, "strict": True}}
        with pytest.raises(openai.BadRequestError, match="additionalProperties"):
            await clients.ask_openai(response_format=strict)
        server.behavior = Behavior(strict_schemas=False)
        await clients.ask_anthropic(output_config=unchanged)

    with_clients(server, use)


ERRORS: list[tuple[Fault, type[Exception], type[Exception]]] = [
    ("overloaded", openai.InternalServerError, anthropic.OverloadedError),
    ("server_error", openai.InternalServerError, anthropic.InternalServerError),
    ("unavailable", openai.InternalServerError, anthropic.ServiceUnavailableError),
    ("rate_limited", openai.RateLimitError, anthropic.RateLimitError),
    ("unauthorized", openai.AuthenticationError, anthropic.AuthenticationError),
    ("forbidden", openai.PermissionDeniedError, anthropic.PermissionDeniedError),
    ("unknown_model", openai.NotFoundError, anthropic.NotFoundError),
    ("invalid_request", openai.BadRequestError, anthropic.BadRequestError),
    ("insufficient_quota", openai.RateLimitError, anthropic.PaymentRequiredError),
    ("credit_too_low", openai.BadRequestError, anthropic.BadRequestError),
    ("spend_limit", openai.RateLimitError, anthropic.RateLimitError),
]


@pytest.mark.parametrize(("fault", "of_openai", "of_anthropic"), ERRORS)
def test_errors_cost_nothing(
    server: FakeProvider, fault: Fault, of_openai: type[Exception], of_anthropic: type[Exception]
) -> None:
    server.behavior = scripted(fault)

    async def use(clients: Clients) -> list[Exception]:
        caught = []
        for wire, expected in zip(WIRES, (of_openai, of_anthropic), strict=True):
            with pytest.raises(expected) as error:
                await clients.ask(wire)
            caught.append(error.value)
            assert await clients.ask(wire)
        return caught

    caught = with_clients(server, use)
    assert all(server.ledger.of(wire).answers == 1 and server.ledger.of(wire).faults == {fault: 1} for wire in WIRES)
    if fault == "unauthorized":
        assert all(KEY in str(error) for error in caught)
    if fault == "insufficient_quota":
        assert isinstance(caught[0], openai.RateLimitError) and caught[0].code == "insufficient_quota"
    if fault == "credit_too_low":
        assert "credit balance is too low" in str(caught[1])
    if fault == "spend_limit":
        assert isinstance(caught[1], anthropic.APIStatusError)
        assert caught[1].error_code == "enforced_spend_limit_reached"


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fault", ["cut_before", "cut", "cut_body", "hang", "hang_after"])
def test_lost_answers_are_paid_if_they_were_made(server: FakeProvider, wire: Wire, fault: Fault) -> None:
    server.behavior = scripted(fault)
    sdk = openai if wire == "openai" else anthropic
    expected = sdk.APITimeoutError if fault.startswith("hang") else sdk.APIConnectionError

    async def use(clients: Clients) -> None:
        with pytest.raises(expected):
            await clients.ask(wire)
        assert await clients.ask(wire)

    with_clients(server, use, timeout=0.4)
    account, paid = server.ledger.of(wire), int(fault in ("cut", "cut_body", "hang_after"))
    assert (account.requests, account.answers, account.undelivered) == (2, 1 + paid, paid)
    assert account.answered["Hello"] == 1 + paid and account.in_progress == 0


@pytest.mark.parametrize("wire", WIRES)
def test_broken_answers_are_paid(server: FakeProvider, wire: Wire) -> None:
    server.behavior = scripted("malformed", "breaks_schema", "truncated", "empty")

    async def use(clients: Clients) -> list[str | None]:
        with pytest.raises(json.JSONDecodeError):
            await clients.ask(wire, "Hello", SCHEMA)
        return [await clients.ask(wire, "Hello", SCHEMA) for _ in range(4)]

    broken, truncated, empty, good = with_clients(server, use)
    assert json.loads(broken or "") == {"unexpected": "field"}
    with pytest.raises(json.JSONDecodeError):
        json.loads(truncated or "")
    assert not empty
    assert_fits(good)
    assert server.ledger.of(wire).answers == 5


def test_refusals(server: FakeProvider) -> None:
    server.behavior = replace(scripted("refusal", "content_filter"), refusal_category="frontier_llm")

    async def use(clients: Clients) -> None:
        message = await clients.ask_anthropic("Hello", SCHEMA)
        assert message.stop_reason == "refusal" and message.content == []
        assert message.stop_details and message.stop_details.category == "frontier_llm"
        [choice] = (await clients.ask_openai("Hello", SCHEMA)).choices
        assert choice.message.refusal and choice.message.content is None
        [choice] = (await clients.ask_openai("Hello", SCHEMA)).choices
        assert choice.finish_reason == "content_filter"

    with_clients(server, use)


def test_faults_by_chance_are_the_same_for_one_seed() -> None:
    def drawn(seed: int) -> list[Fault | None]:
        behavior = Behavior(seed=seed, faults={"cut": 0.2, "empty": 0.3})
        return [behavior.fault_for("openai", f"prompt {number}", 1) for number in range(1000)]

    assert drawn(1) == drawn(1) != drawn(2)
    counts = Counter(drawn(1))
    assert 150 < counts["cut"] < 250 and 250 < counts["empty"] < 350


@pytest.mark.parametrize("wire", WIRES)
def test_a_token_bucket_refuses_at_once(server: FakeProvider, wire: Wire) -> None:
    server.behavior = Behavior(rate=0.5, burst=3, latency=1.0)

    ended: list[str] = []

    async def use(clients: Clients) -> None:
        async def call() -> None:
            try:
                await clients.ask(wire)
                ended.append("answered")
            except (openai.RateLimitError, anthropic.RateLimitError) as error:
                assert error.response.headers["retry-after"] in ("1", "2")
                ended.append("refused")

        await asyncio.gather(*(call() for _ in range(8)))

    with_clients(server, use)
    account = server.ledger.of(wire)
    assert (account.limited, account.answers, account.requests) == (5, 3, 8)
    assert ended == ["refused"] * 5 + ["answered"] * 3, "a refusal takes less time than an answer"
    assert account.most_at_once >= 3


def test_fixed_windows_and_token_buckets() -> None:
    window, bucket = FixedWindow(10, 2), TokenBucket(10, 5)
    start = time.monotonic()
    admitted = {"window": 0, "bucket": 0}
    for step in range(300):
        for name, limiter in (("window", window), ("bucket", bucket)):
            now = start + step / 100
            if limiter.wait(1, now) <= 1e-9:
                limiter.take(1, now)
                admitted[name] += 1
    # 20 in each of the two windows that three seconds touch.
    assert admitted["window"] == 40
    assert admitted["bucket"] in (34, 35)
    assert 0 < window.wait(1, start + 2.99) < 1.02
    assert window.per_minute == bucket.per_minute == 600


def test_tokens_per_minute(server: FakeProvider) -> None:
    server.behavior = Behavior(tokens_per_minute=60, retry_after=False)

    async def use(clients: Clients) -> None:
        for wire in WIRES:
            await clients.ask(wire, "a" * 100)
            with pytest.raises((openai.RateLimitError, anthropic.RateLimitError), match="token") as error:
                await clients.ask(wire, "a" * 200)
            assert "retry-after" not in error.value.response.headers

    with_clients(server, use)


def test_rate_limit_headers(server: FakeProvider) -> None:
    server.behavior = Behavior(rate=5, burst=10, tokens_per_minute=6000)

    async def use(clients: Clients) -> tuple[Any, Any]:
        body: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
        first = await clients.openai.chat.completions.with_raw_response.create(**body)
        second = await clients.anthropic.messages.with_raw_response.create(**body)
        return first.headers, second.headers

    of_openai, of_anthropic = with_clients(server, use)
    assert of_openai["x-ratelimit-limit-requests"] == "300"
    assert of_openai["x-ratelimit-remaining-requests"] == "9"
    assert of_openai["x-ratelimit-reset-requests"].endswith("ms")
    assert of_openai["x-ratelimit-limit-tokens"] == "6000"
    assert of_openai["x-request-id"]
    assert of_anthropic["anthropic-ratelimit-requests-limit"] == "300"
    assert of_anthropic["anthropic-ratelimit-requests-remaining"] == "9"
    assert int(of_anthropic["anthropic-ratelimit-input-tokens-remaining"]) < 6000
    reset = datetime.fromisoformat(of_anthropic["anthropic-ratelimit-output-tokens-reset"])
    assert -1 < (reset - datetime.now(UTC)).total_seconds() < 3
    assert of_anthropic["request-id"]
    server.behavior = Behavior(rate=5, rate_headers=False)
    assert not [name for name in with_clients(server, use)[0] if name.startswith("x-ratelimit")]
    assert [duration(seconds) for seconds in (0.12, 1, 8.64, 359.5, 3725)] == ["120ms", "1s", "8.64s", "6m0s", "1h2m5s"]


def test_keys_models_and_missing_fields(server: FakeProvider) -> None:
    server.behavior = Behavior(api_keys=("another",), models=("a-model", "some-model"))

    async def use(clients: Clients) -> None:
        with pytest.raises(openai.AuthenticationError, match=KEY):
            await clients.ask_openai()
        server.behavior = replace(server.behavior, api_keys=(KEY,), models=("a-model",))
        with pytest.raises(anthropic.NotFoundError, match="some-model"):
            await clients.ask_anthropic()
        with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required"):
            await clients.anthropic.post("/v1/messages", cast_to=object, body={"model": "a-model", "messages": [{}]})
        assert [model.id async for model in clients.openai.models.list()] == ["a-model"]
        assert [model.id async for model in clients.anthropic.models.list()] == ["a-model"]

    with_clients(server, use)
    by_header = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    body = {
        "model": "a-model",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    }
    with httpx2.Client(base_url=server.anthropic_url, trust_env=False, timeout=600) as http:
        assert http.post("/v1/messages", json=body, headers=by_header).status_code == 200
        assert http.post("/v1/messages", json=body, headers={"x-api-key": KEY}).status_code == 400
        assert http.post("/v1/messages", content=b"{", headers=by_header).status_code == 400


def test_a_hundred_at_once(server: FakeProvider) -> None:
    server.behavior = Behavior(latency=1.0)

    async def use(clients: Clients) -> list[Any]:
        return await asyncio.gather(*(clients.ask(WIRES[number % 2], f"prompt {number}") for number in range(100)))

    assert len(with_clients(server, use)) == 100
    assert all(server.ledger.of(wire).answers == 50 for wire in WIRES)
    assert all(server.ledger.of(wire).most_at_once > 32 for wire in WIRES)
    assert len(server.ledger.received) == 100


def lines(*prompts: str, schema: dict[str, Any] | None = None, model: str = "m") -> bytes:
    """An input file of OpenAI's batches."""
    body: dict[str, Any] = {"model": model, "max_tokens": 900}
    if schema:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema}}
    items = [
        {
            "custom_id": f"id-{prompt}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**body, "messages": [{"role": "user", "content": prompt}]},
        }
        for prompt in prompts
    ]
    return "".join(json.dumps(item) + "\n" for item in items).encode()


async def start_openai(clients: Clients, content: bytes, **metadata: str) -> Batch:
    file = await clients.openai.files.create(file=("in.jsonl", content), purpose="batch")
    assert (file.bytes, file.purpose, file.filename) == (len(content), "batch", "in.jsonl")
    return await clients.openai.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    )


async def ended_openai(clients: Clients, batch: Batch) -> Batch:
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        await asyncio.sleep(0.02)
        batch = await clients.openai.batches.retrieve(batch.id)
    return batch


async def read_jsonl(clients: Clients, file_id: str | None) -> list[dict[str, Any]]:
    content = await clients.openai.files.content(file_id) if file_id else None
    return [json.loads(line) for line in content.text.splitlines()] if content else []


PROMPTS = [f"p{number}" for number in range(20)]


def test_openai_batches(server: FakeProvider) -> None:
    server.behavior = Behavior(batch_seconds=0.3)

    async def use(clients: Clients) -> None:
        content = lines(*PROMPTS, schema=SCHEMA)
        batch = await start_openai(clients, content, run="r1")
        assert batch.status == "validating" and batch.metadata == {"run": "r1"}
        assert server.ledger.openai.batch_items == 20 and server.ledger.openai.batch_answers == 0
        assert (await clients.openai.files.content(batch.input_file_id)).read() == content
        batch = await ended_openai(clients, batch)
        assert batch.status == "completed" and batch.error_file_id is None and batch.completed_at
        assert batch.request_counts and batch.request_counts.completed == batch.request_counts.total == 20
        answers = await read_jsonl(clients, batch.output_file_id)
        ids = [answer["custom_id"] for answer in answers]
        assert ids != sorted(ids) and set(ids) == {f"id-{prompt}" for prompt in PROMPTS}
        completion = ChatCompletion.model_validate(answers[0]["response"]["body"])
        assert_fits(completion.choices[0].message.content)

    with_clients(server, use)
    account = server.ledger.openai
    assert account.batch_answers == 20 and account.answers == 0
    assert account.dollars == pytest.approx((account.input_tokens * 3 + account.output_tokens * 15) / 2e6)
    assert account.answered == Counter(PROMPTS)
    assert account.calls["POST /v1/batches"] == 1


def test_openai_batches_that_fail(server: FakeProvider) -> None:
    async def use(clients: Clients) -> None:
        server.behavior = Behavior(batch_seconds=0.02, batch_error_share=0.3, batch_expire_share=0.3)
        batch = await ended_openai(clients, await start_openai(clients, lines(*PROMPTS)))
        answers = await read_jsonl(clients, batch.output_file_id)
        failures = await read_jsonl(clients, batch.error_file_id)
        codes = Counter(
            line["error"]["code"] if line["error"] else line["response"]["status_code"] for line in failures
        )
        assert batch.status == "expired" and set(codes) == {"batch_expired", 500}
        assert len(answers) + len(failures) == 20 and len(answers) == server.ledger.openai.batch_answers > 0
        server.behavior = Behavior(batch_seconds=0.02, batch_outcome="failed")
        batch = await ended_openai(clients, await start_openai(clients, lines(*PROMPTS)))
        assert batch.status == "failed" and batch.errors and batch.errors.data and batch.output_file_id is None
        server.behavior = Behavior(batch_seconds=0.02, batch_outcome="expired")
        batch = await ended_openai(clients, await start_openai(clients, lines(*PROMPTS)))
        assert batch.status == "expired" and batch.output_file_id is None
        server.behavior = Behavior(batch_seconds=0.02)
        mixed = lines("a", "b") + lines("b") + lines("c", model="another") + b"{}\n"
        batch = await ended_openai(clients, await start_openai(clients, mixed))
        assert batch.status == "failed" and batch.errors and batch.errors.data
        codes = {error.code for error in batch.errors.data}
        assert codes == {"duplicate_custom_id", "mismatched_model", "invalid_json_line"}
        with pytest.raises(openai.BadRequestError, match="metadata"):
            await start_openai(clients, lines("a"), key="v" * 513)
        with pytest.raises(openai.NotFoundError):
            await clients.openai.batches.retrieve("batch_unknown")

    with_clients(server, use)


def test_canceled_batches_keep_what_was_done(server: FakeProvider) -> None:
    server.behavior = Behavior(batch_seconds=2, batch_cancel_seconds=0.05)

    async def use(clients: Clients) -> None:
        of_openai = await start_openai(clients, lines(*PROMPTS))
        of_anthropic = await start_anthropic(clients, PROMPTS)
        await asyncio.sleep(0.4)
        assert (await clients.openai.batches.cancel(of_openai.id)).status == "cancelling"
        assert (await clients.anthropic.messages.batches.cancel(of_anthropic.id)).processing_status == "canceling"
        of_openai = await ended_openai(clients, of_openai)
        assert of_openai.status == "cancelled" and of_openai.request_counts
        assert 0 < of_openai.request_counts.completed < 20
        assert len(await read_jsonl(clients, of_openai.output_file_id)) == of_openai.request_counts.completed
        counts = Counter((await results_of(clients, of_anthropic.id)).values())
        assert set(counts) == {"succeeded", "canceled"} and counts.total() == 20
        with pytest.raises(openai.BadRequestError):
            await clients.openai.batches.cancel(of_openai.id)

    with_clients(server, use)


async def start_anthropic(clients: Clients, prompts: list[str], schema: dict[str, Any] | None = None) -> Any:
    config: Any = {"format": {"type": "json_schema", "schema": anthropic.transform_schema(schema)}} if schema else None
    more = {"output_config": config} if config else {}
    requests: list[Any] = [
        {
            "custom_id": f"id-{prompt}",
            "params": {"model": "m", "max_tokens": 900, "messages": [{"role": "user", "content": prompt}], **more},
        }
        for prompt in prompts
    ]
    return await clients.anthropic.messages.batches.create(requests=requests)


async def results_of(clients: Clients, batch_id: str) -> dict[str, str]:
    """The result of each item, once all are done."""
    while (await clients.anthropic.messages.batches.retrieve(batch_id)).processing_status != "ended":
        await asyncio.sleep(0.02)
    results = await clients.anthropic.messages.batches.results(batch_id)
    return {one.custom_id: one.result.type async for one in results}


def test_anthropic_batches(server: FakeProvider) -> None:
    server.behavior = replace(failing_call("p3", "refusal"), batch_seconds=0.3)

    async def use(clients: Clients) -> None:
        batch = await start_anthropic(clients, PROMPTS, SCHEMA)
        assert batch.processing_status == "in_progress" and batch.request_counts.processing == 20
        with pytest.raises(anthropic.AnthropicError, match="No `results_url`"):
            await clients.anthropic.messages.batches.results(batch.id)
        outcomes = await results_of(clients, batch.id)
        assert set(outcomes.values()) == {"succeeded"} and list(outcomes) != sorted(outcomes)
        batch = await clients.anthropic.messages.batches.retrieve(batch.id)
        assert batch.ended_at and batch.request_counts.succeeded == 20 and batch.request_counts.processing == 0
        async for one in await clients.anthropic.messages.batches.results(batch.id):
            assert one.result.type == "succeeded"
            message = one.result.message
            assert message.usage.service_tier == "batch"
            if one.custom_id == "id-p3":
                assert message.stop_reason == "refusal"
            else:
                assert message.content[0].type == "text"
                assert_fits(message.content[0].text)

    with_clients(server, use)
    account = server.ledger.anthropic
    assert account.batch_answers == 20
    assert account.dollars == pytest.approx((account.input_tokens * 3 + account.output_tokens * 15) / 2e6)


def test_anthropic_batches_that_fail(server: FakeProvider) -> None:
    async def use(clients: Clients) -> None:
        server.behavior = Behavior(batch_seconds=0.02, batch_error_share=0.3, batch_expire_share=0.3)
        outcomes = await results_of(clients, (await start_anthropic(clients, PROMPTS)).id)
        assert set(outcomes.values()) == {"succeeded", "errored", "expired"}
        server.behavior = Behavior(batch_seconds=0.02, batch_outcome="failed")
        outcomes = await results_of(clients, (await start_anthropic(clients, PROMPTS)).id)
        assert set(outcomes.values()) == {"errored"}
        server.behavior = Behavior(batch_seconds=0.02, batch_outcome="expired")
        outcomes = await results_of(clients, (await start_anthropic(clients, PROMPTS)).id)
        assert set(outcomes.values()) == {"expired"}
        for wrong in (["a", "a"], ["no spaces"]):
            with pytest.raises(anthropic.BadRequestError, match="custom_id"):
                await start_anthropic(clients, wrong)

    with_clients(server, use)


def test_a_batch_whose_creation_was_cut_is_found_in_the_list(server: FakeProvider) -> None:
    server.behavior = replace(failing_call("POST /v1/batches", "cut"), batch_seconds=0.02)

    async def use(clients: Clients) -> None:
        with pytest.raises(openai.APIConnectionError):
            await start_openai(clients, lines("a"), run="lost")
        others = [await start_openai(clients, lines("b"), run=str(number)) for number in range(4)]
        batches = [batch async for batch in clients.openai.batches.list(limit=2)]
        assert [batch.id for batch in batches[:4]] == [batch.id for batch in reversed(others)]
        assert batches[4].metadata == {"run": "lost"} and len(batches) == 5
        server.behavior = replace(failing_call("POST /v1/messages/batches", "cut"), batch_seconds=0.02)
        with pytest.raises(anthropic.APIConnectionError):
            await start_anthropic(clients, ["a"])
        second = await start_anthropic(clients, ["b"])
        listed = [batch async for batch in clients.anthropic.messages.batches.list(limit=1)]
        assert len(listed) == 2 and listed[0].id == second.id

    with_clients(server, use)


def test_pages_and_forms() -> None:
    @dataclass
    class Named:
        id: str

    five = [Named(letter) for letter in "edcba"]
    assert page(five, None, None, 2) == (five[:2], True)
    assert page(five, "d", None, 9) == (five[2:], False)
    assert page(five, None, "a", 2) == (five[2:4], True)
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\na\r\n\r\n--x--\r\n'
    assert multipart("multipart/form-data; boundary=x", form) == {"file": ("f", b"a\r\n")}


def test_settings_and_sums_over_http(server: FakeProvider) -> None:
    with httpx2.Client(base_url=server.anthropic_url, trust_env=False, timeout=600) as http:
        assert http.post("/_behavior", json={"latency": 0.01, "faults": {"empty": 1.0}}).json()["latency"] == 0.01
        assert server.behavior == Behavior(latency=0.01, faults={"empty": 1.0})
        for wrong in ({"latencies": 1}, {"faults": {"gone": 1}}, {"rate": "many"}, {"limiter": "tap"}):
            assert http.post("/_behavior", json=wrong).status_code == 400
        assert with_clients(server, lambda clients: clients.ask("anthropic", "Hello")) == ""
        ledger = http.get("/_ledger?bodies=1").json()
        assert ledger["anthropic"]["answers"] == 1 and ledger["anthropic"]["attempts"] == {"Hello": 1}
        assert ledger["received"][0]["body"]["model"] == "some-model"
        http.post("/_reset")
        assert "received" not in http.get("/_ledger").json() and server.ledger.anthropic.requests == 0


def test_the_end_waits_for_nobody() -> None:
    async def use(clients: Clients) -> None:
        await asyncio.gather(*(clients.ask("openai") for _ in range(8)), return_exceptions=True)

    def serving() -> int:
        return [thread.name for thread in threading.enumerate()].count(SERVER)

    before = serving()
    with fake_provider(Behavior(faults={"hang": 1.0})) as server:
        with_clients(server, use, timeout=0.1)
        with httpx2.Client(trust_env=False) as http, pytest.raises(httpx2.ReadTimeout):
            body = {"model": "m", "messages": [{"content": "x"}]}
            headers = {"authorization": f"Bearer {KEY}"}
            http.post(f"{server.openai_url}/chat/completions", json=body, headers=headers, timeout=0.1)
    assert serving() == before, "it ended, though requests hang in it"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_as_a_program(number: signal.Signals) -> None:
    options = [
        "--latency",
        "0.01",
        "--rate",
        "20",
        "--fault",
        "refusal=1",
        "--models",
        '["m"]',
        "--rate-headers",
        "false",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.provider", *options],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout
    url = process.stdout.readline().removeprefix("OpenAI: ").strip()
    assert process.stdout.readline() == f"Anthropic: {url.removesuffix('/v1')}\n"
    with httpx2.Client(base_url=url.removesuffix("/v1"), trust_env=False, timeout=600) as http:
        settings = http.get("/_behavior").json()
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, "")
    assert (settings["latency"], settings["rate"], settings["models"]) == (0.01, 20, ["m"])
    assert settings["faults"] == {"refusal": 1.0} and settings["rate_headers"] is False


def test_the_same_seed_gives_the_same_answers() -> None:
    body = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]}
    request = read_request("openai", body, strict=True)
    assert request.prompt == "x" and request.text == "s\nx"
    texts = [compose(request, Behavior(seed=seed), nth, None).text for seed, nth in ((1, 1), (1, 1), (1, 2), (2, 1))]
    assert texts[0] == texts[1] and len(set(texts)) == 3
