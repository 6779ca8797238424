"""A fake LLM provider on a loopback port: OpenAI's and Anthropic's protocols as their SDKs speak
them, faults included.

In a test: `with fake_provider(Behavior(latency=0.1)) as server`. By hand:
`python -m tests.fakes.provider --help`.
"""

import argparse
import asyncio
import json
import math
import random
import secrets
import signal
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.fakes.answers import compose
from tests.fakes.batches import Batches, Handler
from tests.fakes.behavior import ERROR_FAULTS, LATE_ERRORS, Behavior, Fault, Ledger, Limits, Received, Wire
from tests.fakes.vectors import embeddings_body
from tests.fakes.wire import ModelRequest, Problem, last_message, parsed, read_request, success_body

# Name of the thread that serves.
SERVER = "fake provider"

WIRES: tuple[Wire, ...] = get_args(Wire)


class FakeProvider:
    """The server's state. `behavior` may change while it runs; `reset` forgets all requests."""

    def __init__(self, behavior: Behavior) -> None:
        self.openai_url = self.anthropic_url = ""
        self.ledger = Ledger()
        self._behavior = behavior
        self._limits = {wire: Limits(wire, behavior) for wire in WIRES}
        self._batches = Batches(self)
        self._nth: Counter[tuple[Wire, str]] = Counter()
        self._random = random.Random(behavior.seed)
        self._prefix, self._count = secrets.token_hex(4), 0
        self._app = Starlette(routes=self._routes())

    @property
    def behavior(self) -> Behavior:
        return self._behavior

    @behavior.setter
    def behavior(self, behavior: Behavior) -> None:
        """The limits start anew if they were changed."""
        names = ("rate", "limiter", "burst", "window", "tokens_per_minute")
        if any(getattr(behavior, name) != getattr(self._behavior, name) for name in names):
            self._limits = {wire: Limits(wire, behavior) for wire in WIRES}
        self._behavior = behavior

    def reset(self) -> None:
        """Forget requests, files and batches; the limits start anew.

        No request may be under way.
        """
        self.ledger = Ledger()
        self._limits = {wire: Limits(wire, self._behavior) for wire in WIRES}
        self._nth.clear()
        self._batches.reset()
        self._random = random.Random(self._behavior.seed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application; it keeps the connection, so that it can cut it."""
        scope["cut"] = getattr(send, "__self__").transport.abort  # noqa: B009 (uvicorn's own object)
        try:
            await self._app(scope, receive, send)
        except Exception:
            # A fault of this server or of the test's script is answered with a plain 500.
            traceback.print_exc()

    def number(self) -> str:
        """A number that no other object of this server has."""
        self._count += 1
        return f"{self._prefix}{self._count:010d}"

    def _routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", partial(self._complete, "openai"), methods=["POST"]),
            Route("/v1/messages", partial(self._complete, "anthropic"), methods=["POST"]),
            self.route("openai", "POST", "/v1/embeddings", self._embed),
            Route("/v1/models", self._models),
            *self._batches.routes(),
            Route("/_ledger", self._show_ledger),
            Route("/_behavior", self._change_behavior, methods=["GET", "POST"]),
            Route("/_reset", self._reset, methods=["POST"]),
        ]

    # Completions

    async def _complete(self, wire: Wire, request: Request) -> Response:
        account = self.ledger.of(wire)
        account.requests += 1
        account.in_progress += 1
        account.most_at_once = max(account.most_at_once, account.in_progress)
        try:
            return await self._respond(wire, request)
        finally:
            account.in_progress -= 1

    async def _respond(self, wire: Wire, request: Request) -> Response:
        limits, model = self._limits[wire], ""
        try:
            raw = await request.body()
            body = parsed(raw)
            model = str(body.get("model"))
            self.ledger.receive(Received(wire, last_message(body), time.time(), raw))
            self._authorize(wire, request)
            call = self._read(wire, body)
            self._admit(limits, call)
            fault, nth = self._fault(wire, call.prompt)
            if not await self._before(request, fault):
                return Response()
            answer = self._answer(call, fault, nth, limits)
            return await self._deliver(wire, request, answer, fault, limits)
        except Problem as problem:
            return self._error_response(wire, request, problem, model, limits)

    def _authorize(self, wire: Wire, request: Request) -> None:
        key = _key(request)
        if not key or (self._behavior.api_keys and key not in self._behavior.api_keys):
            raise Problem("unauthorized")
        if wire == "anthropic" and "anthropic-version" not in request.headers:
            raise Problem("invalid_request", "anthropic-version: header is required")

    def _read(self, wire: Wire, body: dict[str, Any]) -> ModelRequest:
        request = read_request(wire, body, strict=self._behavior.strict_schemas)
        if self._behavior.models and request.model not in self._behavior.models:
            raise Problem("unknown_model")
        return request

    def _admit(self, limits: Limits, request: ModelRequest) -> None:
        if refused := limits.admit(request.input_tokens):
            raise Problem("rate_limited", _limit_message(request, *refused), wait=refused[1])

    def _fault(self, wire: Wire, prompt: str, *, batch: bool = False) -> tuple[Fault | None, int]:
        self._nth[wire, prompt] += 1
        nth = self._nth[wire, prompt]
        fault = self._behavior.fault_for(wire, prompt, nth)
        if batch and fault and fault not in ERROR_FAULTS and fault.startswith(("hang", "cut", "malformed")):
            # A batch item has no connection of its own.
            fault = None
        if fault:
            self.ledger.of(wire).faults[fault] += 1
        return fault, nth

    async def _before(self, request: Request, fault: Fault | None, *, wait: bool = True) -> bool:
        """Everything before an answer is made; returns whether to make one."""
        behavior = self._behavior
        if fault in ERROR_FAULTS and fault not in LATE_ERRORS:
            raise Problem(fault)
        if fault == "hang":
            await _client_gone(request)
            return False
        if fault == "cut_before":
            await _cut(request)
            return False
        if wait and (behavior.latency or behavior.jitter):
            await asyncio.sleep(behavior.latency + behavior.jitter * self._random.random())
        if fault in ERROR_FAULTS:
            raise Problem(fault)
        return True

    def _answer(
        self, request: ModelRequest, fault: Fault | None, nth: int, limits: Limits | None, *, batch: bool = False
    ) -> dict[str, Any]:
        """Make an answer and count it."""
        answer = compose(request, self._behavior, nth, fault)
        account = self.ledger.of(request.wire)
        if batch:
            account.batch_answers += 1
        else:
            account.answers += 1
        account.answered[request.prompt] += 1
        account.input_tokens += answer.input_tokens
        account.output_tokens += answer.output_tokens
        account.dollars += answer.dollars(self._behavior, batch=batch)
        if limits:
            limits.answered(answer.output_tokens)
        return success_body(answer, request, self.number(), batch=batch)

    async def _deliver(
        self, wire: Wire, request: Request, body: dict[str, Any], fault: Fault | None, limits: Limits
    ) -> Response:
        if fault in ("hang_after", "cut", "cut_body"):
            self.ledger.of(wire).undelivered += 1
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        response = Response(content, headers=self._headers(wire, limits), media_type="application/json")
        return await _delivered(request, response, fault)

    def answer_item(self, wire: Wire, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one item of a batch: status and body."""
        try:
            request = self._read(wire, params)
            fault, nth = self._fault(wire, request.prompt, batch=True)
            if fault in ERROR_FAULTS:
                raise Problem(fault)
            return 200, self._answer(request, fault, nth, None, batch=True)
        except Problem as problem:
            return self.error(wire, problem, model=str(params.get("model")))

    # Errors and headers

    def error(self, wire: Wire, problem: Problem, *, key: str = "", model: str = "") -> tuple[int, dict[str, Any]]:
        """Status and body of an error."""
        return problem.reply(wire, key=key, model=model, request_id=f"req_{self.number()}")

    def _error_response(
        self, wire: Wire, request: Request, problem: Problem, model: str, limits: Limits | None
    ) -> Response:
        behavior = self._behavior
        status, body = self.error(wire, problem, key=_key(request), model=model)
        headers = self._headers(wire, limits)
        if status == 429:
            self.ledger.of(wire).limited += 1
            wait = behavior.retry_after_seconds if behavior.retry_after_seconds is not None else problem.wait or 1.0
            if behavior.retry_after and problem.fault == "rate_limited":
                headers["retry-after"] = str(math.ceil(wait))
        return JSONResponse(body, status, headers)

    def _headers(self, wire: Wire, limits: Limits | None) -> dict[str, str]:
        headers = limits.headers() if limits and self._behavior.rate_headers else {}
        headers["x-request-id" if wire == "openai" else "request-id"] = f"req_{self.number()}"
        return headers

    # All other calls

    def route(self, wire: Wire, method: str, path: str, handler: Handler) -> Route:
        """Register a route that counts its calls and fails where the script names it, such as "POST
        /v1/batches"."""
        return Route(path, partial(self._call, wire, f"{method} {path}", handler), methods=[method])

    async def _call(self, wire: Wire, name: str, handler: Handler, request: Request) -> Response:
        calls = self.ledger.of(wire).calls
        calls[name] += 1
        try:
            self._authorize(wire, request)
            fault = self._behavior.fault_for(wire, name, calls[name], drawn=False)
            if not await self._before(request, fault, wait=False):
                return Response()
            response = await handler(request)
        except Problem as problem:
            return self._error_response(wire, request, problem, "", None)
        response.headers.update(self._headers(wire, None))
        return await _delivered(request, response, fault)

    async def _embed(self, request: Request) -> Response:
        raw = await request.body()
        body = parsed(raw)
        self.ledger.receive(Received("openai", "embeddings", time.time(), raw))
        return JSONResponse(embeddings_body(body, self._behavior))

    async def _models(self, request: Request) -> Response:
        """Both protocols have this path; Anthropic's clients send their version."""
        wire: Wire = "anthropic" if "anthropic-version" in request.headers else "openai"
        return await self._call(wire, "GET /v1/models", partial(self._list_models, wire), request)

    async def _list_models(self, wire: Wire, request: Request) -> Response:
        names = self._behavior.models or ("fake-large", "fake-small")
        if wire == "openai":
            shown = [{"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in names]
            return JSONResponse({"object": "list", "data": shown})
        common = {"type": "model", "created_at": "1970-01-01T00:00:00Z", "lifecycle": "active"}
        shown = [{"id": name, "display_name": name, **common} for name in names]
        return JSONResponse({"data": shown, "first_id": names[0], "last_id": names[-1], "has_more": False})

    async def _show_ledger(self, request: Request) -> Response:
        return JSONResponse(self.ledger.as_json(bodies="bodies" in request.query_params))

    async def _change_behavior(self, request: Request) -> Response:
        try:
            if request.method == "POST":
                self.behavior = replace(self._behavior, **parsed(await request.body()))
        except (Problem, TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(self._behavior.as_json())

    async def _reset(self, request: Request) -> Response:
        self.reset()
        return JSONResponse({})


def _key(request: Request) -> str:
    return request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")


def _limit_message(request: ModelRequest, limit: str, wait: float) -> str:
    if request.wire == "anthropic":
        return f"This request would exceed your organization's rate limit of {limit} per minute."
    unit = "requests per min (RPM)" if limit == "requests" else "tokens per min (TPM)"
    return f"Rate limit reached for {request.model} on {unit}. Please try again in {wait:.3f}s."


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cut(request: Request) -> None:
    request.scope["cut"]()
    await _client_gone(request)


async def _delivered(request: Request, response: Response, fault: Fault | None) -> Response:
    """The response, or its replacement under a fault."""
    if fault == "hang_after":
        await _client_gone(request)
    elif fault == "cut":
        await _cut(request)
    elif fault == "cut_body":
        return _HalfResponse(response)
    elif fault == "malformed":
        half = bytes(response.body)[: len(response.body) // 2]
        return Response(half, response.status_code, media_type=response.media_type)
    return response


class _HalfResponse(Response):
    """Announces the whole of another response, sends half of it and closes the connection."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.body, response.status_code, media_type=response.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 2], "more_body": True})


@contextmanager
def fake_provider(behavior: Behavior | None = None, *, port: int = 0) -> Iterator[FakeProvider]:
    """Serve until the block ends, even if requests still hang."""
    provider = FakeProvider(behavior or Behavior())
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)
        provider.anthropic_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        provider.openai_url = f"{provider.anthropic_url}/v1"
        config = uvicorn.Config(
            provider,
            # Cut and hanging connections are intended, so uvicorn logs nothing.
            log_level=60,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=0,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, name=SERVER, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield provider
        finally:
            server.should_exit = True
            thread.join(timeout=600)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    behavior, port = _behavior_and_port(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with fake_provider(behavior, port=port) as server:
        print(f"OpenAI: {server.openai_url}\nAnthropic: {server.anthropic_url}", flush=True)
        stop.wait()


def _behavior_and_port(arguments: Sequence[str] | None) -> tuple[Behavior, int]:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.provider", description="A fake LLM provider.")
    parser.add_argument("--port", type=int, default=0, help="0: a free port")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=CHANCE", help="any number of times")
    for setting in fields(Behavior):
        if setting.name not in ("script", "faults", "batch_lines"):
            option = f"--{setting.name.replace('_', '-')}"
            parser.add_argument(option, type=_value, default=argparse.SUPPRESS, help=f"default: {setting.default}")
    settings = vars(parser.parse_args(arguments))
    port, chances = settings.pop("port"), dict(one.partition("=")[::2] for one in settings.pop("fault"))
    try:
        return Behavior(faults={name: float(chance) for name, chance in chances.items()}, **settings), port
    except ValueError as error:
        parser.error(str(error))


def _value(written: str) -> Any:
    """The parsed JSON, or the word itself where it is not JSON."""
    try:
        return json.loads(written)
    except ValueError:
        return written


if __name__ == "__main__":
    main()
