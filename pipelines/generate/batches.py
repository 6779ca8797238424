"""Batch mode, at half price: submit and collect are separate steps, and either may be killed at any
moment.

The journal records a batch and its requests before the batch is created, and the provider's id as
soon as it is known. If the creation was cut off, the batch is first looked up at the provider. Its
requests are in doubt only if the provider does not have it.
"""

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pipelines.generate.answers import CallError
from pipelines.generate.budget import Budget, unknown_price
from pipelines.generate.client import fate_of
from pipelines.generate.journal import Charges, Journal, Request
from pipelines.generate.prices import Costs, batch_share, costs_of, worst_cost
from pipelines.generate.send import TRIES, Tally
from pipelines.generate.settle import settle
from pipelines.lake.run_ids import new_run_id
from pipelines.runs.clock import now
from pipelines.settings.providers import Provider

# For type checking only, since this module loads both SDKs.
if TYPE_CHECKING:
    from pipelines.generate.batch_clients import BatchClient, BatchStatus, Item, Results

BatchStep = Literal["submit", "collect"]
# Requests with the dollars reserved for each.
Reservations = list[tuple[Request, float]]
# Requests in one batch, at most. Both APIs take more, but a smaller batch ends sooner and risks
# less.
ITEMS = 10_000
# Bytes in a batch's results: the fields around one answer, and one escaped token of its text.
ITEM_BYTES, TOKEN_BYTES = 20_000, 32
# A batch that no listing shows after this time was never created.
BELIEVED_LOST_SECONDS = 900.0
# A batch that the provider once knew and no longer finds has certainly ended after this time.
GONE_SECONDS = 172_800.0


@dataclass
class Batching:
    """One provider's batches in one call."""

    journal: Journal
    budget: Budget
    name: str
    client: "BatchClient"
    costs: Costs | None
    share: float
    tally: Tally


async def work(
    journal: Journal,
    budget: Budget,
    name: str,
    provider: Provider,
    requests: list[Request],
    *,
    only: BatchStep | None = None,
) -> Tally:
    """Collect every batch that has ended, then submit the requests that still have no answer; never
    wait.

    `only`: just one of the two steps.
    """
    from pipelines.generate.batch_clients import batch_client

    tally = Tally(total=len(journal.to_send(requests)))
    connection, client = batch_client(provider)
    async with connection:
        batching = Batching(journal, budget, name, client, costs_of(provider), batch_share(provider), tally)
        try:
            if only != "submit":
                await collect(batching)
            if only != "collect" and tally.stopped is None:
                await submit(batching, requests)
        except CallError as error:
            again = "" if error.fate in ("stopped", "impossible") else "; run it again later"
            tally.stopped = f"{error}{again}"
    return tally


async def collect(work: Batching) -> None:
    """Write the results of every batch that has ended to the journal.

    Raises:
        CallError: the provider cannot be reached or refuses the call.
    """
    for row in open_batches(work.journal, work.name):
        batch = row["provider_batch_id"] or await _find_provider_id(work, row)
        if batch is None:
            continue
        status = await work.client.look(batch)
        if status is None and _age(row) > GONE_SECONDS:
            _mark_in_doubt(work, row["id"], f"the provider no longer knows batch {batch}")
        elif status is None:
            work.tally.stopped = (
                f"the provider does not know batch {batch}: was it created with another key, or at another base_url? "
                f"It counts as lost after {GONE_SECONDS / 3600:.0f} hours"
            )
        elif status.ended:
            await _take(work, row, status)


async def submit(work: Batching, requests: Sequence[Request]) -> None:
    """Submit the requests that have no answer and are in no batch, as far as the budget allows.

    Each batch is recorded by itself, so an interrupted submission can be resumed.

    Raises:
        CallError: a batch was not created, or its fate is unknown.
    """
    to_send, failures = work.journal.to_send(requests), _failures(work.journal)
    pending = [request for request in to_send if failures[request.key] < TRIES]
    work.tally.failed += len(to_send) - len(pending)
    for start in range(0, len(pending), ITEMS):
        if reservations := _affordable(work, pending[start : start + ITEMS]):
            await _hand_in(work, reservations)
        if work.tally.stopped:
            return


