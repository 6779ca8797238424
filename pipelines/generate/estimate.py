"""The requests and the cost of a run, before anything is sent."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pipelines.generate.answers import Usage
from pipelines.generate.budget import unknown_price
from pipelines.generate.journal import Charges, Journal, Request
from pipelines.generate.prices import batch_share, costs_of, worst_cost, worst_usage
from pipelines.generate.providers import caps_of, enabled, missing_key
from pipelines.generate.requests import request_source
from pipelines.generate.trained_on import untrained
from pipelines.lake.paths import DataRoot
from pipelines.settings.experiments import Experiments

# Tokens of a prompt and of its answer.
Tokens = tuple[int, int]


@dataclass(frozen=True)
class Estimate:
    """One provider's next run. `worst_…` is the amount that the budget must hold; `likely_…` is
    based on past answers.

    None: unknown, for lack of a price or of past answers. `untrained` says that nothing is trained
    on the records, and what to change.
    """

    provider: str
    model: str
    requests: int
    held: int
    in_batch: int
    worst_input_tokens: int
    worst_output_tokens: int
    worst_usd: float | None
    likely_input_tokens: int | None
    likely_output_tokens: int | None
    likely_usd: float | None
    charged_usd: float
    budget_usd: float | None
    problem: str | None
    untrained: str | None = None


def estimate(data: DataRoot, experiments: Experiments, only: Iterable[str] | None = None) -> Iterator[Estimate]:
    """For each enabled API, the requests without an answer in the journal and their cost. Nothing
    is sent.

    Raises:
        UsageError: the prompts are broken, or `only` names a provider that may not be used.
    """
    untrained_reasons = untrained(experiments)
    with request_source(data, experiments) as reading:
        for name in enabled(experiments, only):
            share = batch_share(provider) if (provider := experiments.provider(name)).batch else 1.0
            row = of_requests(reading.journal, experiments, name, reading.requests(name), share=share)
            yield replace(row, untrained=untrained_reasons.get(name))


def of_requests(
    journal: Journal, experiments: Experiments, name: str, requests: list[Request], *, share: float = 1.0
) -> Estimate:
    """The estimate for `requests`, which have one purpose, to one provider, at `share` of its
    price."""
    provider, caps = experiments.provider(name), caps_of(experiments)
    pending = journal.to_send(requests)
    past = _past(journal, provider.model, requests[0]) if requests else []
    costs = costs_of(provider)
    tokens, worsts = [worst_usage(request) for request in pending], [worst_cost(costs, request) for request in pending]
    unpriced = pending[0] if None in worsts and caps.any_for(name) else None
    usual = _usual(past)
    usual_usd = costs(usual) if costs and usual else None
    worst_input, worst_output = _totals(tokens)
    likely_input, likely_output = _times(len(pending), usual)
    return Estimate(
        provider=name,
        model=provider.model,
        requests=len(pending),
        held=journal.answered_among(requests),
        in_batch=journal.in_batch_among(requests),
        worst_input_tokens=worst_input,
        worst_output_tokens=worst_output,
        worst_usd=None if costs is None else sum(worst or 0.0 for worst in worsts) * share,
        likely_input_tokens=likely_input,
        likely_output_tokens=likely_output,
        likely_usd=None if usual_usd is None else usual_usd * len(pending) * share,
        charged_usd=journal.charges().get(name, Charges()).total,
        budget_usd=provider.budget_usd,
        problem=missing_key(provider) or (unknown_price(name, unpriced) if unpriced else None),
    )


def _totals(usages: Sequence[Usage]) -> Tokens:
    return sum(usage.input or 0 for usage in usages), sum(usage.output or 0 for usage in usages)


def _times(requests: int, usual: Usage | None) -> Tokens | tuple[None, None]:
    return ((usual.input or 0) * requests, (usual.output or 0) * requests) if usual else (None, None)


def _past(journal: Journal, model: str, like: Request) -> list[Tokens]:
    """The tokens of past answers to requests of the same provider and purpose."""
    return [
        (row["input_tokens"], row["output_tokens"])
        for row in journal.rows()
        if (row["purpose"], row["provider"], row["model"]) == (like.purpose, like.provider, model)
        and None not in (row["input_tokens"], row["output_tokens"])
    ]


def _usual(past: list[Tokens]) -> Usage | None:
    """The mean tokens of past answers, as one request: some prices rise with the length of a
    request, so each is priced alone."""
    if not past:
        return None
    return Usage(
        input=round(fmean(tokens_in for tokens_in, _ in past)),
        output=round(fmean(tokens_out for _, tokens_out in past)),
    )


def in_words(estimates: list[Estimate], total_budget: float | None) -> Iterator[str]:
    """The estimates for a terminal, with the budgets."""
    if not estimates:
        yield "no provider is enabled: nothing would be sent (providers.<name>.enabled in experiments.yaml)"
    for one in estimates:
        waiting = f", {one.in_batch} in a batch" if one.in_batch else ""
        yield f"{one.provider} ({one.model}): {one.requests} requests to send, {one.held} answers held already{waiting}"
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
        if one.untrained:
            yield f"  {one.untrained}"
    if total_budget is not None:
        yield f"budget for all providers together: ${total_budget:.4g}"


def _dollars(usd: float | None) -> str:
    return "price unknown" if usd is None else f"${usd:.4f}"
