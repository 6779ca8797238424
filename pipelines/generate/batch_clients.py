"""The batch interfaces of both APIs behind one small protocol: prepare, create, find again, look, read the results.

Whatever goes wrong is a `CallError`, as with single requests: its fate says what became of the call.
"""

import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import anthropic
import httpx2
import openai
from anthropic.types.messages import MessageBatch
from openai.types import Batch

from pipelines.generate.answers import Answer, Usage, read_anthropic, read_openai
from pipelines.generate.anthropic_client import AnthropicClient, anthropic_body
from pipelines.generate.client import REFUSED_BY_FILTER, call_error, without
from pipelines.generate.clients import api_key, client_for
from pipelines.generate.journal import Request
from pipelines.generate.openai_client import OpenAIClient, openai_body
from pipelines.provider_settings import Provider

MARK = "featherweight_batch"
CLOCK_SLACK_SECONDS = 120.0  # between our clock and the provider's
ANTHROPIC_ENDED, OPENAI_ENDED = ("ended",), ("completed", "expired", "cancelled", "failed")
NEVER_RUN = ("expired", "canceled", "batch_expired", "batch_cancelled")
# An item's error of Anthropic's has no HTTP status; that of a single request with the same error is
ANTHROPIC_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "overloaded_error": 529,
}  # fmt: skip
Result = TypeVar("Result")


@dataclass(frozen=True)
class Item:
    """One result: an answer, or why there is none. `codes` and `status` are the provider's own; `ran` is False for one that the
    batch never came to. Only answers cost."""

    custom_id: str
    answer: Answer | None = None
    error: str = ""
    status: int = 0
    codes: frozenset[str] = frozenset()

    @property
    def ran(self) -> bool:
        return not self.codes & set(NEVER_RUN)


@dataclass(frozen=True)
class Seen:
    """A batch as the provider shows it. `mark` is ours, "" if it is another's, None where the API keeps none; `problem` is why it
    failed as a whole, if it did."""

    id: str
    ended: bool
    created: float
    requests: int
    mark: str | None = None
    problem: str | None = None


class BatchClient(Protocol):
    """Every method raises CallError."""

    async def prepare(self, mark: str, requests: Sequence[Request]) -> Any:
        """All that comes before the one call that makes a batch; nothing of it costs. Each request goes by the id `mark-key`."""
        ...

    async def create(self, mark: str, prepared: Any) -> str:
        """Make the batch; returns the provider's id of it."""
        ...

    async def look(self, batch: str) -> Seen | None:
        """The batch as it is now, None where the provider knows none of this id."""
        ...

    async def recent(self, since: float) -> list[Seen]:
        """Batches made since then (seconds since the epoch), newest first."""
        ...

    async def results(self, batch: str) -> list[Item] | None:
        """What came of each item of an ended batch, in no particular order; None where the results are gone."""
        ...


def batch_client(provider: Provider) -> tuple[Any, BatchClient]:
    """A client to be closed, and the batches behind it."""
    client: Any = client_for(provider)
    batches: Any = AnthropicBatches if provider.kind == "anthropic" else OpenAIBatches
    return client, batches(client, api_key(provider))


def _in_our_words(method: Callable[..., Awaitable[Result]]) -> Callable[..., Awaitable[Result]]:
    """Whatever the SDK makes of a failure, and of a body that is none of the API's, as a CallError."""

    @functools.wraps(method)
    async def called(self: Any, *arguments: Any) -> Result:
        try:
            return await method(self, *arguments)
        except Exception as error:
            raise call_error(error, self._key) from None

    return called


class AnthropicBatches:
    def __init__(self, client: AnthropicClient, key: str | None) -> None:
        self._sdk, self._key = client.sdk, key

    async def prepare(self, mark: str, requests: Sequence[Request]) -> Any:
        return [{"custom_id": f"{mark}-{request.key}", "params": anthropic_body(request)} for request in requests]

    @_in_our_words
    async def create(self, mark: str, prepared: Any) -> str:
        return _seen_anthropic(await self._sdk.messages.batches.create(requests=prepared)).id

    @_in_our_words
    async def look(self, batch: str) -> Seen | None:
        try:
            return _seen_anthropic(await self._sdk.messages.batches.retrieve(batch))
        except anthropic.NotFoundError:
            return None

    @_in_our_words
    async def recent(self, since: float) -> list[Seen]:
        return await _since(since, await self._sdk.messages.batches.list(limit=100), _seen_anthropic)

    @_in_our_words
    async def results(self, batch: str) -> list[Item] | None:
        try:
            response = await self._sdk.get(f"/v1/messages/batches/{batch}/results", cast_to=httpx2.Response)
        except anthropic.NotFoundError:
            return None
        return [_anthropic_item(line) for line in _lines(response.text, self._key)]


