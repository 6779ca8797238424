"""Chat as a small page on 127.0.0.1: the server's endpoints and its access rules.

No model runs here. One thread sends the questions to the child, one after the other, and forwards
the events.
"""

import asyncio
import base64
import hashlib
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from threading import Event as Flag
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.chat.engine import Engine, Event
from pipelines.chat.members import MAX_MEMBERS, Member, Roster
from pipelines.chat.rounds import ChatSession, ChatSessions
from pipelines.chat.settings import MAX_PROMPT_CHARS, MAX_TEMPERATURE, MAX_TOKENS, Settings, check_prompt
from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.project import Project

HOST = "127.0.0.1"
# Maximum size of a request: two texts of maximum length, escaped.
MAX_BYTES = 400_000
# Interval of the checks whether the tab is still open.
LOOK_SECONDS = 0.3
GRACE_SECONDS = 2
Json = dict[str, Any]


def serve(project: Project, names: Sequence[str], settings: Settings, port: int, *, beside: bool = False) -> int:
    """Serve the page until Ctrl-C; returns the exit code. `beside`: answer even during a
    measurement.

    Raises:
        UsageError: the port is in use, or a name is not a cell that can answer.
    """
    chosen = Roster(project).named(names)
    with _bound(port) as listening:
        port = listening.getsockname()[1]
        page = Page(project, Engine(project), chosen, settings, beside)
        server = uvicorn.Server(
            uvicorn.Config(
                application(page, port),
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACE_SECONDS,
                server_header=False,
            )
        )
        page.is_ending = lambda: server.should_exit
        # uvicorn handles Ctrl-C and SIGTERM; a closed terminal must end it too.
        signal.signal(signal.SIGHUP, lambda *_: setattr(server, "should_exit", True))
        print(f"featherweight: http://{HOST}:{port} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            # uvicorn raises the signal again after its shutdown.
            pass
        finally:
            page.close()
    return 0


def _bound(port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise UsageError(f"port {port}; expected 1 to 65535, or 0 for any free one")
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        # Connections before the server runs wait in this queue.
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UsageError(
            f"port {port} is in use ({error.strerror}): stop its program, or choose another: "
            f"`featherweight chat --page --port {port + 1}` or `make chat PORT={port + 1}`"
        ) from None
    return listening


@dataclass
class Page:
    """The state of one server: the engine, its thread, and the open sessions."""

    project: Project
    engine: Engine
    chosen: Sequence[Member]
    settings: Settings
    beside: bool = False
    # Whether the server is shutting down.
    is_ending: Callable[[], bool] = lambda: False
    sessions: ChatSessions = field(default_factory=ChatSessions)
    waiting: int = 0
    # The child dies with the thread that started it, so one thread lives as long as the server.
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "answers"))
    # For each session in progress: flags to stop it, and to answer during a measurement.
    under_way: dict[str, tuple[Flag, Flag]] = field(default_factory=dict)

    def close(self) -> None:
        """End all sessions in progress, and the child."""
        for stop, _ in list(self.under_way.values()):
            stop.set()
        self.engine.close()
        self.thread.shutdown(wait=True, cancel_futures=True)
        self.engine.close()


