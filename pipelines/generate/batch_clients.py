"""The batch interfaces of both APIs behind one small protocol: prepare, create, find again, look,
read the results.

Every failure is a `CallError`, as with single requests. Its fate tells what happened to the call.
"""

import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import anthropic
import httpx2
import openai
from anthropic.types.messages import MessageBatch
from openai.types import Batch, FileObject

from pipelines.generate.answers import LONGEST_MESSAGE, NO_COUNTS, Answer, Usage, read_anthropic, read_openai
from pipelines.generate.anthropic_client import AnthropicClient, anthropic_body
from pipelines.generate.client import REFUSED_BY_FILTER, call_error, too_large, without
from pipelines.generate.clients import api_key, client_for
from pipelines.generate.journal import Request
from pipelines.generate.openai_client import OpenAIClient, openai_body
from pipelines.records.foreign_text import one_line
from pipelines.settings.providers import Provider

MARK = "featherweight_batch"
# How far our clock and the provider's may differ.
CLOCK_SLACK_SECONDS = 120.0
ANTHROPIC_ENDED, OPENAI_ENDED = ("ended",), ("completed", "expired", "cancelled", "failed")
NEVER_RUN = ("expired", "canceled", "batch_expired", "batch_cancelled")
# Anthropic's errors of batch items carry no HTTP status. These are the statuses of the same errors
# of single requests.
ANTHROPIC_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "overloaded_error": 529,
}  # fmt: skip
Result = TypeVar("Result")


@dataclass(frozen=True)
class Item:
    """One result: an answer, or the error. `codes` and `status` are the provider's own.

    `ran` is False if the batch ended before it reached the request. Only answers cost.
    """

    custom_id: str
    answer: Answer | None = None
    error: str = ""
    status: int = 0
    codes: frozenset[str] = frozenset()

    @property
    def ran(self) -> bool:
        return not self.codes & set(NEVER_RUN)

    @property
    def was_worked_on(self) -> bool:
        """Whether the provider counts the request as answered."""
        return self.answer is not None and self.status in (0, 200)


@dataclass(frozen=True)
class Results:
    """The readable results of a batch, and one problem for each result that cannot be read."""

    items: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BatchStatus:
    """A batch as the provider shows it.

    `mark` is the one we gave it, "" for a batch that is not ours, None if the API stores no marks.
    `problem` is why the batch failed as a whole, if it did. `answered` is the provider's own count
    of answered requests, None if it gives none.
    """

    id: str
    ended: bool
    created: float
    requests: int
    mark: str | None = None
    problem: str | None = None
    answered: int | None = None


class BatchClient(Protocol):
    """Every method raises CallError."""

    async def prepare(self, mark: str, requests: Sequence[Request]) -> Any:
        """Everything before the call that creates a batch; it costs nothing. Each request gets the
        id `mark-key`."""
        ...

    async def create(self, mark: str, prepared: Any) -> str:
        """Create the batch; returns the provider's id of it."""
        ...

    async def look(self, batch: str) -> BatchStatus | None:
        """The current status of the batch; None if the provider does not know this id."""
        ...

    async def recent(self, since: float) -> list[BatchStatus]:
        """Batches created since then (seconds since the epoch), newest first."""
        ...

    async def results(self, batch: str, *, most_bytes: float) -> Results | None:
        """The result of each item of an ended batch, in no particular order; None if the results
        are gone."""
        ...


def batch_client(provider: Provider) -> tuple[Any, BatchClient]:
    """A client, which the caller must close, and its batch interface."""
    client: Any = client_for(provider)
    batches: Any = AnthropicBatches if provider.kind == "anthropic" else OpenAIBatches
    return client, batches(client, api_key(provider))


def _with_call_errors(method: Callable[..., Awaitable[Result]]) -> Callable[..., Awaitable[Result]]:
    """A decorator: turns every exception of the SDK, or of a body that is not the API's, into a
    CallError."""

    @functools.wraps(method)
    async def called(self: Any, *arguments: Any, **named: Any) -> Result:
        try:
            return await method(self, *arguments, **named)
        except Exception as error:
            raise call_error(error, self._key) from None

    return called


