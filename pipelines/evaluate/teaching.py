"""Asking the teachers: first rewordings of the questions if a teacher needs them, then retrieval,
then answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

from pipelines.errors import UnavailableError, UsageError
from pipelines.evaluate import teacher
from pipelines.evaluate.retrieved_by_teachers import prepare, rewriting
from pipelines.generate.generate import ProviderResult, Session, outcome, serve_and_ask
from pipelines.generate.journal import Journal, Request
from pipelines.generate.judge import ask_enabled
from pipelines.generate.send import Tally
from pipelines.project import Project, Resolved
from pipelines.settings.judging import Teacher
from pipelines.weights import store

Row = dict[str, Any]


def local_teachers(project: Project) -> list[str]:
    """The teachers' providers that run as servers on this machine."""
    named = dict.fromkeys(one.provider for one in project.experiments.judging.teachers)
    return [name for name in named if project.experiments.provider(name).kind == "local"]


def ask_teachers(
    run: Session, resolved: Resolved, records: Sequence[Row], device: IO[str] | None
) -> dict[str, ProviderResult]:
    """Ask all teachers about the records. `device`: the device's lock, which a local server
    needs."""
    teachers, own = resolved.experiments.judging.teachers, teacher.askable(records)
    reworded = _by_provider((one, rewriting(resolved, one, own)) for one in teachers)
    results = send(run, {name: requests for name, requests in reworded.items() if requests}, "rewrites", device)
    problems: dict[str, str] = {}
    for one in teachers:
        try:
            if one.retrieval:
                prepare(resolved, run, one, own)
        except (UnavailableError, UsageError) as error:
            problems[one.provider] = f"{one.method}: {error}"
    answered = send(run, _by_provider(_known(resolved, run.journal, records)), "teacher", device)
    for name, why in problems.items():
        result = answered[f"{name} (teacher)"]
        answered[f"{name} (teacher)"] = replace(result, stopped=result.stopped or why)
    return results | answered


def known_requests(resolved: Resolved, journal: Journal | None, records: Sequence[Row]) -> dict[str, list[Request]]:
    """The known requests by provider: all rewordings, and each question whose retrieval is done."""
    own = teacher.askable(records)
    reworded = ((one, rewriting(resolved, one, own)) for one in resolved.experiments.judging.teachers)
    return _by_provider([*reworded, *_known(resolved, journal, records)])


def all_requests(resolved: Resolved, journal: Journal, records: Sequence[Row]) -> list[Request] | None:
    """All requests to the teachers; None if the retrieval for a question is still missing."""
    own = teacher.askable(records)
    requests: list[Request] = []
    for one, answer_requests in _known(resolved, journal, records):
        if len(answer_requests) < len(own):
            return None
        requests += [*rewriting(resolved, one, own), *answer_requests]
    return requests


def _known(
    resolved: Resolved, journal: Journal | None, records: Sequence[Row]
) -> Iterable[tuple[Teacher, list[Request]]]:
    for one in resolved.experiments.judging.teachers:
        yield one, [request for _, request, _ in teacher.requests(resolved, journal, one, records)]


def _by_provider(batches: Iterable[tuple[Teacher, list[Request]]]) -> dict[str, list[Request]]:
    """The requests of all teachers by provider, each once."""
    merged: dict[str, dict[str, Request]] = {}
    for one, requests in batches:
        merged.setdefault(one.provider, {}).update({request.key: request for request in requests})
    return {name: list(requests.values()) for name, requests in merged.items()}


def send(
    run: Session, requests: Mapping[str, list[Request]], role: str, device: IO[str] | None = None
) -> dict[str, ProviderResult]:
    """Send each provider its requests as `role`: the APIs first, then the local servers one by one.

    Local servers need the device.
    """
    held = {name: run.journal.answered_among(own) for name, own in requests.items()}
    local = {name for name in requests if run.experiments.provider(name).kind == "local"}
    tallies = ask_enabled(run, {name: own for name, own in requests.items() if name not in local}, role)
    tallies |= {name: _ask_locally(run, name, requests[name], device) for name in requests if name in local}
    return {f"{name} ({role})": outcome(run, name, requests[name], held[name], tallies[name]) for name in requests}


def _ask_locally(run: Session, name: str, requests: list[Request], device: IO[str] | None) -> Tally:
    pending = run.journal.to_send(requests)
    if not pending or device is None:
        return Tally(total=len(pending))
    try:
        store.fetch(run.data, run.experiments, run.experiments.provider(name).model)
        return serve_and_ask(run, name, pending, device)
    except (UnavailableError, UsageError) as error:
        return Tally(total=len(pending), stopped=str(error))