def _affordable(work: Batching, requests: Sequence[Request]) -> Reservations:
    """As many of `requests`, in their order, as the budget has room for; their worst-case cost is
    reserved."""
    reservations: Reservations = []
    for request in requests:
        worst = worst_cost(work.costs, request)
        if worst is None and work.budget.caps.any_for(work.name):
            work.tally.stopped = unknown_price(work.name, request)
            break
        reserve = (worst or 0.0) * work.share
        if shortage := work.budget.hold(work.name, reserve):
            work.tally.stopped = shortage
            break
        reservations.append((request, reserve))
    return reservations


async def _hand_in(work: Batching, reservations: Reservations) -> None:
    # Preparing costs nothing, so a failure gives the whole reservation back.
    mark, dollars = new_run_id().replace("T", "")[-24:], sum(reserve for _, reserve in reservations)
    try:
        prepared = await work.client.prepare(mark, [request for request, _ in reservations])
    except CallError:
        work.budget.give_back(work.name, dollars, of_this_run=True)
        raise

    # The journal holds the batch and its requests before it is created, so a crash loses neither.
    with work.journal.transaction() as db:
        db.execute(
            "INSERT INTO batches (id, provider, status, requests, created_at) VALUES (?, ?, 'creating', ?, ?)",
            (mark, work.name, len(reservations), now()),
        )
        for request, reserve in reservations:
            work.journal.sending(request, reserve=reserve, batch=mark)

    # If the provider refused the batch, there is none and it costs nothing. If its fate is unknown,
    # the next run looks for it.
    try:
        batch = await work.client.create(mark, prepared)
    except CallError as error:
        if error.fate != "unknown":
            _turned_away(work, mark, str(error))
            work.budget.give_back(work.name, dollars, of_this_run=True)
        raise
    with work.journal.transaction() as db:
        _set_batch(db, mark, "submitted", provider_batch_id=batch)


async def _find_provider_id(work: Batching, row: dict[str, Any]) -> str | None:
    """The provider's id of a batch whose creation was cut off; None if the provider does not show
    it (yet).

    Anthropic's API stores no mark of ours. There, the ids in the results tell whether a batch is
    ours, so it must have ended first.
    """
    mark, undecided = row["id"], False
    known = {other["provider_batch_id"] for other in _batches(work.journal)}
    for status in await work.client.recent(_seconds(row["created_at"])):
        is_ours = status.mark == mark
        if status.id not in known and status.mark is None and status.requests == row["requests"]:
            undecided = undecided or not status.ended
            is_ours = status.ended and await _holds(work, status.id, mark)
        if is_ours:
            with work.journal.transaction() as db:
                _set_batch(db, mark, "submitted", provider_batch_id=status.id)
            return status.id
    if not undecided and _age(row) > BELIEVED_LOST_SECONDS:
        _mark_in_doubt(
            work, mark, "the connection broke while the batch was submitted, and the provider does not list it"
        )
    return None


async def _holds(work: Batching, batch: str, mark: str) -> bool:
    results = await work.client.results(batch, most_bytes=_most_bytes(work, mark))
    return results is not None and any(item.custom_id.startswith(f"{mark}-") for item in results.items)


