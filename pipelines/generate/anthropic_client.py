"""Anthropic Messages with a JSON schema, through the official SDK."""

from functools import partial
from types import TracebackType
from typing import Any, Self

import anthropic

from pipelines.generate.answers import Answer, read_anthropic
from pipelines.generate.bodies import MEGABYTE, Cap
from pipelines.generate.client import http_client, native_schema, timed_answer
from pipelines.generate.journal import Request


class AnthropicClient:
    def __init__(
        self,
        *,
        base_url: str | None,
        api_key: str,
        timeout_seconds: float,
        slots: int = 16,
        most_bytes: float = 8 * MEGABYTE,
    ) -> None:
        self.cap = Cap(most_bytes)
        self._key, self._timeout = api_key, timeout_seconds
        self.sdk = anthropic.AsyncAnthropic(
            base_url=base_url,
            api_key=api_key,
            timeout=timeout_seconds,
            max_retries=0,
            http_client=http_client(base_url, slots=slots, cap=self.cap, key=api_key),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.sdk.close()

    async def answer(self, request: Request) -> Answer:
        """Send `request` once; see `Client`."""
        body: Any = anthropic_body(request)
        arguments = {name: body.pop(name) for name in ("model", "messages", "max_tokens")}
        # The SDK no longer accepts sampling parameters. `extra_body` passes them to models that
        # still do.
        create = partial(self.sdk.messages.with_raw_response.create, **arguments, extra_body=body)
        return await timed_answer(create, read_anthropic, key=self._key, timeout_seconds=self._timeout)


def anthropic_body(request: Request) -> dict[str, Any]:
    """The request as the body of /v1/messages, also for an item of a batch.

    The system prompt has a field of its own, and the schema goes into `output_config`.
    """
    system = "\n\n".join(message["content"] for message in request.messages if message["role"] == "system")
    turns = [message for message in request.messages if message["role"] != "system"]
    body: dict[str, Any] = {"model": request.model, "messages": turns, **request.parameters}
    if system:
        body["system"] = system
    if request.schema:
        form = {"type": "json_schema", "schema": native_schema(request.schema)}
        body["output_config"] = {**body.get("output_config", {}), "format": form}
    return body
