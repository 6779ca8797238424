"""A provider's client, with its key from the environment. The SDKs are imported here, only when
needed."""

import os

from pipelines.generate.bodies import MEGABYTE
from pipelines.generate.client import Client
from pipelines.settings.providers import Provider


def api_key(provider: Provider) -> str | None:
    """The provider's key; None if it needs none, or if the variable holds none that fits into a
    header.

    White space around the key, such as the line end of a file, is removed: an error about such a
    header would show the key.
    """
    key = os.environ.get(provider.key_env, "").strip() if provider.key_env else ""
    return key if key and key.isascii() and key.isprintable() else None


def client_for(provider: Provider, *, base_url: str | None = None) -> Client:
    """A client of the provider; `base_url` is used if the provider's configuration names none."""
    key = api_key(provider)
    url = provider.base_url or base_url
    if provider.kind == "anthropic":
        from pipelines.generate.anthropic_client import AnthropicClient

        return AnthropicClient(
            base_url=url,
            api_key=key or "",
            timeout_seconds=provider.timeout_seconds,
            slots=provider.concurrency,
            most_bytes=provider.max_answer_mb * MEGABYTE,
        )
    from pipelines.generate.openai_client import OpenAIClient

    return OpenAIClient(
        base_url=url,
        api_key=key,
        timeout_seconds=provider.timeout_seconds,
        slots=provider.concurrency,
        strict=provider.kind == "openai",
        most_bytes=provider.max_answer_mb * MEGABYTE,
    )
