"""A small real LLM server: /v1/chat/completions on a free loopback port, with the test's
answers."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass(frozen=True)
class Reply:
    """One HTTP response, sent `after` so many seconds."""

    body: str | bytes
    status: int = 200
    content_type: str = "application/json"
    after: float = 0.0
    location: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


# Maps the prompt (the last message) and its count so far, from 1, to the reply.
Answers = Callable[[str, int], Reply]


@dataclass
class ChatServer:
    """The requests that the server received, in order."""

    answers: Answers
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _asked: Counter[str] = field(default_factory=Counter)

    def answer_with(self, answers: Answers) -> None:
        """Start anew with other answers."""
        self.answers = answers
        self.bodies, self.headers, self.most_at_once, self._asked = [], [], 0, Counter()

    async def respond(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        prompt = body["messages"][-1]["content"]
        self._asked[prompt] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        reply = self.answers(prompt, self._asked[prompt])
        await asyncio.sleep(reply.after)
        self._now -= 1
        headers = {**reply.headers, **({"location": reply.location} if reply.location else {})}
        return Response(reply.body, reply.status, headers, media_type=reply.content_type)


@contextmanager
def chat_server(answers: Answers) -> Iterator[ChatServer]:
    """Serve `answers` until the block ends."""
    chat = ChatServer(answers)
    # Anthropic's SDK adds its own /v1.
    paths = ("/v1/chat/completions", "/v1/v1/messages")
    app = Starlette(routes=[Route(path, chat.respond, methods=["POST"]) for path in paths])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        chat.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=0))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield chat
        finally:
            server.should_exit = True
            thread.join(timeout=600)


def completion(content: str | None, *, finish_reason: str = "stop") -> str:
    """The body of a chat completion, with spacing that none of our JSON writers produces."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(body, ensure_ascii=False, indent=3) + "\n\n"