def application(page: Page, port: int) -> Starlette:
    """The web application of the page."""
    html = (files("pipelines.chat") / "page.html").read_text(encoding="utf-8")
    policy = _policy(html)

    async def index(_: Request) -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    def post(path: str, answer: Callable[[Page, Json, Request], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await answer(page, await _json(request), request)
            except UsageError as error:
                return JSONResponse({"error": str(error)}, 400)
            except (WorkError, UnavailableError) as error:
                return JSONResponse({"error": str(error)}, 500)

        return Route(path, endpoint, methods=["POST"])

    return Starlette(
        routes=[
            Route("/", index),
            post("/cells", _cells),
            post("/ask", _ask),
            post("/stop", _stop),
            post("/now", _now),
            post("/vote", _vote),
        ],
        middleware=[Middleware(OwnPagesOnly, port=port)],
    )


def _policy(html: str) -> str:
    """Allow only the page's own script and style, by hash, and requests to this server."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in blocks
        )

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class OwnPagesOnly:
    """Refuses requests that another site sends through the visitor's browser.

    These are requests to another name of this machine (DNS rebinding), and POST requests that do
    not come from our page.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = [f"{name}:{port}" for name in (HOST, "localhost")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        if reason := self._refused(request):
            await JSONResponse({"error": reason}, 403)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refused(self, request: Request) -> str | None:
        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return f"Host {hosts}: expected {' or '.join(self._hosts)}"
        if request.method in ("GET", "HEAD"):
            return None
        if origins != [f"http://{hosts[0]}"]:
            return f"Origin {origins}: expected this page's own, http://{hosts[0]}"
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            return "expected JSON"
        return None


HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


async def _json(request: Request) -> Json:
    """The request's object.

    Raises:
        UsageError: not a JSON object, or longer than `MAX_BYTES`.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise UsageError(f"more than {MAX_BYTES:,} bytes: shorten the prompt to {MAX_PROMPT_CHARS:,} characters")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise UsageError("expected a JSON object") from None
    if not isinstance(body, dict):
        raise UsageError(f"got {type(body).__name__}; expected a JSON object")
    return body


def _field(kind: type, body: Json, name: str, default: Any = None) -> Any:
    value = body.get(name, default)
    if type(value) is not kind:
        raise UsageError(f"{name} is {value!r:.60}; expected {kind.__name__}")
    return value


async def _cells(page: Page, _: Json, __: Request) -> Response:
    """The cells that can answer, the initial choice and the settings."""
    members = await asyncio.to_thread(Roster(page.project).all_members)
    chosen = {member.name for member in page.chosen}
    entries = [
        {
            "name": member.name,
            "model": member.key.model,
            "label": member.label.partition("/")[2],
            "is_base": member.is_base,
            "why_not": member.why_not,
            "is_chosen": member.name in chosen,
        }
        for member in members
    ]
    settings = page.settings
    return JSONResponse(
        {
            "cells": entries,
            "most": MAX_MEMBERS,
            "temperature": settings.temperature,
            "most_temperature": MAX_TEMPERATURE,
            "max_new_tokens": settings.max_new_tokens,
            "most_tokens": MAX_TOKENS,
            "system": settings.system,
            "most_chars": MAX_PROMPT_CHARS,
        }
    )


async def _ask(page: Page, body: Json, request: Request) -> Response:
    """The answers, as one line of JSON per event."""
    prompt = _field(str, body, "prompt").strip()
    if not prompt:
        raise UsageError("the prompt is empty: write a question")
    check_prompt(prompt)
    if body.get("conversation") is None:
        conversation = await asyncio.to_thread(_new, page, body)
    else:
        conversation = page.sessions.get(_field(str, body, "conversation"))
    conversation.begin(prompt)
    return StreamingResponse(_events(page, conversation, request), media_type="application/x-ndjson")


def _new(page: Page, body: Json) -> ChatSession:
    names = _field(list, body, "cells")
    if len(names) > MAX_MEMBERS:
        raise UsageError(f"{len(names)} cells are chosen; expected at most {MAX_MEMBERS}")
    known = {member.name: member for member in Roster(page.project).all_members()}
    if missing := [name for name in names if not isinstance(name, str) or name not in known]:
        raise UsageError(f"{missing[0]!r:.80} can no longer answer: reload the page")
    members = [known[name] for name in dict.fromkeys(names)]
    if refused := [member for member in members if member.why_not]:
        raise UsageError(f"{refused[0].name}: {refused[0].why_not}")
    temperature = body.get("temperature", 0)
    if type(temperature) not in (int, float):
        raise UsageError(f"temperature is {temperature!r:.60}; expected a number")
    settings = Settings(_field(int, body, "max_new_tokens"), float(temperature), _field(str, body, "system", ""))
    return page.sessions.new(members, settings, blind=_field(bool, body, "blind", False))


async def _events(page: Page, session: ChatSession, request: Request) -> AsyncIterator[str]:
    """The events of the round, until it is over or the client disconnects."""
    loop, flags = asyncio.get_running_loop(), (Flag(), Flag())
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(event: Event | None) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    page.under_way[session.id] = flags
    if page.beside:
        flags[1].set()
    waits = page.waiting > 0
    page.waiting += 1
    work = page.thread.submit(_answer, page, session, flags, put)
    try:
        yield _line({"kind": "begin", "conversation": session.id, "slots": session.slots, "blind": session.blind})
        if waits:
            yield _line({"kind": "queued", "text": "another question is being answered; yours comes next"})
        while not (page.is_ending() or await request.is_disconnected()):
            try:
                event = await asyncio.wait_for(events.get(), LOOK_SECONDS)
            except TimeoutError:
                if not (flags[0].is_set() and work.cancel()):
                    continue
                # The round was stopped before its turn.
                event = None
            if event is None:
                session.is_busy = False
                yield _line({"kind": "end", "can_vote": session.can_vote})
                return
            yield _line(session.shown_to(event))
    finally:
        flags[0].set()
        work.cancel()
        page.waiting -= 1
        page.under_way.pop(session.id, None)
        work.add_done_callback(lambda _: setattr(session, "is_busy", False))


def _answer(page: Page, session: ChatSession, flags: tuple[Flag, Flag], put: Callable[[Event | None], None]) -> None:
    """Run one round in the answering thread: pass each event to `put`, and None at the end."""
    stop, beside = flags
    try:
        for event in page.engine.ask(session.conversation, session.prompt, stop=stop, beside=beside):
            if event.kind in ("done", "error"):
                session.answers[event.slot] = event
            put(event)
    except Exception as error:
        put(Event(0, "error", f"{type(error).__name__}: {error}"))
        raise
    finally:
        put(None)


async def _stop(page: Page, body: Json, _: Request) -> Response:
    """Stop the current round."""
    if flags := page.under_way.get(_field(str, body, "conversation")):
        flags[0].set()
    return JSONResponse({})


async def _now(page: Page, body: Json, _: Request) -> Response:
    """Answer without waiting for the current measurement."""
    if flags := page.under_way.get(_field(str, body, "conversation")):
        flags[1].set()
    return JSONResponse({})


async def _vote(page: Page, body: Json, _: Request) -> Response:
    """Save a vote, and reveal the names."""
    session = page.sessions.get(_field(str, body, "conversation"))
    return JSONResponse(session.vote(page.project.data, body.get("choice")))


def _line(event: Json) -> str:
    return json.dumps(event) + "\n"
