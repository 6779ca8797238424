"""The fake provider's embeddings: every word of a text adds to one place of its vector, so texts
that share words are close."""

from hashlib import sha256
from typing import Any

from tests.fakes.behavior import Behavior
from tests.fakes.wire import Problem

SIZE = 48


def vector(text: str) -> list[float]:
    numbers = [0.0] * SIZE
    for word in text.lower().split():
        numbers[sha256(word.encode()).digest()[0] % SIZE] += 1.0
    return numbers


def embeddings_body(body: dict[str, Any], behavior: Behavior) -> dict[str, Any]:
    """The response to a request of `/v1/embeddings`, as OpenAI's API forms it.

    Raises:
        Problem: the request is one that OpenAI refuses.
    """
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise Problem("invalid_request", "'$.input' is invalid.")
    if body.get("encoding_format", "float") != "float":
        raise Problem("invalid_request", "only encoding_format float is offered here")
    items = [{"object": "embedding", "index": at, "embedding": vector(text)} for at, text in enumerate(texts)]
    if behavior.embeddings == "shuffled":
        items.reverse()
    if behavior.embeddings == "too_few":
        items.pop()
    tokens = sum(max(1, len(text.encode()) // 4) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": items, "model": body.get("model"), "usage": usage}
