"""Chat completions with a JSON schema from any OpenAI-compatible server, through the official SDK."""

import time
from types import TracebackType
from typing import Any

import httpx2
import openai

from pipelines.generate.journal import Answer, Request


class CallError(Exception):
    """The request got no answer; the message is the provider's own, never its headers."""


class OpenAIClient:
    """One server. Retries are ours, not the SDK's: it would obey a retry-after of hours and retry exhausted quotas."""

    def __init__(self, *, base_url: str, api_key: str, timeout_seconds: float) -> None:
        # A loopback server must be reached past any proxy that the environment names.
        own_http = httpx2.AsyncClient(trust_env="127.0.0.1" not in base_url)
        self._api_key = api_key
        self._sdk = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key, timeout=timeout_seconds, max_retries=0, http_client=own_http
        )

    async def __aenter__(self) -> "OpenAIClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sdk.close()

    async def answer(self, request: Request) -> Answer:
        """Send `request` once.

        Raises:
            CallError: refused, timed out or cut; nothing usable came back.
        """
        started = time.monotonic()
        messages: Any = request.messages
        response_format: Any = {"type": "json_schema", "json_schema": {"name": "record", "schema": request.schema}}
        try:
            raw = await self._sdk.chat.completions.with_raw_response.create(
                model=request.model, messages=messages, response_format=response_format, **request.parameters
            )
        except openai.APIStatusError as error:
            raise CallError(self._without_key(f"HTTP {error.status_code}: {error.message}")) from error
        except openai.APIError as error:
            raise CallError(self._without_key(f"{type(error).__name__}: {error.message}")) from error
        try:
            completion = raw.parse()
            usage = completion.usage
            return Answer(
                raw=raw.text,
                stop_reason=completion.choices[0].finish_reason if completion.choices else None,
                input_tokens=usage.prompt_tokens if usage else None,
                output_tokens=usage.completion_tokens if usage else None,
                latency_ms=(time.monotonic() - started) * 1000,
            )
        except (ValueError, AttributeError, TypeError, RecursionError):
            # another body than the API's, such as a proxy's page
            message = f"HTTP {raw.status_code}, but no chat completion: {raw.text[:200]!r}"
            raise CallError(self._without_key(message)) from None

    def _without_key(self, message: str) -> str:
        """`message` without the key, which some servers repeat when they refuse it."""
        return message.replace(self._api_key, "…") if len(self._api_key) > 8 else message
