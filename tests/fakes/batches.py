"""The fake provider's batches, and the files that OpenAI's batches use."""

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.behavior import Received, Wire
from tests.fakes.wire import Problem, last_message, parsed

if TYPE_CHECKING:
    from tests.fakes.provider import FakeProvider

DAY = 24 * 3600
ENDPOINT = "/v1/chat/completions"
OpenAIStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Handler = Callable[[Request], Awaitable[Response]]
Kind = Literal["succeeded", "errored", "expired", "canceled"]


@dataclass(frozen=True)
class Item:
    custom_id: str
    params: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of an item: an answer, or an error with its HTTP status."""

    custom_id: str
    kind: Kind
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)


@dataclass
class Batch:
    """One batch of either protocol, from its creation to its end."""

    id: str
    created: float
    seconds: float
    items: list[Item]
    metadata: dict[str, str] | None = None
    input_file_id: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)
    canceled: float | None = None
    ended: float | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    timer: asyncio.TimerHandle | None = None

    def share(self) -> float:
        """The finished share of the batch, now or when it was cancelled."""
        elapsed = (self.canceled or time.time()) - self.created
        return min(1.0, elapsed / self.seconds) if self.seconds > 0 else 1.0

    def count(self, *kinds: Kind) -> int:
        return sum(outcome.kind in kinds for outcome in self.outcomes)


class Batches:
    """Stores files and batches; a batch is answered, and paid for, when it ends."""

    def __init__(self, provider: "FakeProvider") -> None:
        self._provider = provider
        self.openai: dict[str, Batch] = {}
        self.anthropic: dict[str, Batch] = {}
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}

    def routes(self) -> list[Route]:
        handlers: tuple[tuple[Wire, str, str, Handler], ...] = (
            ("openai", "POST", "/v1/files", self._upload),
            ("openai", "GET", "/v1/files/{id}", self._file),
            ("openai", "GET", "/v1/files/{id}/content", self._content),
            ("openai", "DELETE", "/v1/files/{id}", self._delete_file),
            ("openai", "POST", "/v1/batches", self._create_openai),
            ("openai", "GET", "/v1/batches", self._list_openai),
            ("openai", "GET", "/v1/batches/{id}", self._get_openai),
            ("openai", "POST", "/v1/batches/{id}/cancel", self._cancel_openai),
            ("anthropic", "POST", "/v1/messages/batches", self._create_anthropic),
            ("anthropic", "GET", "/v1/messages/batches", self._list_anthropic),
            ("anthropic", "GET", "/v1/messages/batches/{id}", self._get_anthropic),
            ("anthropic", "GET", "/v1/messages/batches/{id}/results", self._results),
            ("anthropic", "POST", "/v1/messages/batches/{id}/cancel", self._cancel_anthropic),
        )
        return [self._provider.route(wire, method, path, handler) for wire, method, path, handler in handlers]

    def reset(self) -> None:
        for batch in (*self.openai.values(), *self.anthropic.values()):
            if batch.timer:
                batch.timer.cancel()
        self.openai, self.anthropic, self._files = {}, {}, {}

    # Both protocols

    def _start(self, wire: Wire, batch: Batch) -> None:
        account = self._provider.ledger.of(wire)
        now = time.time()
        for item in batch.items if not batch.errors else []:
            account.batch_items += 1
            raw = json.dumps(item.params, ensure_ascii=False).encode()
            self._provider.ledger.receive(Received(wire, last_message(item.params), now, raw, batch=True))
        self._end_in(batch.seconds, wire, batch)

    def _end_in(self, seconds: float, wire: Wire, batch: Batch) -> None:
        if batch.timer:
            batch.timer.cancel()
        batch.timer = asyncio.get_running_loop().call_later(seconds, self._end, wire, batch)

    def _end(self, wire: Wire, batch: Batch) -> None:
        behavior = self._provider.behavior
        if wire == "openai" and behavior.batch_outcome == "failed" and not batch.canceled:
            batch.errors = [_invalid("token_limit_exceeded", "Enqueued token limit reached for this organization.")]
        done = int(len(batch.items) * batch.share()) if batch.canceled else len(batch.items)
        if not batch.errors:
            batch.outcomes = [self._outcome(wire, item, done=at < done) for at, item in enumerate(batch.items)]
            random.Random(f"{behavior.seed}/{batch.id}").shuffle(batch.outcomes)
        batch.ended = time.time()
        if wire == "openai":
            self._write_files(batch)

    def _outcome(self, wire: Wire, item: Item, *, done: bool) -> Outcome:
        provider, behavior = self._provider, self._provider.behavior
        if not done:
            return Outcome(item.custom_id, "canceled")
        chance = random.Random(f"{behavior.seed}/{item.custom_id}/batch").random()
        if behavior.batch_outcome == "failed" or chance < behavior.batch_error_share:
            return Outcome(item.custom_id, "errored", *provider.error(wire, Problem("server_error")))
        if behavior.batch_outcome == "expired" or chance < behavior.batch_error_share + behavior.batch_expire_share:
            return Outcome(item.custom_id, "expired")
        status, body = provider.answer_item(wire, item.params)
        return Outcome(item.custom_id, "succeeded" if status == 200 else "errored", status, body)

    def _cancel(self, wire: Wire, batch: Batch) -> None:
        if batch.ended:
            raise Problem("invalid_request", f"Batch {batch.id} has already ended and cannot be canceled.")
        if not batch.canceled:
            batch.canceled = time.time()
            self._end_in(self._provider.behavior.batch_cancel_seconds, wire, batch)

    # OpenAI

    async def _upload(self, request: Request) -> Response:
        content_type = request.headers.get("content-type", "")
        fields = multipart(content_type, await request.body())
        if fields.get("purpose", ("", b""))[1] != b"batch" or "file" not in fields:
            raise Problem("invalid_request", "A file and the purpose 'batch' are required here.")
        name, content = fields["file"]
        return JSONResponse(self._keep_file(name, content, "batch"))

    def _keep_file(self, name: str, content: bytes, purpose: str) -> dict[str, Any]:
        described = {
            "id": f"file-{self._provider.number()}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "expires_at": int(time.time()) + 30 * DAY,
            "filename": name,
            "purpose": purpose,
            "status": "processed",
            "status_details": None,
        }
        self._files[described["id"]] = described, content
        return described

    def _known_file(self, request: Request) -> tuple[dict[str, Any], bytes]:
        identity = request.path_params["id"]
        if identity not in self._files:
            raise Problem("not_found", f"No such File object: {identity}")
        return self._files[identity]

    async def _file(self, request: Request) -> Response:
        return JSONResponse(self._known_file(request)[0])

    async def _content(self, request: Request) -> Response:
        return Response(self._known_file(request)[1], media_type="application/octet-stream")

    async def _delete_file(self, request: Request) -> Response:
        identity = self._known_file(request)[0]["id"]
        del self._files[identity]
        return JSONResponse({"id": identity, "object": "file", "deleted": True})

    async def _create_openai(self, request: Request) -> Response:
        body = parsed(await request.body())
        file_id, metadata = body.get("input_file_id"), body.get("metadata")
        if body.get("endpoint") != ENDPOINT or body.get("completion_window") != "24h":
            raise Problem("invalid_request", f"Only the endpoint {ENDPOINT} and the window 24h are served here.")
        if file_id not in self._files:
            raise Problem("invalid_request", f"Invalid 'input_file_id': no such File object: {file_id}")
        if problem := _metadata_problem(metadata):
            raise Problem("invalid_request", problem)
        items, errors = _read_lines(self._files[file_id][1])
        seconds = self._provider.behavior.batch_seconds * (0.1 if errors else 1.0)
        identity = f"batch_{self._provider.number()}"
        batch = Batch(identity, time.time(), seconds, items, metadata, file_id, errors)
        self.openai[identity] = batch
        self._start("openai", batch)
        return JSONResponse(_openai_batch(batch))

    def _known_openai(self, request: Request) -> Batch:
        identity = request.path_params["id"]
        if identity not in self.openai:
            raise Problem("not_found", f"No batch found with id '{identity}'.")
        return self.openai[identity]

    async def _get_openai(self, request: Request) -> Response:
        return JSONResponse(_openai_batch(self._known_openai(request)))

    async def _cancel_openai(self, request: Request) -> Response:
        batch = self._known_openai(request)
        self._cancel("openai", batch)
        return JSONResponse(_openai_batch(batch))

    async def _list_openai(self, request: Request) -> Response:
        newest_first = list(reversed(self.openai.values()))
        chosen, more = page(newest_first, request.query_params.get("after"), None, _limit(request, 100))
        shown = [_openai_batch(batch) for batch in chosen]
        return JSONResponse({"object": "list", "data": shown, **_ends(chosen), "has_more": more})

    def _write_files(self, batch: Batch) -> None:
        outputs = [_openai_line(self._provider.number(), one) for one in batch.outcomes if one.kind == "succeeded"]
        failed = [one for one in batch.outcomes if one.kind in ("errored", "expired")]
        errors = [_openai_line(self._provider.number(), one) for one in failed]
        if outputs:
            content = self._lines("openai", outputs)
            batch.output_file_id = self._keep_file(f"{batch.id}_output.jsonl", content, "batch_output")["id"]
        if errors:
            batch.error_file_id = self._keep_file(f"{batch.id}_error.jsonl", _jsonl(errors), "batch_output")["id"]

    # Anthropic

    async def _create_anthropic(self, request: Request) -> Response:
        body = parsed(await request.body())
        requests = body.get("requests")
        if not isinstance(requests, list) or not requests:
            raise Problem("invalid_request", "requests: Field required")
        items = [_anthropic_item(at, one) for at, one in enumerate(requests)]
        if len({item.custom_id for item in items}) < len(items):
            raise Problem("invalid_request", "requests: custom_id must be unique")
        behavior = self._provider.behavior
        batch = Batch(f"msgbatch_{self._provider.number()}", time.time(), behavior.batch_seconds, items)
        self.anthropic[batch.id] = batch
        self._start("anthropic", batch)
        return JSONResponse(self._shown(batch))

    def _known_anthropic(self, request: Request) -> Batch:
        identity = request.path_params["id"]
        if identity not in self.anthropic:
            raise Problem("not_found", f"Batch {identity} not found")
        return self.anthropic[identity]

    def _shown(self, batch: Batch) -> dict[str, Any]:
        return _anthropic_batch(batch, self._provider.anthropic_url)

    async def _get_anthropic(self, request: Request) -> Response:
        return JSONResponse(self._shown(self._known_anthropic(request)))

    async def _cancel_anthropic(self, request: Request) -> Response:
        batch = self._known_anthropic(request)
        self._cancel("anthropic", batch)
        return JSONResponse(self._shown(batch))

    async def _list_anthropic(self, request: Request) -> Response:
        after, before = request.query_params.get("after_id"), request.query_params.get("before_id")
        chosen, more = page(list(reversed(self.anthropic.values())), after, before, _limit(request, 1000))
        shown = [self._shown(batch) for batch in chosen]
        return JSONResponse({"data": shown, **_ends(chosen), "has_more": more})

    async def _results(self, request: Request) -> Response:
        batch = self._known_anthropic(request)
        if not batch.ended:
            raise Problem("not_found", f"Batch {batch.id} has no results yet")
        lines = self._lines("anthropic", [_anthropic_line(one) for one in batch.outcomes])
        return Response(lines, media_type="application/x-jsonl")

    def _lines(self, wire: Wire, lines: list[dict[str, Any]]) -> bytes:
        """These results as JSON lines, changed by the behavior's `batch_lines`."""
        change = self._provider.behavior.batch_lines
        return "".join(change(wire, _jsonl(lines).decode().splitlines(True))).encode() if change else _jsonl(lines)


