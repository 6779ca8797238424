"""Chat completions with a JSON schema, from OpenAI or any compatible server (llama.cpp, vLLM,
Ollama, a gateway)."""

import os
from functools import partial
from types import TracebackType
from typing import Any, Self

import openai

from pipelines.generate.answers import Answer, read_openai
from pipelines.generate.bodies import MEGABYTE, Cap
from pipelines.generate.client import http_client, native_schema, timed_answer
from pipelines.generate.journal import Request
from pipelines.generate.vectors import ADDRESS, PURPOSE, read_embeddings


def omitted_headers() -> dict[str, openai.Omit]:
    """Headers that the SDK would add from the environment. Servers other than OpenAI's must not see
    them."""
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    custom = [line.partition(":")[0].strip() for line in lines if ":" in line]
    return dict.fromkeys(["OpenAI-Organization", "OpenAI-Project", *custom], openai.Omit())


class OpenAIClient:
    """One server. `strict`: OpenAI's own form of the request, where unenforced constraints become
    descriptions."""

    def __init__(
        self,
        *,
        base_url: str | None,
        api_key: str | None,
        timeout_seconds: float,
        slots: int = 16,
        strict: bool = False,
        most_bytes: float = 8 * MEGABYTE,
    ) -> None:
        self.cap = Cap(most_bytes)
        self._key, self._timeout, self._strict = api_key, timeout_seconds, strict
        self.sdk = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            timeout=timeout_seconds,
            max_retries=0,
            http_client=http_client(base_url, slots=slots, cap=self.cap, key=api_key),
            default_headers={} if strict else omitted_headers(),  # pyright: ignore[reportArgumentType]
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.sdk.close()

    async def answer(self, request: Request) -> Answer:
        """Send `request` once; see `Client`."""
        if request.purpose == PURPOSE:
            return await self._embed(request)
        body: Any = openai_body(request, strict=self._strict)
        arguments = {name: body.pop(name) for name in ("model", "messages")}
        # The SDK accepts only OpenAI's own parameters. `extra_body` passes all others to the
        # server.
        create = partial(self.sdk.chat.completions.with_raw_response.create, **arguments, extra_body=body)
        return await timed_answer(create, read_openai, key=self._key, timeout_seconds=self._timeout)

    async def _embed(self, request: Request) -> Answer:
        """The texts of `request` as vectors, as numbers: not every server knows OpenAI's base64."""
        texts = [message["content"] for message in request.messages]
        more = {name: value for name, value in request.parameters.items() if name not in ("max_tokens", ADDRESS)}
        create = partial(
            self.sdk.embeddings.with_raw_response.create,
            model=request.model, input=texts, encoding_format="float", extra_body=more,
        )  # fmt: skip
        read = partial(read_embeddings, count=len(texts))
        return await timed_answer(create, read, key=self._key, timeout_seconds=self._timeout)


def openai_body(request: Request, *, strict: bool) -> dict[str, Any]:
    """The request as the body of /v1/chat/completions, also for a line of a batch."""
    parameters = dict(request.parameters)
    # OpenAI's newer models accept only this name; other servers know only the older one.
    if strict:
        parameters["max_completion_tokens"] = parameters.pop("max_tokens")
    body: dict[str, Any] = {"model": request.model, "messages": request.messages, **parameters}
    if request.schema:
        json_schema: dict[str, Any] = {"name": "record", "schema": request.schema}
        if strict:
            json_schema |= {"schema": native_schema(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return body