class AnthropicBatches:
    def __init__(self, client: AnthropicClient, key: str | None) -> None:
        self._sdk, self._key, self._cap = client.sdk, key, client.cap

    @_with_call_errors
    async def prepare(self, mark: str, requests: Sequence[Request]) -> Any:
        # A listing costs nothing and reveals a wrong server.
        listing = await self._sdk.messages.batches.list(limit=1)
        if not isinstance(getattr(listing, "data", None), list):
            raise ValueError(f"no list of batches, but {str(listing)[:200]!r}")
        return [{"custom_id": f"{mark}-{request.key}", "params": anthropic_body(request)} for request in requests]

    @_with_call_errors
    async def create(self, mark: str, prepared: Any) -> str:
        return _anthropic_status(await self._sdk.messages.batches.create(requests=prepared)).id

    @_with_call_errors
    async def look(self, batch: str) -> BatchStatus | None:
        try:
            return _anthropic_status(await self._sdk.messages.batches.retrieve(batch))
        except anthropic.NotFoundError:
            return None

    @_with_call_errors
    async def recent(self, since: float) -> list[BatchStatus]:
        return await _since(since, await self._sdk.messages.batches.list(limit=100), _anthropic_status)

    @_with_call_errors
    async def results(self, batch: str, *, most_bytes: float) -> Results | None:
        self._cap.most_bytes = max(self._cap.most_bytes, most_bytes)
        try:
            response = await self._sdk.get(f"/v1/messages/batches/{batch}/results", cast_to=httpx2.Response)
        except anthropic.NotFoundError:
            return None
        except anthropic.APIConnectionError as error:
            return _results_too_large(error)
        return _read(response.text, self._key, _anthropic_item)


def _anthropic_status(batch: Any) -> BatchStatus:
    if not isinstance(batch, MessageBatch):
        raise ValueError(f"no batch, but {str(batch)[:200]!r}")
    counts = batch.request_counts
    total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
    ended = batch.processing_status in ANTHROPIC_ENDED
    return BatchStatus(batch.id, ended, batch.created_at.timestamp(), total, answered=counts.succeeded)


def _anthropic_item(line: dict[str, Any]) -> Item:
    name, result = _custom_id(line), _object_in(line, "result")
    if result.get("type") == "succeeded":
        return _answered(name, _object_in(result, "message"), read_anthropic)
    outer = result.get("error")
    inner = outer.get("error") if isinstance(outer, dict) else None
    error = inner if isinstance(inner, dict) else {}
    kind = str(result.get("type"))
    code = str(error.get("type", kind))
    if kind not in ("errored", *NEVER_RUN):
        raise ValueError(f"its type is {kind[:40]!r}")
    message = one_line(f"{kind}: {error.get('message', 'the batch ended before it was processed')}", LONGEST_MESSAGE)
    return Item(name, error=message, status=ANTHROPIC_STATUS.get(code, 0), codes=frozenset({code}))


class OpenAIBatches:
    def __init__(self, client: OpenAIClient, key: str | None) -> None:
        self._sdk, self._key, self._cap = client.sdk, key, client.cap

    @_with_call_errors
    async def prepare(self, mark: str, requests: Sequence[Request]) -> Any:
        lines = [_openai_line(f"{mark}-{request.key}", request) for request in requests]
        content = "\n".join(lines).encode()
        file: Any = await self._sdk.files.create(file=(f"{mark}.jsonl", content), purpose="batch")
        if not isinstance(file, FileObject) or not file.id:
            raise ValueError(f"no file, but {str(file)[:200]!r}")
        return file.id

    @_with_call_errors
    async def create(self, mark: str, prepared: Any) -> str:
        batch = await self._sdk.batches.create(
            input_file_id=prepared, endpoint="/v1/chat/completions", completion_window="24h", metadata={MARK: mark}
        )
        return _openai_status(batch).id

    @_with_call_errors
    async def look(self, batch: str) -> BatchStatus | None:
        try:
            return _openai_status(await self._sdk.batches.retrieve(batch))
        except openai.NotFoundError:
            return None

    @_with_call_errors
    async def recent(self, since: float) -> list[BatchStatus]:
        return await _since(since, await self._sdk.batches.list(limit=100), _openai_status)

    @_with_call_errors
    async def results(self, batch: str, *, most_bytes: float) -> Results | None:
        self._cap.most_bytes = max(self._cap.most_bytes, most_bytes)
        details = await self._sdk.batches.retrieve(batch)
        files = [file for file in (details.output_file_id, details.error_file_id) if file]
        results, missing = Results(), list[str]()
        for file in files:
            try:
                content = await self._sdk.files.content(file)
            except openai.NotFoundError:
                missing.append(f"the file {file} is gone")
                continue
            except openai.APIConnectionError as error:
                part = _results_too_large(error)
            else:
                part = _read(content.text, self._key, _openai_item)
            results = Results(results.items + part.items, results.problems + part.problems)
        if files and len(missing) == len(files):
            return None
        return Results(results.items, results.problems + missing)


