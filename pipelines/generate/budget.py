"""Never spend more than the budget: the worst-case cost of a request is reserved before it is sent,
and settled afterwards.

The sums come from the journal, so every run and every purpose counts against the same caps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.generate.journal import Charges, Request

# Dollars. Sums of floats may exceed a cap that they should meet exactly.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Caps:
    """The most dollars to spend: in all, per provider, and in this run alone. None: no cap."""

    total: float | None = None
    per_provider: Mapping[str, float | None] | None = None
    this_run: float | None = None

    def any_for(self, provider: str) -> bool:
        return any(cap is not None for cap in (self.total, self.this_run, (self.per_provider or {}).get(provider)))


def unknown_price(provider: str, request: Request) -> str:
    """Why a request of unknown price is not sent under a budget, and the remedy."""
    return (
        f"the price of {request.model} is not known, so no budget can be kept: set `price: {{input: …, output: …}}` (dollars per "
        f"million tokens) under providers.{provider}, or remove every budget_usd"
    )


class Budget:
    """The caps and the dollars charged so far, in one process."""

    def __init__(self, caps: Caps, charges: Mapping[str, Charges]) -> None:
        self.caps = caps
        self._charged = {provider: charge.total for provider, charge in charges.items()}
        self._before = sum(self._charged.values())

    @property
    def charged(self) -> float:
        """Dollars charged in the whole journal, including reservations."""
        return sum(self._charged.values())

    @property
    def charged_now(self) -> float:
        """Dollars charged by this run."""
        return self.charged - self._before

    def charged_by(self, provider: str) -> float:
        return self._charged.get(provider, 0.0)

    def shortage(self, provider: str, worst: float) -> str | None:
        """A sentence on the cap that `worst` more dollars would exceed; None if they fit."""
        provider_cap = (self.caps.per_provider or {}).get(provider)
        for name, cap, spent in (
            (f"providers.{provider}.budget_usd", provider_cap, self.charged_by(provider)),
            ("generation.budget_usd", self.caps.total, self.charged),
            ("the budget of this run", self.caps.this_run, self.charged_now),
        ):
            # Written so that a cap of NaN allows nothing.
            fits = cap is None or spent + worst <= cap + ROUNDING
            if not fits:
                return f"budget reached: {name} is ${cap:.4g}, ${spent:.4f} are charged and the next request may cost ${worst:.4f}"
        return None

    def hold(self, provider: str, worst: float) -> str | None:
        """Charge the worst-case cost of a request before it is sent; returns the reason if a cap
        forbids it."""
        if shortage := self.shortage(provider, worst):
            return shortage
        self._charged[provider] = self.charged_by(provider) + worst
        return None

    def give_back(self, provider: str, dollars: float, *, of_this_run: bool = True) -> None:
        """Return reserved `dollars` that were not spent.

        Those reserved by an earlier run (`of_this_run=False`) do not raise what this run may spend
        under its own cap.
        """
        self._charged[provider] = self.charged_by(provider) - dollars
        if not of_this_run:
            self._before -= dollars
