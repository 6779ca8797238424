"""Never more than the budget: a request's worst case is reserved before it is sent, and settled by its usage afterwards.

The sums are those of the journal, so that every run, and every purpose, counts against the same caps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.generate.journal import Charges, Request

ROUNDING = 1e-9  # dollars: sums of floats may miss a cap that they meet exactly


@dataclass(frozen=True)
class Caps:
    """Dollars that may be spent at most: in all, per provider, and by this run alone. None: no cap."""

    total: float | None = None
    per_provider: Mapping[str, float | None] | None = None
    this_run: float | None = None

    def any_for(self, provider: str) -> bool:
        return any(cap is not None for cap in (self.total, self.this_run, (self.per_provider or {}).get(provider)))


def unknown_price(provider: str, request: Request) -> str:
    """Why a request without a known price is not sent under a budget, and what to do."""
    return (
        f"the price of {request.model} is not known, so no budget can be kept: give `price: {{input: …, output: …}}` (dollars per "
        f"million tokens) under providers.{provider}, or take every budget_usd away"
    )


class Budget:
    """What is left, in one process."""

    def __init__(self, caps: Caps, charges: Mapping[str, Charges]) -> None:
        self.caps = caps
        self._charged = {provider: charge.total for provider, charge in charges.items()}
        self._before = sum(self._charged.values())

    @property
    def charged(self) -> float:
        """Dollars of the journal as a whole, reserved ones included."""
        return sum(self._charged.values())

    @property
    def charged_now(self) -> float:
        """Dollars of this run."""
        return self.charged - self._before

    def charged_by(self, provider: str) -> float:
        return self._charged.get(provider, 0.0)

    def shortage(self, provider: str, worst: float) -> str | None:
        """The cap that `worst` more dollars would cross, in words; None if it fits."""
        own = (self.caps.per_provider or {}).get(provider)
        for name, cap, spent in (
            (f"providers.{provider}.budget_usd", own, self.charged_by(provider)),
            ("generation.budget_usd", self.caps.total, self.charged),
            ("the budget of this run", self.caps.this_run, self.charged_now),
        ):
            fits = cap is None or spent + worst <= cap + ROUNDING  # a cap that is no number fits nothing
            if not fits:
                return f"budget reached: {name} is ${cap:.4g}, ${spent:.4f} are charged and the next request may cost ${worst:.4f}"
        return None

    def hold(self, provider: str, worst: float) -> str | None:
        """Charge the `worst` that a request can cost, before it leaves; or say which cap stands in the way."""
        if shortage := self.shortage(provider, worst):
            return shortage
        self._charged[provider] = self.charged_by(provider) + worst
        return None

    def give_back(self, provider: str, dollars: float, *, of_this_run: bool = True) -> None:
        """Held `dollars` were not spent after all; what an earlier run had held is no gain of this one's own cap."""
        self._charged[provider] = self.charged_by(provider) - dollars
        if not of_this_run:
            self._before -= dollars