def _openai_line(name: str, request: Request) -> str:
    body = openai_body(request, strict=True)
    line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, ensure_ascii=False)


def _openai_status(batch: Any) -> BatchStatus:
    if not isinstance(batch, Batch):
        raise ValueError(f"no batch, but {str(batch)[:200]!r}")
    problems = [error.message or error.code or "" for error in (batch.errors.data or [])] if batch.errors else []
    return BatchStatus(
        batch.id,
        batch.status in OPENAI_ENDED,
        float(batch.created_at),
        batch.request_counts.total if batch.request_counts else 0,
        mark=(batch.metadata or {}).get(MARK, ""),
        problem=(one_line("; ".join(problems), 500) or "the batch failed") if batch.status == "failed" else None,
        answered=batch.request_counts.completed if batch.request_counts else None,
    )


def _error_of(body: Any, error: dict[str, Any]) -> dict[str, Any]:
    """The error in the body of a response, else the one of the line."""
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return body["error"]
    return error


def _openai_item(line: dict[str, Any]) -> Item:
    name, response, error = _custom_id(line), line.get("response"), line.get("error")
    if not isinstance(response, dict) and not isinstance(error, dict):
        raise ValueError("it holds neither a response nor an error")
    response, error = (part if isinstance(part, dict) else {} for part in (response, error))
    body, code = response.get("body"), response.get("status_code", 0)
    status = code if isinstance(code, int) else 0
    if status == 200:
        return _answered(name, _object_in(response, "body"), read_openai)
    problem = _error_of(body, error)
    codes = frozenset(str(problem[key]) for key in ("code", "type") if problem.get(key))
    if status == 400 and codes & set(REFUSED_BY_FILTER):
        refusal = Answer(raw=json.dumps(body), stop_reason="content_filter", usage=Usage(input=0, output=0))
        return Item(name, answer=refusal, status=status)
    if not status and not codes:
        raise ValueError("it holds neither a status nor a code")
    message = one_line(str(problem.get("message") or problem.get("code") or line), 500)
    return Item(name, error=message, status=status, codes=codes)


async def _since(since: float, page: Any, parse: Callable[[Any], BatchStatus]) -> list[BatchStatus]:
    """The batches created since then, from this page and the following ones."""
    recent: list[BatchStatus] = []
    while True:
        statuses = [parse(batch) for batch in page.data]
        new = [status for status in statuses if status.created >= since - CLOCK_SLACK_SECONDS]
        recent += new
        if len(new) < len(statuses) or not page.has_next_page():
            return recent
        page = await page.get_next_page()


def _read(text: str, key: str | None, item: Callable[[dict[str, Any]], Item]) -> Results:
    """The results, line by line. A line that cannot be read becomes a problem and does not affect
    the others."""
    results = Results()
    for number, line in enumerate(without(text, key).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("it is not a JSON object")
            results.items.append(item(value))
        except (ValueError, RecursionError) as error:
            results.problems.append(one_line(f"line {number}: {error}", 200))
    return results


def _results_too_large(error: Exception) -> Results:
    """Unreadable results, if `error` says that they are larger than any of ours can be; any other
    error is raised."""
    if oversized := too_large(error):
        return Results(problems=[str(oversized)])
    raise error


def _custom_id(line: dict[str, Any]) -> str:
    name = line.get("custom_id")
    if not isinstance(name, str):
        raise ValueError("it has no custom_id")
    return name


def _object_in(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"its {name} is not a JSON object")
    return value


def _answered(name: str, body: dict[str, Any], parse: Callable[[str], Answer]) -> Item:
    raw = json.dumps(body, ensure_ascii=False)
    try:
        return Item(name, answer=parse(raw))
    except ValueError:
        # Kept as it came, since it was billed. Reading the records later finds that it is none.
        return Item(name, answer=Answer(raw=raw, odd_usage=NO_COUNTS))
