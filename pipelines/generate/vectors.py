"""Responses of `/v1/embeddings`: the vectors of a request's texts, and the token counts."""

import json
from typing import Any

from pipelines.generate.answers import Answer, Usage

PURPOSE = "embed"
# The parameter of a request with the server's address. It is part of the key, and is not sent.
ADDRESS = "base_url"
# Of a float32; NaN compares as False.
LARGEST = 3.4e38


def read_embeddings(raw: str, *, count: int) -> Answer:
    """What a response of `/v1/embeddings` says of itself.

    Raises:
        ValueError: it does not hold `count` vectors.
    """
    try:
        body = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    vectors = vectors_in(body)
    if len(vectors) != count:
        raise ValueError(f"{len(vectors)} embeddings for {count} texts")
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    tokens, model = usage.get("prompt_tokens"), body.get("model")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        tokens = None
    return Answer(
        raw=raw,
        usage=Usage(input=tokens, output=None if tokens is None else 0),
        model=model if isinstance(model, str) else None,
        odd_usage="it tells no token counts" if tokens is None else None,
    )


def vectors_in(body: Any) -> list[list[float]]:
    """The vectors of a response, in the order of its texts.

    Raises:
        ValueError: it holds none, or something that is no vector of finite numbers.
    """
    items = body.get("data") if isinstance(body, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("no list of embeddings")
    places = [item.get("index", place) for place, item in enumerate(items)]
    if not all(type(place) is int for place in places) or set(places) != set(range(len(items))):
        raise ValueError("its embeddings do not say which text they belong to")
    by_place = dict(zip(places, items, strict=True))
    vectors = [by_place[place].get("embedding") for place in range(len(items))]
    if not all(_is_vector(vector) for vector in vectors):
        raise ValueError("an embedding is no list of finite numbers")
    return vectors


def _is_vector(value: Any) -> bool:
    numbers = isinstance(value, list) and bool(value) and all(type(number) in (int, float) for number in value)
    return numbers and all(abs(number) <= LARGEST for number in value)
