"""The batch interfaces of both APIs behind one small protocol: prepare, create, find again, look, read the results.

Whatever goes wrong is a `CallError`, as with single requests: its fate says what became of the call.
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

from pipelines.generate.answers import LONGEST_MESSAGE, Answer, Usage, read_anthropic, read_openai
from pipelines.generate.anthropic_client import AnthropicClient, anthropic_body
from pipelines.generate.client import REFUSED_BY_FILTER, call_error, too_large, without
from pipelines.generate.clients import api_key, client_for
from pipelines.generate.journal import Request
from pipelines.generate.openai_client import OpenAIClient, openai_body
from pipelines.records.foreign_text import one_line
from pipelines.settings.providers import Provider

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

    @property
    def was_worked_on(self) -> bool:
        """Whether the provider counts it among those that it answered."""
        return self.answer is not None and self.status in (0, 200)


@dataclass(frozen=True)
class Results:
    """The results of a batch that can be read, and why the others cannot, a problem for each."""

    items: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BatchStatus:
    """A batch as the provider shows it. `mark` is ours, "" if it is another's, None where the API keeps none; `problem` is why it
    failed as a whole, if it did."""

    id: str
    ended: bool
    created: float
    requests: int
    mark: str | None = None
    problem: str | None = None
    answered: int | None = None  # of its requests, by the provider's own count; None: not told


class BatchClient(Protocol):
    """Every method raises CallError."""

    async def prepare(self, mark: str, requests: Sequence[Request]) -> Any:
        """All that comes before the one call that makes a batch; nothing of it costs. Each request goes by the id `mark-key`."""
        ...

    async def create(self, mark: str, prepared: Any) -> str:
        """Make the batch; returns the provider's id of it."""
        ...

    async def look(self, batch: str) -> BatchStatus | None:
        """The batch as it is now, None where the provider knows none of this id."""
        ...

    async def recent(self, since: float) -> list[BatchStatus]:
        """Batches made since then (seconds since the epoch), newest first."""
        ...

    async def results(self, batch: str, *, most_bytes: float) -> Results | None:
        """What came of each item of an ended batch, in no particular order; None where the results are gone."""
        ...


def batch_client(provider: Provider) -> tuple[Any, BatchClient]:
    """A client to be closed, and the batches behind it."""
    client: Any = client_for(provider)
    batches: Any = AnthropicBatches if provider.kind == "anthropic" else OpenAIBatches
    return client, batches(client, api_key(provider))


def _with_call_errors(method: Callable[..., Awaitable[Result]]) -> Callable[..., Awaitable[Result]]:
    """Whatever the SDK makes of a failure, and of a body that is none of the API's, as a CallError."""

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
        shown = await self._sdk.messages.batches.list(limit=1)  # costs nothing, and a wrong server is found out
        if not isinstance(getattr(shown, "data", None), list):
            raise ValueError(f"no list of batches, but {str(shown)[:200]!r}")
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
    message = one_line(f"{kind}: {error.get('message', 'the batch ended before it was worked on')}", LONGEST_MESSAGE)
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
        made = await self._sdk.batches.create(
            input_file_id=prepared, endpoint="/v1/chat/completions", completion_window="24h", metadata={MARK: mark}
        )
        return _openai_status(made).id

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
        read, gone = Results(), list[str]()
        for file in files:
            try:
                content = await self._sdk.files.content(file)
            except openai.NotFoundError:
                gone.append(f"the file {file} is gone")
                continue
            except openai.APIConnectionError as error:
                part = _results_too_large(error)
            else:
                part = _read(content.text, self._key, _openai_item)
            read = Results(read.items + part.items, read.problems + part.problems)
        if files and len(gone) == len(files):
            return None
        return Results(read.items, read.problems + gone)


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
        refused = Answer(raw=json.dumps(body), stop_reason="content_filter", usage=Usage(input=0, output=0))
        return Item(name, answer=refused, status=status)
    if not status and not codes:
        raise ValueError("it holds neither a status nor a code")
    message = one_line(str(problem.get("message") or problem.get("code") or line), 500)
    return Item(name, error=message, status=status, codes=codes)


async def _since(since: float, page: Any, read: Callable[[Any], BatchStatus]) -> list[BatchStatus]:
    """The batches of this page and the older ones that were made since then."""
    recent: list[BatchStatus] = []
    while True:
        statuses = [read(batch) for batch in page.data]
        new = [status for status in statuses if status.created >= since - CLOCK_SLACK_SECONDS]
        recent += new
        if len(new) < len(statuses) or not page.has_next_page():
            return recent
        page = await page.get_next_page()


def _read(text: str, key: str | None, item: Callable[[dict[str, Any]], Item]) -> Results:
    """The results, line by line, whatever stands in the others."""
    read = Results()
    for number, line in enumerate(without(text, key).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("it is no JSON object")
            read.items.append(item(value))
        except (ValueError, RecursionError) as error:
            read.problems.append(one_line(f"line {number}: {error}", 200))
    return read


def _results_too_large(error: Exception) -> Results:
    """Results of which nothing can be read, since they are larger than any of ours could be; any other error is raised."""
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
        raise ValueError(f"its {name} is no JSON object")
    return value


def _answered(name: str, body: dict[str, Any], read: Callable[[str], Answer]) -> Item:
    raw = json.dumps(body, ensure_ascii=False)
    try:
        return Item(name, answer=read(raw))
    except ValueError:  # kept as it came: it was billed; that it is no record is found when records are read
        return Item(name, answer=Answer(raw=raw, odd_usage="it tells no token counts"))
