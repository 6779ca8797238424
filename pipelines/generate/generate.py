"""Generate records: prompts become requests, those without an answer in the journal are sent, and
answers are kept raw."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import IO

from pipelines.errors import UsageError
from pipelines.generate import batches
from pipelines.generate.batches import BatchStep
from pipelines.generate.budget import Budget
from pipelines.generate.journal import Journal, Released, Request, opened
from pipelines.generate.providers import caps_of, enabled, job_for, missing_key
from pipelines.generate.requests import RequestSource, request_source
from pipelines.generate.send import Progress, Tally, send_all
from pipelines.generate.server import local_server
from pipelines.generate.trained_on import local_off, sources_of, untrained
from pipelines.lake.files import announce, locked
from pipelines.lake.paths import DataRoot
from pipelines.records.expected import expected_one_of
from pipelines.records.reading import RawRecord
from pipelines.runs import devices
from pipelines.settings.experiments import Experiments
from pipelines.weights import store


@dataclass(frozen=True)
class ProviderResult:
    """One provider after a run: `wanted` requests, of which `reused` were answered before, and the
    others' outcomes.

    `missing` requests have no answer: they failed, were given up as in doubt, are in a batch, or
    were not sent because the provider `stopped`. `usd` is the provider's total in the journal,
    `reserved_usd` the part whose cost is not known yet. `notes` describe oddities. `unreadable` of
    a judge's answers hold no verdict, and `unreadable_sample` is the text of one.
    """

    wanted: int
    reused: int
    answered: int = 0
    refused: int = 0
    failed: int = 0
    in_doubt: int = 0
    in_batch: int = 0
    stopped: str | None = None
    usd: float = 0.0
    reserved_usd: float = 0.0
    notes: tuple[str, ...] = ()
    unreadable: int = 0
    unreadable_sample: str | None = None

    @property
    def missing(self) -> int:
        return self.wanted - self.reused - self.answered


@dataclass(frozen=True)
class GenerationResult:
    """The outcome of one call, by provider. A process that died had left `orphans` requests in
    flight."""

    providers: dict[str, ProviderResult] = field(default_factory=dict)
    orphans: int = 0

    @property
    def wanted(self) -> int:
        return sum(result.wanted for result in self.providers.values())

    @property
    def reused(self) -> int:
        return sum(result.reused for result in self.providers.values())

    @property
    def answered(self) -> int:
        return sum(result.answered for result in self.providers.values())

    @property
    def missing(self) -> int:
        return sum(result.missing for result in self.providers.values())

    @property
    def stopped(self) -> dict[str, str]:
        return {name: result.stopped for name, result in self.providers.items() if result.stopped}

    @property
    def complete(self) -> bool:
        """Whether every request has a readable answer or is in a batch."""
        all_readable = all(
            result.missing == result.in_batch and not result.unreadable for result in self.providers.values()
        )
        return all_readable and not self.stopped


@dataclass
class Session:
    """The right to send: the requests with their journal, and the budget."""

    data: DataRoot
    request_source: RequestSource
    budget: Budget
    progress: Progress | None
    orphans: int

    @property
    def journal(self) -> Journal:
        return self.request_source.journal

    @property
    def experiments(self) -> Experiments:
        return self.request_source.experiments


@contextmanager
def session(
    data: DataRoot,
    experiments: Experiments,
    *,
    progress: Progress | None = None,
    budget_usd: float | None = None,
    wait: bool = True,
) -> Iterator[Session]:
    """The only way to send: one process at a time. Requests that a dead process left in flight
    become in doubt first.

    Raises:
        UsageError: the prompts are missing or broken.
        WorkError: the journal cannot be opened.
        InUseError: `wait` is False and another process is sending.
    """
    with locked(data.locks / "generation.lock", "generate", wait=wait), request_source(data, experiments) as reading:
        orphans = reading.journal.mark_orphans_in_doubt()
        budget = Budget(caps_of(experiments, budget_usd), reading.journal.charges())
        yield Session(data, reading, budget, progress, orphans)


def generate_locally(data: DataRoot, experiments: Experiments, *, progress: Progress | None = None) -> GenerationResult:
    """Have a local LLM server answer every configured request without an answer in the journal.

    Raises:
        UsageError: the prompts are broken, or no provider of kind local is configured.
        UnavailableError: the generator's model has no packaged GGUF here.
        WorkError: the server did not start.
    """
    name = experiments.local_provider
    if name is None:
        raise UsageError(
            "sources.local_generator is true, but no provider of kind local is configured (experiments.yaml)"
        )
    with ExitStack() as stack:
        # The device first: it may be busy for hours, and other processes must be able to use the
        # APIs meanwhile.
        device = stack.enter_context(device_lock()) if _holds_too_few(data, experiments, name) else None
        run = stack.enter_context(session(data, experiments, progress=progress))
        requests = run.request_source.requests(name)
        reused, pending = run.journal.answered_among(requests), run.journal.to_send(requests)
        tally = serve_and_ask(run, name, pending, device) if device and pending else Tally()
        return GenerationResult({name: outcome(run, name, requests, reused, tally)}, run.orphans)


def device_lock(*, wait: bool = True) -> AbstractContextManager[IO[str]]:
    """The lock on the device of a local server.

    Take it before the session: the device may be busy for hours, and other processes must be able
    to use the APIs meanwhile.
    """
    return locked(devices.locks_of()[0], "the local LLM server", wait=wait)


def _holds_too_few(data: DataRoot, experiments: Experiments, name: str) -> bool:
    with request_source(data, experiments) as reading:
        requests = reading.requests(name)
        return reading.journal.answered_among(requests) < len(requests)


def serve_and_ask(run: Session, name: str, pending: list[Request], device: IO[str]) -> Tally:
    """Start the server, which inherits the lock on its device, and send it the pending requests."""
    provider = run.experiments.provider(name)
    gguf = store.packaged_gguf(run.data, provider.model, run.experiments.model(provider.model))
    with local_server(gguf, slots=provider.concurrency, keep_open=(device.fileno(),)) as url:
        job = job_for(name, provider, pending, base_url=url)
        return asyncio.run(send_all(run.journal, [job], run.budget, progress=run.progress))[name]


def generate_all(
    data: DataRoot,
    experiments: Experiments,
    *,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
    budget_usd: float | None = None,
    batch: BatchStep | None = None,
) -> GenerationResult:
    """Send all configured requests: first to the APIs, then to the local server, which may have to
    wait for its device."""
    chosen = list(only) if only else None
    result = generate(data, experiments, only=chosen, progress=progress, budget_usd=budget_usd, batch=batch)
    if why := None if chosen else local_off(experiments):
        announce(why)
    local = experiments.local_provider
    uses_local = local in chosen if chosen else experiments.sources.uses_local_generator and local is not None
    if not uses_local or batch:
        return result
    store.fetch(data, experiments, experiments.provider(local or "local").model)
    local_result = generate_locally(data, experiments, progress=progress)
    return GenerationResult({**result.providers, **local_result.providers}, result.orphans + local_result.orphans)


def generate_again(data: DataRoot) -> int:
    """Allow requests that were given up to be sent once more; returns their number."""
    with locked(data.locks / "generation.lock", "generate"), opened(data.journal) as journal:
        journal.mark_orphans_in_doubt()
        return journal.forgive_doubts()


def release_in_doubt(data: DataRoot, reason: str, names: Iterable[str] | None = None) -> dict[str, Released]:
    """Release the reservations of requests of unknown fate or cost of these providers (None: all);
    returns sums by provider.

    The user vouches with `reason` that the provider's bill shows no such charge.

    Raises:
        UsageError: no reason is given, or the journal does not know a provider.
        WorkError: the journal cannot be written.
    """
    if not reason.strip():
        raise UsageError(
            "--release-in-doubt: no reason given; say where you looked, such as 'bill of November: no charge'"
        )
    chosen = list(names) if names else None
    with locked(data.locks / "generation.lock", "generate"), opened(data.journal) as journal:
        known = list(journal.charges())
        for name in chosen or []:
            if name not in known:
                raise UsageError(f"the journal knows no provider {name!r}; {expected_one_of(name, known)}")
        journal.mark_orphans_in_doubt()
        return journal.release(reason.strip(), chosen)


def generate(
    data: DataRoot,
    experiments: Experiments,
    *,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
    budget_usd: float | None = None,
    batch: BatchStep | None = None,
) -> GenerationResult:
    """Send the requests without an answer in the journal to all enabled APIs, side by side, within
    the budget.

    For a provider with `batch: true`, finished batches are collected and the remaining requests
    submitted as a new batch.

    Raises:
        UsageError: the prompts are broken, or `only` names a provider that may not be used.
        WorkError: the journal cannot be written.
    """
    with session(data, experiments, progress=progress, budget_usd=budget_usd) as run:
        names = enabled(experiments, only)
        if batch:
            names = [n for n in names if experiments.provider(n).batch or batches.open_batches(run.journal, n)]
        by_provider = {name: run.request_source.requests(name) for name in names}
        reused = {name: run.journal.answered_among(by_provider[name]) for name in names}
        tallies = asyncio.run(_ask_all(run, by_provider, batch))
        results = {name: outcome(run, name, by_provider[name], reused[name], tallies[name]) for name in names}
        for name, why in untrained(experiments).items():
            if name in results:
                results[name] = replace(results[name], notes=(*results[name].notes, why))
        return GenerationResult(results, run.orphans)


async def _ask_all(run: Session, by_provider: dict[str, list[Request]], step: BatchStep | None) -> dict[str, Tally]:
    """Work on batches, then send single requests to the other providers.

    Batches take only a few calls, and the money that they give back is available to all other
    providers.
    """
    tallies: dict[str, Tally] = {}
    tasks: dict[str, asyncio.Task[Tally]] = {}
    async with asyncio.TaskGroup() as group:
        for name, requests in by_provider.items():
            provider, waiting = run.experiments.provider(name), batches.open_batches(run.journal, name)
            if why := missing_key(provider):
                pending = run.journal.to_send(requests)
                tallies[name] = Tally(total=len(pending), stopped=why if pending or waiting else None)
            elif provider.batch or waiting:
                # A provider that no longer uses batches may still have open ones.
                only = step if provider.batch else "collect"
                working = batches.work(run.journal, run.budget, name, provider, requests, only=only)
                tasks[name] = group.create_task(working)
    tallies |= {name: task.result() for name, task in tasks.items()}
    jobs = []
    for name, requests in by_provider.items():
        provider = run.experiments.provider(name)
        if not provider.batch and step is None and not missing_key(provider):
            jobs.append(job_for(name, provider, run.journal.to_send(requests)))
    return tallies | await send_all(run.journal, jobs, run.budget, progress=run.progress)


def outcome(run: Session, name: str, requests: list[Request], reused: int, tally: Tally) -> ProviderResult:
    """The result of a provider. The journal already held `reused` answers to `requests` before the
    run; `tally` is the run's."""
    charges, given_up = run.journal.charges().get(name), run.journal.given_up()
    return ProviderResult(
        wanted=len(requests),
        reused=reused,
        answered=run.journal.answered_among(requests) - reused,
        refused=tally.refused,
        failed=tally.failed,
        in_doubt=max(tally.in_doubt, sum(request.key in given_up for request in requests)),
        in_batch=run.journal.in_batch_among(requests),
        stopped=tally.stopped,
        usd=charges.total if charges else 0.0,
        reserved_usd=charges.reserved if charges else 0.0,
        notes=tuple(f"{kind}, {count} × (such as: {first})" for kind, (count, first) in tally.notes.items()),
    )


def generated_records(data: DataRoot, experiments: Experiments, names: Iterable[str] | None = None) -> list[RawRecord]:
    """The journal's answers to the currently configured requests, each as a raw record, valid or
    not.

    `names`: only of these providers; None: of all that `sources:` trains on.
    """
    chosen = sources_of(experiments) if names is None else list(names)
    if not chosen:
        return []
    with request_source(data, experiments) as reading:
        return [record for name in chosen for _, record in reading.records(name)]
