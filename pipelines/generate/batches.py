"""Batch mode, at half price: submit and collect are separate steps, and either may be killed at any moment.

A batch is written down with its requests before it is handed in, and the provider's id as soon as it is known. One whose handing-in
was cut off is looked for at the provider (by our mark) before anything is believed lost; only then are its requests in doubt.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.cells import new_run_id
from pipelines.generate.answers import CallError
from pipelines.generate.batch_clients import (
    CONNECTION_ERRORS,
    STATUS_ERRORS,
    AnthropicBatches,
    BatchClient,
    Item,
    OpenAIBatches,
    Seen,
    iso_seconds,
)
from pipelines.generate.budget import Budget, unknown_price
from pipelines.generate.client import fate_of, refusal_or_error, without
from pipelines.generate.clients import api_key, client_for
from pipelines.generate.journal import Journal, Request, now
from pipelines.generate.prices import Costs, batch_share, costs_of, worst_cost
from pipelines.generate.send import TRIES, Tally
from pipelines.generate.settings import Provider

BatchStep = Literal["submit", "collect"]
ITEMS = 10_000  # of one batch; both APIs take more, but a smaller one is sooner done and sooner lost
BELIEVED_LOST_SECONDS = 900.0  # a batch that no listing shows by then was never made


@dataclass
class Batching:
    """One provider's batches in one call."""

    journal: Journal
    budget: Budget
    name: str
    provider: Provider
    client: BatchClient
    tally: Tally

    @property
    def costs(self) -> Costs | None:
        return costs_of(self.provider)


async def work(
    journal: Journal,
    budget: Budget,
    name: str,
    provider: Provider,
    requests: list[Request],
    *,
    only: BatchStep | None = None,
) -> Tally:
    """Collect every batch that has ended, then submit what still holds no answer, or `only` one of the two. Nothing is waited for.

    Raises:
        WorkError: the journal cannot be written.
    """
    tally = Tally(total=len(journal.to_send(requests)))
    async with client_for(provider) as client:
        apis: Any = AnthropicBatches if provider.kind == "anthropic" else OpenAIBatches
        batching = Batching(journal, budget, name, provider, apis(client), tally)
        try:
            if only != "submit":
                await collect(batching)
            if only != "collect" and tally.stopped is None:
                await submit(batching, requests)
        except STATUS_ERRORS as error:
            tally.stopped = in_words(error, provider)
        except CONNECTION_ERRORS as error:
            tally.stopped = f"no connection: {error}; run it again later"
    return tally


async def collect(work: Batching) -> None:
    """Take the results of every batch that has ended into the journal."""
    for row in _open_batches(work.journal, work.name):
        batch = row["provider_batch_id"] or await _found_again(work, row)
        if batch is None:
            continue
        seen = await work.client.look(batch)
        if seen.ended:
            await _take(work, row, seen)


async def submit(work: Batching, requests: Sequence[Request]) -> None:
    """Hand in what holds no answer and lies in no batch, as far as the budget goes; each batch is worth a resumable step."""
    attempts = _attempts(work.journal)
    pending = [request for request in work.journal.to_send(requests) if attempts[request.key] < TRIES]
    work.tally.failed += len(work.journal.to_send(requests)) - len(pending)
    share, affordable = batch_share(work.provider), list[tuple[Request, float]]()
    for request in pending:
        worst = worst_cost(work.costs, request)
        if worst is None and work.budget.caps.any_for(work.name):
            work.tally.stopped = unknown_price(work.name, request)
            break
        reserve = (worst or 0.0) * share
        if short := work.budget.hold(work.name, reserve):
            work.tally.stopped = short
            break
        affordable.append((request, reserve))
    for start in range(0, len(affordable), ITEMS):
        await _hand_in(work, affordable[start : start + ITEMS])


async def _hand_in(work: Batching, items: list[tuple[Request, float]]) -> None:
    mark = new_run_id().replace("T", "")[-24:]
    with work.journal.transaction() as db:
        db.execute(
            "INSERT INTO batches (id, provider, status, requests, created_at) VALUES (?, ?, 'creating', ?, ?)",
            (mark, work.name, len(items), now()),
        )
        for request, reserve in items:
            work.journal.sending(request, reserve=reserve, batch=mark)
    try:
        batch = await work.client.create(mark, [request for request, _ in items])
    except STATUS_ERRORS as error:
        if fate_of(error.status_code, set(), "") != "unknown":  # it was turned away: no batch, no cost
            _give_up(work.journal, mark, "lost", in_words(error, work.provider))
        raise
    _set_batch(work.journal, mark, "submitted", provider_batch_id=batch)


async def _found_again(work: Batching, row: dict[str, Any]) -> str | None:
    """The provider's id of a batch whose handing-in was cut off; None while, or because, there is none."""
    created = iso_seconds(row["created_at"])
    known = {other["provider_batch_id"] for other in _batches(work.journal)}
    candidates = [seen async for seen in work.client.recent(created) if seen.id not in known]
    marked = [seen for seen in candidates if seen.mark == row["id"]]
    alike = [seen for seen in candidates if seen.mark is None and seen.requests == row["requests"]]
    for seen in marked or alike:
        if seen.mark == row["id"] or await _is_ours(work, seen, row["id"], alone=len(alike) == 1):
            _set_batch(work.journal, row["id"], "submitted", provider_batch_id=seen.id)
            return seen.id
    if not alike and time.time() - created > BELIEVED_LOST_SECONDS:
        _doubt(work.journal, row["id"], "the batch was cut off while it was handed in, and the provider shows none")
    return None