def multipart(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """The fields of a form, each with its file name and content."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    fields = {}
    for part in body.split(b"--" + boundary)[1:-1] if boundary else []:
        head, _, content = part.partition(b"\r\n\r\n")
        named = {key: value.decode() for key, value in re.findall(rb'(\bname|filename)="([^"]*)"', head)}
        fields[named.get(b"name", "")] = named.get(b"filename", ""), content.removesuffix(b"\r\n")
    return fields


class _Identified(Protocol):
    id: str


Listed = TypeVar("Listed", bound=_Identified)


def page(
    newest_first: Sequence[Listed], after: str | None, before: str | None, limit: int
) -> tuple[list[Listed], bool]:
    """At most `limit` items older than `after` or newer than `before`, and whether there are
    more."""
    ids = [one.id for one in newest_first]
    for cursor in (after, before):
        if cursor and cursor not in ids:
            raise Problem("invalid_request", f"No such cursor: {cursor}")
    if before:
        end = ids.index(before)
        return list(newest_first[max(0, end - limit) : end]), end > limit
    start = ids.index(after) + 1 if after else 0
    return list(newest_first[start : start + limit]), start + limit < len(ids)


def _limit(request: Request, most: int) -> int:
    written = request.query_params.get("limit", "20")
    if not written.isdecimal() or not 1 <= int(written) <= most:
        raise Problem("invalid_request", f"limit: must be from 1 to {most}")
    return int(written)


def _ends(chosen: list[Batch]) -> dict[str, str | None]:
    return {"first_id": chosen[0].id if chosen else None, "last_id": chosen[-1].id if chosen else None}


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _metadata_problem(metadata: Any) -> str | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or len(metadata) > 16:
        return "Invalid 'metadata': at most 16 pairs."
    fits = all(len(key) <= 64 and isinstance(value, str) and len(value) <= 512 for key, value in metadata.items())
    return None if fits else "Invalid 'metadata': keys are of at most 64, values strings of at most 512 characters."


def _invalid(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": line}


def _read_lines(content: bytes) -> tuple[list[Item], list[dict[str, Any]]]:
    """The items of an input file, and its problems."""
    items: dict[str, Item] = {}
    errors, models = [], set()
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            one = json.loads(line)
            identity, params = one["custom_id"], one["body"]
            wrong = one["method"] != "POST" or one["url"] != ENDPOINT or not isinstance(params, dict)
        except (ValueError, LookupError, TypeError):
            errors.append(_invalid("invalid_json_line", "This line is not a request.", number))
            continue
        if wrong:
            errors.append(_invalid("invalid_url", "The URL or the method is not the batch's.", number))
        elif identity in items:
            errors.append(_invalid("duplicate_custom_id", f"The custom_id {identity} is not unique.", number))
        models.add(params.get("model") if isinstance(params, dict) else None)
        items[identity] = Item(identity, params)
    if not items:
        errors.append(_invalid("empty_file", "The input file is empty."))
    if len(models) > 1:
        errors.append(_invalid("mismatched_model", "All requests of a batch must name the same model."))
    return list(items.values()), errors


def _openai_line(number: str, outcome: Outcome) -> dict[str, Any]:
    response, error = None, None
    if outcome.kind == "expired":
        message = "This request could not be executed before the completion window expired."
        error = {"code": "batch_expired", "message": message}
    else:
        response = {"status_code": outcome.status, "request_id": f"req_{number}", "body": outcome.body}
    return {"id": f"batch_req_{number}", "custom_id": outcome.custom_id, "response": response, "error": error}


def _openai_status(batch: Batch) -> OpenAIStatus:
    if batch.ended:
        if batch.errors:
            return "failed"
        if batch.canceled:
            return "cancelled"
        return "expired" if batch.count("expired") else "completed"
    if batch.canceled:
        return "cancelling"
    share = batch.share()
    return "validating" if share < 0.1 else "in_progress" if share < 0.9 else "finalizing"


def _openai_batch(batch: Batch) -> dict[str, Any]:
    status, created, ended = _openai_status(batch), int(batch.created), int(batch.ended) if batch.ended else None
    started = status not in ("validating", "failed")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": ENDPOINT,
        "model": batch.items[0].params.get("model")
        if batch.items and isinstance(batch.items[0].params, dict)
        else None,
        "errors": {"object": "list", "data": batch.errors} if status == "failed" else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": created,
        "in_progress_at": created if started else None,
        "expires_at": created + DAY,
        "finalizing_at": ended if status in ("finalizing", "completed", "expired") else None,
        "completed_at": ended if status == "completed" else None,
        "failed_at": ended if status == "failed" else None,
        "expired_at": ended if status == "expired" else None,
        "cancelling_at": int(batch.canceled) if batch.canceled else None,
        "cancelled_at": ended if status == "cancelled" else None,
        "request_counts": _openai_counts(batch, status),
        "metadata": batch.metadata,
    }


def _openai_counts(batch: Batch, status: OpenAIStatus) -> dict[str, int]:
    if status in ("validating", "failed"):
        return {"total": 0, "completed": 0, "failed": 0}
    if not batch.ended:
        return {"total": len(batch.items), "completed": int(len(batch.items) * batch.share()), "failed": 0}
    failed = batch.count("errored", "expired")
    return {"total": len(batch.items), "completed": batch.count("succeeded"), "failed": failed}


def _anthropic_item(at: int, one: Any) -> Item:
    identity = one.get("custom_id") if isinstance(one, dict) else None
    if not isinstance(identity, str) or not re.fullmatch("[a-zA-Z0-9_-]{1,64}", identity):
        message = f"requests.{at}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
        raise Problem("invalid_request", message)
    if not isinstance(one.get("params"), dict):
        raise Problem("invalid_request", f"requests.{at}.params: Field required")
    return Item(identity, one["params"])


def _anthropic_batch(batch: Batch, url: str) -> dict[str, Any]:
    ended = bool(batch.ended)
    kinds: tuple[Kind, ...] = ("succeeded", "errored", "canceled", "expired")
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if ended else "canceling" if batch.canceled else "in_progress",
        "request_counts": {
            "processing": 0 if ended else len(batch.items),
            **{kind: batch.count(kind) for kind in kinds},
        },
        "created_at": _rfc3339(batch.created),
        "expires_at": _rfc3339(batch.created + DAY),
        "ended_at": _rfc3339(batch.ended),
        "cancel_initiated_at": _rfc3339(batch.canceled),
        "archived_at": None,
        "results_url": f"{url}/v1/messages/batches/{batch.id}/results" if ended else None,
    }


def _rfc3339(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _anthropic_line(outcome: Outcome) -> dict[str, Any]:
    name = {"succeeded": "message", "errored": "error"}.get(outcome.kind)
    result = {"type": outcome.kind, **({name: outcome.body} if name else {})}
    return {"custom_id": outcome.custom_id, "result": result}