async def _take(work: Batching, row: dict[str, Any], status: "BatchStatus") -> None:
    """Write all results of an ended batch to the journal at once.

    A request without a result was not processed and costs nothing. But if the provider counts more
    answers than can be read, any such request may have been billed, so all of them are in doubt.
    """
    mark = row["id"]
    results = (
        await work.client.results(status.id, most_bytes=_most_bytes(work, mark))
        if not status.problem
        else _no_results()
    )
    if results is None:
        _mark_in_doubt(work, mark, f"the results of batch {status.id} are gone")
        return

    # Compare the answers that can be read with the provider's own count.
    with work.journal.transaction() as db:
        matched = _matched_results(results, mark, _keys_in(db, mark))
    readable = sum(item.was_worked_on for item in matched.items.values())
    expected = readable + len(results.problems) if status.answered is None else min(status.answered, row["requests"])
    is_incomplete = expected > readable

    # Perhaps only the transfer was cut short. The note in `detail` makes the next run accept what
    # it gets.
    if is_incomplete and len(results.items) + len(results.problems) < expected and row["detail"] is None:
        why = f"the results of batch {status.id} are incomplete: {readable} of {expected} answers can be read"
        with work.journal.transaction() as db:
            _set_batch(db, mark, "submitted", detail=why)
        work.tally.stopped = f"{why}; run it again later: the answers still missing then are in doubt"
        return

    charged = _charged(work)
    counts, waiting = _write_down(work, mark, status, results, matched, lost=is_incomplete)
    work.budget.give_back(work.name, charged - _charged(work), of_this_run=False)
    if is_incomplete:
        work.tally.in_doubt += len(waiting & work.journal.given_up())
    _note_problems(work, status.id, [*matched.problems, *_in_words(results.problems, in_doubt=counts["in doubt"])])
    if status.problem:
        work.tally.stopped = f"batch {status.id} failed: {status.problem}"


def _write_down(
    work: Batching, mark: str, status: "BatchStatus", results: "Results", matched: "MatchedResults", *, lost: bool
) -> tuple[Counter[str], set[str]]:
    """Write every result and the end of the batch in one transaction.

    Returns counts of the outcomes, and the keys of the requests without a result. These are in
    doubt if results are `lost`; otherwise they were not processed.
    """
    counts = Counter[str]()
    cause = "; ".join([*matched.problems, *results.problems[:3]]) or "it is missing among the results"
    with work.journal.transaction() as db:
        waiting = _keys_in(db, mark)
        for key, item in matched.items.items():
            waiting.discard(key)
            counts[_take_item(work, db, key, item)] += 1
        if lost:
            _each_in_doubt(work, waiting, f"batch {status.id} holds no readable result for it ({cause})")
        else:
            _each_failed(work, waiting, status.problem or "expired: the batch ended before it was processed")
        if waiting:
            counts["in doubt" if lost else "not worked on"] += len(waiting)
        detail = status.problem or ", ".join(f"{count} {name}" for name, count in counts.items())
        _set_batch(db, mark, "collected", detail="; ".join([detail, *matched.problems, *results.problems[:3]]))
    return counts, waiting


def _no_results() -> "Results":
    from pipelines.generate.batch_clients import Results

    return Results()


@dataclass(frozen=True)
class MatchedResults:
    """Results by the key of their request, and descriptions of the results that match none."""

    items: dict[str, "Item"]
    problems: list[str]


def _matched_results(results: "Results", mark: str, waiting: set[str]) -> MatchedResults:
    items: dict[str, Item] = {}
    strangers = repeats = 0
    # Answers come first: of two results for one request, the answer counts.
    for item in sorted(results.items, key=lambda one: one.answer is None):
        prefix, _, key = item.custom_id.rpartition("-")
        if prefix != mark or key not in waiting:
            strangers += 1
        elif key in items:
            repeats += 1
        else:
            items[key] = item
    problems = ((strangers, "results are of no request of this batch"), (repeats, "results came twice"))
    return MatchedResults(items, [f"{count} {problem}" for count, problem in problems if count])


def _each_in_doubt(work: Batching, keys: Iterable[str], why: str) -> None:
    for key in keys:
        work.journal.doubtful(key, why)


def _each_failed(work: Batching, keys: Iterable[str], why: str) -> None:
    for key in keys:
        work.journal.failed(key, why)


def _in_words(unreadable: Sequence[str], *, in_doubt: int) -> Iterator[str]:
    if unreadable:
        yield f"{len(unreadable)} lines cannot be read ({unreadable[0]})"
    if in_doubt:
        yield f"{in_doubt} requests are in doubt: still charged, sent again once"


