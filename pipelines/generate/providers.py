"""From the configuration to jobs: which providers may be used, with which key, and through which
client."""

import math
from collections.abc import Iterable

from pipelines.errors import UsageError
from pipelines.generate.budget import Caps
from pipelines.generate.clients import api_key, client_for
from pipelines.generate.journal import Request
from pipelines.generate.prices import costs_of
from pipelines.generate.send import Job
from pipelines.records.expected import expected_one_of
from pipelines.settings.experiments import Experiments
from pipelines.settings.providers import Provider


def enabled(experiments: Experiments, only: Iterable[str] | None = None) -> list[str]:
    """The APIs that may be used: those with `enabled: true`, or those of them that `only` names.

    Raises:
        UsageError: `only` names an API that does not exist or is not enabled.
    """
    apis = {name: provider for name, provider in experiments.providers.items() if provider.kind != "local"}
    for name in only or []:
        if name not in experiments.providers:
            raise UsageError(f"unknown provider {name!r}; {expected_one_of(name, list(experiments.providers))}")
        if name in apis and not apis[name].enabled:
            raise UsageError(
                f"provider {name} is not enabled, and asking it may cost money: set providers.{name}.enabled: true"
            )
    return [name for name, provider in apis.items() if provider.enabled and (not only or name in only)]


def missing_key(provider: Provider) -> str | None:
    """A sentence on the missing key of a provider; None if nothing is missing."""
    if provider.key_env and not api_key(provider):
        return f"{provider.key_env} is not set, or not to a key: put the API key into the environment, or set enabled: false"
    return None


def refusal(experiments: Experiments, name: str, role: str) -> str | None:
    """Why the API may not be asked as `role`, such as "judge"; None if it may."""
    if name not in enabled(experiments):
        return f"the {role} {name} is not enabled, and asking it may cost money: set providers.{name}.enabled: true"
    return missing_key(experiments.provider(name))


def job_for(name: str, provider: Provider, requests: list[Request], *, base_url: str | None = None) -> Job:
    return Job(
        provider=name,
        requests=requests,
        client=lambda: client_for(provider, base_url=base_url),
        slots=provider.concurrency,
        longest_wait=provider.longest_retry_after_seconds,
        costs=costs_of(provider),
    )


def caps_of(experiments: Experiments, this_run: float | None = None) -> Caps:
    """The configured caps and the cap of this run alone, in dollars.

    Raises:
        UsageError: `this_run` is not an amount of money.
    """
    if this_run is not None and not 0 <= this_run < math.inf:
        raise UsageError(
            f"the budget of this run is {this_run:g}; expected dollars from 0 on, such as 0.50, or none at all"
        )
    per_provider = {name: provider.budget_usd for name, provider in experiments.providers.items()}
    return Caps(total=experiments.generation.budget_usd, per_provider=per_provider, this_run=this_run)
