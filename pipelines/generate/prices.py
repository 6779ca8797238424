"""The cost and the worst-case cost of a request, by the user's own prices or the bundled table of
`genai-prices`.

An unknown price is None, never zero. Only the local server is free.
"""

import json
from dataclasses import dataclass
from typing import Protocol

from pipelines.generate.answers import Usage
from pipelines.generate.journal import Request
from pipelines.settings.providers import Price, Provider

MILLION = 1_000_000
# A token is at least one byte, so the bytes sent bound the prompt's tokens. These come on top for
# what the API adds (roles, and its instructions for a schema).
OVERHEAD_TOKENS = 1_000


class Costs(Protocol):
    """Dollars for the tokens of one request; None if they are unknown."""

    def __call__(self, usage: Usage) -> float | None: ...


@dataclass(frozen=True)
class OwnPrice:
    """The user's own prices, per million tokens."""

    price: Price

    def __call__(self, usage: Usage) -> float | None:
        if usage.input is None or usage.output is None:
            return None
        cached = min(usage.cached_input or 0, usage.input)
        cached_price = self.price.input if self.price.cached_input is None else self.price.cached_input
        fresh = (usage.input - cached) * self.price.input
        return (fresh + cached * cached_price + usage.output * self.price.output) / MILLION


@dataclass(frozen=True)
class ListPrice:
    """Prices of the bundled table."""

    vendor: str
    model: str

    def __call__(self, usage: Usage) -> float | None:
        from genai_prices import Usage as ListUsage
        from genai_prices import calc_price

        if usage.input is None or usage.output is None:
            return None
        cache_reads = min(usage.cached_input or 0, usage.input)
        # The table rejects parts that add up to more than the whole.
        cache_writes = min(usage.cache_write or 0, usage.input - cache_reads)
        counts = {"input_tokens": usage.input, "cache_read_tokens": cache_reads, "cache_write_tokens": cache_writes}
        list_usage = ListUsage(**counts, output_tokens=usage.output)
        return float(calc_price(list_usage, self.model, provider_id=self.vendor).total_price)


def costs_of(provider: Provider) -> Costs | None:
    """The prices of a provider: the user's `price`, else the table for Anthropic's and OpenAI's
    models; None if unknown.

    An OpenAI-compatible server is another seller, even if its model has a name from the table.
    """
    if provider.kind == "local":
        return OwnPrice(Price(input=0, output=0))
    if provider.price:
        return OwnPrice(provider.price)
    if provider.kind == "openai-compatible":
        return None
    listed = ListPrice(provider.kind, provider.model)
    try:
        known = listed(Usage(input=1, output=1)) is not None
    except LookupError:
        return None
    return listed if known else None


def batch_share(provider: Provider) -> float:
    """Share of the price that a batched request costs: half at both APIs, unless the user's price
    sets another."""
    return provider.price.batch_share if provider.price else 0.5


def worst_usage(request: Request) -> Usage:
    """The most tokens that `request` can be billed for: its bytes plus OVERHEAD_TOKENS in,
    max_tokens out."""
    content = json.dumps([request.messages, request.schema], ensure_ascii=False)
    return Usage(input=len(content.encode()) + OVERHEAD_TOKENS, output=request.parameters["max_tokens"])


def worst_cost(costs: Costs | None, request: Request) -> float | None:
    """The most dollars that `request` can cost, also if its prompt is written to a cache; None if
    the price is unknown."""
    if costs is None:
        return None
    worst = worst_usage(request)
    plain = costs(worst)
    with_cache_write = costs(Usage(input=worst.input, cache_write=worst.input, output=worst.output))
    return None if plain is None or with_cache_write is None else max(plain, with_cache_write)