def _seen_anthropic(batch: Any) -> Seen:
    if not isinstance(batch, MessageBatch):
        raise ValueError(f"no batch, but {str(batch)[:200]!r}")
    counts = batch.request_counts
    total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
    return Seen(batch.id, batch.processing_status in ANTHROPIC_ENDED, batch.created_at.timestamp(), total)


def _anthropic_item(line: dict[str, Any]) -> Item:
    name, result = line["custom_id"], line["result"]
    if result["type"] == "succeeded":
        return _answered(name, result["message"], read_anthropic)
    error = result.get("error", {}).get("error", {})
    code = str(error.get("type", result["type"]))
    message = f"{result['type']}: {error.get('message', 'the batch ended before it was worked on')}"
    return Item(name, error=message, status=ANTHROPIC_STATUS.get(code, 0), codes=frozenset({code}))


class OpenAIBatches:
    def __init__(self, client: OpenAIClient, key: str | None) -> None:
        self._sdk, self._key = client.sdk, key

    @_in_our_words
    async def prepare(self, mark: str, requests: Sequence[Request]) -> Any:
        lines = [_openai_line(f"{mark}-{request.key}", request) for request in requests]
        content = "\n".join(lines).encode()
        return (await self._sdk.files.create(file=(f"{mark}.jsonl", content), purpose="batch")).id

    @_in_our_words
    async def create(self, mark: str, prepared: Any) -> str:
        made = await self._sdk.batches.create(
            input_file_id=prepared, endpoint="/v1/chat/completions", completion_window="24h", metadata={MARK: mark}
        )
        return _seen_openai(made).id

    @_in_our_words
    async def look(self, batch: str) -> Seen | None:
        try:
            return _seen_openai(await self._sdk.batches.retrieve(batch))
        except openai.NotFoundError:
            return None

    @_in_our_words
    async def recent(self, since: float) -> list[Seen]:
        return await _since(since, await self._sdk.batches.list(limit=100), _seen_openai)

    @_in_our_words
    async def results(self, batch: str) -> list[Item] | None:
        found = await self._sdk.batches.retrieve(batch)
        items: list[Item] = []
        try:
            for file in filter(None, (found.output_file_id, found.error_file_id)):
                content = await self._sdk.files.content(file)
                items += [_openai_item(line) for line in _lines(content.text, self._key)]
        except openai.NotFoundError:
            return None
        return items


def _openai_line(name: str, request: Request) -> str:
    body = openai_body(request, strict=True)
    line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, ensure_ascii=False)


def _seen_openai(batch: Any) -> Seen:
    if not isinstance(batch, Batch):
        raise ValueError(f"no batch, but {str(batch)[:200]!r}")
    problems = [error.message or error.code or "" for error in (batch.errors.data or [])] if batch.errors else []
    return Seen(
        batch.id,
        batch.status in OPENAI_ENDED,
        float(batch.created_at),
        batch.request_counts.total if batch.request_counts else 0,
        mark=(batch.metadata or {}).get(MARK, ""),
        problem=("; ".join(problems)[:500] or "the batch failed") if batch.status == "failed" else None,
    )


def _openai_item(line: dict[str, Any]) -> Item:
    name, response, error = line["custom_id"], line.get("response") or {}, line.get("error") or {}
    body, status = response.get("body"), response.get("status_code", 0)
    if status == 200:
        return _answered(name, body, read_openai)
    told = body["error"] if isinstance(body, dict) and isinstance(body.get("error"), dict) else error
    codes = frozenset(str(told[key]) for key in ("code", "type") if told.get(key))
    if status == 400 and codes & set(REFUSED_BY_FILTER):
        refused = Answer(raw=json.dumps(body), stop_reason="content_filter", usage=Usage(input=0, output=0))
        return Item(name, answer=refused)
    return Item(name, error=str(told.get("message") or told.get("code") or line)[:500], status=status, codes=codes)


async def _since(since: float, page: Any, read: Callable[[Any], Seen]) -> list[Seen]:
    """The batches of this page and the older ones that were made since then."""
    found: list[Seen] = []
    while True:
        shown = [read(batch) for batch in page.data]
        new = [seen for seen in shown if seen.created >= since - CLOCK_SLACK_SECONDS]
        found += new
        if len(new) < len(shown) or not page.has_next_page():
            return found
        page = await page.get_next_page()


def _lines(text: str, key: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in without(text, key).split("\n") if line.strip()]


def _answered(name: str, body: Any, read: Callable[[str], Answer]) -> Item:
    raw = json.dumps(body, ensure_ascii=False)
    try:
        return Item(name, answer=read(raw))
    except ValueError:  # kept as it came: it was billed; that it is no record is found when records are read
        return Item(name, answer=Answer(raw=raw))