def _note_problems(work: Batching, batch: str, problems: Sequence[str]) -> None:
    if problems:
        work.tally.note("results of a batch", f"batch {batch}: {'; '.join(problems)}")


def _most_bytes(work: Batching, mark: str) -> float:
    """The most bytes that the results of a batch may have: per answer, the API's fields and the
    longest escaped text."""
    with work.journal.transaction() as db:
        requests = [
            json.loads(text) for (text,) in db.execute("SELECT request FROM requests WHERE batch_id = ?", (mark,))
        ]
    return sum(ITEM_BYTES + TOKEN_BYTES * request["parameters"].get("max_tokens", 0) for request in requests)


def _take_item(work: Batching, db: sqlite3.Connection, key: str, item: "Item") -> str:
    """Write one result to the journal; returns the name of its outcome."""
    if item.answer is not None:
        row = work.journal.row(key) or {}
        reserved = row["attempt_reserved_usd"]
        settled = settle(_request(row), item.answer, work.costs, reserved=reserved, share=work.share)
        answer = replace(item.answer, usage=settled.usage)
        work.journal.answered(key, answer, cost=settled.cost, note=settled.note)
        work.tally.note_settled(settled)
        work.tally.answered += 1
        work.tally.refused += answer.refused
        work.tally.tokens += answer.usage.total
        return "answered"
    work.journal.failed(key, item.error)
    if not item.ran:
        return "not worked on"
    work.tally.errors += 1
    db.execute("UPDATE requests SET batch_failures = batch_failures + 1 WHERE key = ?", (key,))
    if item.status and fate_of(item.status, set(item.codes), item.error) == "stopped":
        work.tally.stopped = f"in a batch: {item.error}"
    return "failed"


def _request(row: dict[str, Any]) -> Request:
    """The request of a row, from which its cost is computed."""
    return Request(provider=row["provider"], model=row["model"], purpose=row["purpose"], **json.loads(row["request"]))


def _turned_away(work: Batching, mark: str, why: str) -> None:
    with work.journal.transaction() as db:
        _each_failed(work, _keys_in(db, mark), why)
        _set_batch(db, mark, "lost", detail=why[:500])


def _mark_in_doubt(work: Batching, mark: str, why: str) -> None:
    """Give up a batch whose requests may have been answered and billed."""
    with work.journal.transaction() as db:
        keys = _keys_in(db, mark)
        _each_in_doubt(work, keys, why)
        _set_batch(db, mark, "lost", detail=why)
    work.tally.in_doubt += len(keys & work.journal.given_up())


def open_batches(journal: Journal, provider: str) -> list[dict[str, Any]]:
    """The provider's batches that are not collected yet, oldest first."""
    waiting = ("creating", "submitted")
    return [row for row in _batches(journal) if row["provider"] == provider and row["status"] in waiting]


def _batches(journal: Journal) -> list[dict[str, Any]]:
    with journal.transaction() as db:
        return [dict(row) for row in db.execute("SELECT * FROM batches ORDER BY id")]


def _failures(journal: Journal) -> Counter[str]:
    """Key → how often the request failed inside a batch."""
    with journal.transaction() as db:
        return Counter(dict(db.execute("SELECT key, batch_failures FROM requests").fetchall()))


def _charged(work: Batching) -> float:
    return work.journal.charges().get(work.name, Charges()).total


def _keys_in(db: sqlite3.Connection, mark: str) -> set[str]:
    rows = db.execute("SELECT key FROM requests WHERE batch_id = ? AND status = 'in_flight'", (mark,))
    return {row["key"] for row in rows}


def _set_batch(db: sqlite3.Connection, mark: str, status: str, **columns: Any) -> None:
    values = {"status": status, "finished_at": now() if status in ("collected", "lost") else None, **columns}
    assignments = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"UPDATE batches SET {assignments} WHERE id = ?", (*values.values(), mark))


def _age(row: dict[str, Any]) -> float:
    return time.time() - _seconds(row["created_at"])


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