async def _is_ours(work: Batching, seen: Seen, mark: str, *, alone: bool) -> bool:
    """An API without marks of its own (Anthropic's) tells by the ids in the results, once there are any."""
    if not seen.ended:
        return alone  # the only one it can be; the ids are checked again when it is collected
    async for item in work.client.results(seen.id):
        return item.custom_id.startswith(f"{mark}-")
    return False


async def _take(work: Batching, row: dict[str, Any], seen: Seen) -> None:
    """Write every result of an ended batch down in one go; what it does not mention was not worked on and costs nothing."""
    mark = row["id"]
    if seen.problem:
        _give_up(work.journal, mark, "collected", seen.problem)
        work.tally.stopped = f"batch {seen.id} failed: {seen.problem}"
        return
    items = [item async for item in work.client.results(seen.id)]
    mine = [item for item in items if item.custom_id.startswith(f"{mark}-")]
    if items and not mine:
        _set_batch(work.journal, mark, "creating", provider_batch_id=None)
        return
    waiting = _keys_in(work.journal, mark)
    share, counts = batch_share(work.provider), Counter[str]()
    with work.journal.transaction():
        for item in mine:
            key = item.custom_id.removeprefix(f"{mark}-")
            if key in waiting:
                waiting.discard(key)
                counts[_take_item(work, key, item, share)] += 1
        for key in waiting:
            work.journal.failed(key, "expired: the batch ended before it was worked on")
            counts["expired"] += 1
    detail = ", ".join(f"{count} {name}" for name, count in counts.items())
    _set_batch(work.journal, mark, "collected", detail=detail)


def _take_item(work: Batching, key: str, item: Item, share: float) -> str:
    if item.answer is not None:
        cost = work.costs(item.answer.usage) if work.costs else None
        work.journal.answered(key, item.answer, cost=None if cost is None else cost * share)
        work.tally.answered += 1
        work.tally.refused += item.answer.refused
        work.tally.tokens += item.answer.usage.total
        return "answered"
    work.journal.failed(key, item.error)
    work.tally.errors += 1
    told = item.codes & {"invalid_request_error", "authentication_error", "permission_error", "not_found_error"}
    if told or (item.status and fate_of(item.status, set(item.codes), item.error) == "stopped"):
        work.tally.stopped = f"in a batch: {item.error}"
    return "expired" if item.error.startswith("expired") or "batch_expired" in item.codes else "failed"


def in_words(error: Any, provider: Provider) -> str:
    """An HTTP error in the provider's words, without its key."""
    key = api_key(provider)
    try:
        refusal_or_error(error, key)
    except CallError as told:
        return str(told)
    return without(str(error), key)


def _batches(journal: Journal) -> list[dict[str, Any]]:
    with journal.transaction() as db:
        return [dict(row) for row in db.execute("SELECT * FROM batches ORDER BY id")]


def _open_batches(journal: Journal, provider: str) -> list[dict[str, Any]]:
    return [
        row for row in _batches(journal) if row["provider"] == provider and row["status"] in ("creating", "submitted")
    ]


def _keys_in(journal: Journal, mark: str) -> set[str]:
    with journal.transaction() as db:
        rows = db.execute("SELECT key FROM requests WHERE batch_id = ? AND status = 'in_flight'", (mark,))
        return {row["key"] for row in rows}


def _attempts(journal: Journal) -> Counter[str]:
    with journal.transaction() as db:
        return Counter({row["key"]: row["attempts"] for row in db.execute("SELECT key, attempts FROM requests")})


def _set_batch(journal: Journal, mark: str, status: str, **columns: Any) -> None:
    named = {"status": status, "finished_at": now() if status in ("collected", "lost") else None, **columns}
    with journal.transaction() as db:
        assignments = ", ".join(f"{name} = ?" for name in named)
        db.execute(f"UPDATE batches SET {assignments} WHERE id = ?", (*named.values(), mark))


def _give_up(journal: Journal, mark: str, status: str, why: str) -> None:
    """None of its requests was worked on."""
    keys = _keys_in(journal, mark)
    with journal.transaction():
        for key in keys:
            journal.failed(key, why)
    _set_batch(journal, mark, status, detail=why[:500])


def _doubt(journal: Journal, mark: str, why: str) -> None:
    keys = _keys_in(journal, mark)
    with journal.transaction():
        for key in keys:
            journal.doubtful(key, why)
    _set_batch(journal, mark, "lost", detail=why)


def open_batches(journal: Journal) -> list[dict[str, Any]]:
    """Every batch that is not collected yet, for those who want to see it."""
    return [row for row in _batches(journal) if row["status"] in ("creating", "submitted")]
