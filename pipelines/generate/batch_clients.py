"""The batch interfaces of both APIs behind one small protocol: create, find again, look, and read the results line by line."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import anthropic
import httpx2
import openai

from pipelines.generate.answers import Answer, read_anthropic, read_openai
from pipelines.generate.anthropic_client import AnthropicClient, anthropic_body
from pipelines.generate.journal import Request
from pipelines.generate.openai_client import OpenAIClient, openai_body

MARK = "featherweight_batch"
CLOCK_SLACK_SECONDS = 120.0  # between our clock and the provider's
ANTHROPIC_ENDED, OPENAI_ENDED = ("ended",), ("completed", "expired", "cancelled", "failed")


@dataclass(frozen=True)
class Item:
    """One result: an answer, or why there is none. `codes` and `status` are the provider's own; expired items cost nothing."""

    custom_id: str
    answer: Answer | None = None
    error: str = ""
    status: int = 0
    codes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Seen:
    """A batch as the provider shows it. `problem` is why it failed as a whole, if it did."""

    id: str
    ended: bool
    created: float
    requests: int
    mark: str | None = None
    problem: str | None = None


class BatchClient(Protocol):
    async def create(self, mark: str, requests: Sequence[Request]) -> str:
        """Hand the requests in, each under the id `mark-key`; returns the provider's id of the batch."""
        ...

    async def look(self, batch: str) -> Seen: ...

    def recent(self, since: float) -> AsyncIterator[Seen]:
        """Batches made since then (seconds since the epoch), newest first."""
        ...

    def results(self, batch: str) -> AsyncIterator[Item]:
        """What came of each item of an ended batch, in no particular order."""
        ...


def custom_id(mark: str, request: Request) -> str:
    return f"{mark}-{request.key}"


class AnthropicBatches:
    def __init__(self, client: AnthropicClient) -> None:
        self._sdk = client.sdk

    async def create(self, mark: str, requests: Sequence[Request]) -> str:
        items: Any = [
            {"custom_id": custom_id(mark, request), "params": anthropic_body(request)} for request in requests
        ]
        return (await self._sdk.messages.batches.create(requests=items)).id

    async def look(self, batch: str) -> Seen:
        return _seen_anthropic(await self._sdk.messages.batches.retrieve(batch))

    async def recent(self, since: float) -> AsyncIterator[Seen]:
        async for batch in self._sdk.messages.batches.list(limit=100):
            seen = _seen_anthropic(batch)
            if seen.created < since - CLOCK_SLACK_SECONDS:
                return
            yield seen

    async def results(self, batch: str) -> AsyncIterator[Item]:
        path = f"/v1/messages/batches/{batch}/results"
        response = await self._sdk.get(path, cast_to=httpx2.Response)
        for line in response.text.split("\n"):
            if line.strip():
                yield _anthropic_item(json.loads(line))


def _seen_anthropic(batch: Any) -> Seen:
    counts = batch.request_counts
    total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
    return Seen(batch.id, batch.processing_status in ANTHROPIC_ENDED, batch.created_at.timestamp(), total)


def _anthropic_item(line: dict[str, Any]) -> Item:
    result = line["result"]
    if result["type"] == "succeeded":
        return _item(line["custom_id"], json.dumps(result["message"], ensure_ascii=False), read_anthropic)
    error = result.get("error", {}).get("error", {})
    codes = frozenset(str(error[name]) for name in ("type",) if error.get(name))
    return Item(line["custom_id"], error=f"{result['type']}: {error.get('message', 'in the batch')}", codes=codes)


class OpenAIBatches:
    def __init__(self, client: OpenAIClient) -> None:
        self._sdk = client.sdk

    async def create(self, mark: str, requests: Sequence[Request]) -> str:
        lines = [
            json.dumps(
                {
                    "custom_id": custom_id(mark, request),
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": openai_body(request, strict=True),
                },
                ensure_ascii=False,
            )
            for request in requests
        ]
        file = await self._sdk.files.create(file=(f"{mark}.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = await self._sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={MARK: mark}
        )
        return batch.id

    async def look(self, batch: str) -> Seen:
        return _seen_openai(await self._sdk.batches.retrieve(batch))

    async def recent(self, since: float) -> AsyncIterator[Seen]:
        async for batch in self._sdk.batches.list(limit=100):
            seen = _seen_openai(batch)
            if seen.created < since - CLOCK_SLACK_SECONDS:
                return
            yield seen

    async def results(self, batch: str) -> AsyncIterator[Item]:
        found = await self._sdk.batches.retrieve(batch)
        for file in (found.output_file_id, found.error_file_id):
            if file is None:
                continue
            content = await self._sdk.files.content(file)
            for line in content.text.split("\n"):
                if line.strip():
                    yield _openai_item(json.loads(line))


def _seen_openai(batch: Any) -> Seen:
    problems = [error.message or error.code or "" for error in (batch.errors.data or [])] if batch.errors else []
    return Seen(
        batch.id,
        batch.status in OPENAI_ENDED,
        float(batch.created_at),
        batch.request_counts.total if batch.request_counts else 0,
        mark=(batch.metadata or {}).get(MARK),
        problem="; ".join(problems)[:500] or "the batch failed" if batch.status == "failed" else None,
    )


def _openai_item(line: dict[str, Any]) -> Item:
    response, error = line.get("response") or {}, line.get("error") or {}
    body, status = response.get("body"), response.get("status_code", 0)
    if status == 200:
        return _item(line["custom_id"], json.dumps(body, ensure_ascii=False), read_openai)
    told = body["error"] if isinstance(body, dict) and isinstance(body.get("error"), dict) else error
    codes = frozenset(str(told[name]) for name in ("code", "type") if told.get(name))
    return Item(
        line["custom_id"], error=str(told.get("message") or told.get("code") or line)[:500], status=status, codes=codes
    )


def _item(name: str, raw: str, read: Any) -> Item:
    try:
        return Item(name, answer=read(raw), status=200)
    except ValueError:  # kept as it came: it was billed; that it is no record is found when records are read
        return Item(name, answer=Answer(raw=raw), status=200)


def iso_seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


CONNECTION_ERRORS = (anthropic.APIConnectionError, openai.APIConnectionError)
STATUS_ERRORS = (anthropic.APIStatusError, openai.APIStatusError)
