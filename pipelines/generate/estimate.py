"""What a run would ask for and cost, before a single request is sent."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipelines.experiments import Experiments
from pipelines.generate.answers import Usage
from pipelines.generate.journal import Request, opened
from pipelines.generate.prices import batch_share, costs_of, worst_cost, worst_usage
from pipelines.generate.providers import enabled, missing_key
from pipelines.generate.requests import load_prompts, requests_for
from pipelines.paths import DataRoot


@dataclass(frozen=True)
class Estimate:
    """One provider's next run. `worst` is what the budget must hold; `likely` goes by the tokens of its past answers.

    None: not known, since there is no price, or no past answer to go by.
    """

    provider: str
    model: str
    requests: int
    held: int
    worst_input_tokens: int
    worst_output_tokens: int
    worst_usd: float | None
    likely_input_tokens: int | None
    likely_output_tokens: int | None
    likely_usd: float | None
    charged_usd: float
    budget_usd: float | None
    problem: str | None


def estimate(data: DataRoot, experiments: Experiments, only: Iterable[str] | None = None) -> Iterator[Estimate]:
    """For each enabled API, what the journal holds no answer for and what that would cost. Nothing is sent or written.

    Raises:
        UsageError: the prompts are broken, or `only` names a provider that may not be asked.
    """
    prompts = load_prompts(data, experiments.generation)
    with opened(data.journal) as journal:
        rows, charges = list(journal.rows()), journal.charges()
        for name in enabled(experiments, only):
            provider = experiments.provider(name)
            wanted = [
                a.request for a in requests_for(name, provider, experiments.generation, prompts, journal.given_up())
            ]
            pending = journal.to_send(wanted)
            share = batch_share(provider) if provider.batch else 1.0
            costs = costs_of(provider)
            worsts = [worst_cost(costs, request) for request in pending]
            tokens = [worst_usage(request) for request in pending]
            likely = _likely(
                [row for row in rows if row["provider"] == name and row["model"] == provider.model], pending
            )
            charge = charges.get(name)
            usd = costs(likely) if costs and likely else None
            yield Estimate(
                provider=name,
                model=provider.model,
                requests=len(pending),
                held=journal.answered_among(wanted),
                worst_input_tokens=sum(usage.input or 0 for usage in tokens),
                worst_output_tokens=sum(usage.output or 0 for usage in tokens),
                worst_usd=None if costs is None else sum(worst or 0.0 for worst in worsts) * share,
                likely_input_tokens=likely.input if likely else None,
                likely_output_tokens=likely.output if likely else None,
                likely_usd=None if usd is None else usd * share,
                charged_usd=charge.total if charge else 0.0,
                budget_usd=provider.budget_usd,
                problem=missing_key(provider),
            )


def _likely(rows: list[dict[str, Any]], pending: list[Request]) -> Usage | None:
    """So many requests like the past ones: the mean of what those took."""
    told = [row for row in rows if row["input_tokens"] is not None and row["output_tokens"] is not None]
    if not told:
        return None
    means = (fmean(row[name] for row in told) for name in ("input_tokens", "output_tokens"))
    taken_in, given_out = (round(mean * len(pending)) for mean in means)
    return Usage(input=taken_in, output=given_out)


def in_words(estimates: list[Estimate], total_budget: float | None) -> Iterator[str]:
    """The estimates for a terminal, with what the budgets leave."""
    if not estimates:
        yield "no provider is enabled: nothing would be asked (providers.<name>.enabled in experiments.yaml)"
    for one in estimates:
        yield f"{one.provider} ({one.model}): {one.requests} requests to send, {one.held} answers held already"
        yield (
            f"  at worst  {one.worst_input_tokens:>12,} tokens in  {one.worst_output_tokens:>12,} out  {_dollars(one.worst_usd)}"
        )
        if one.likely_input_tokens is not None:
            likely = f"{one.likely_input_tokens:>12,} tokens in  {one.likely_output_tokens:>12,} out"
            yield f"  likely    {likely}  {_dollars(one.likely_usd)}"
        budget = "no budget" if one.budget_usd is None else f"of ${one.budget_usd:.4g}"
        yield f"  charged   ${one.charged_usd:.4f} so far, {budget}"
        if one.problem:
            yield f"  cannot be asked: {one.problem}"
    if total_budget is not None:
        yield f"budget for all providers together: ${total_budget:.4g}"


def _dollars(usd: float | None) -> str:
    return "price unknown" if usd is None else f"${usd:.4f}"
