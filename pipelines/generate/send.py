"""Send requests to several providers side by side.

Each provider has its own pace, all share one budget, and the journal records every outcome. A
provider that cannot go on (bad key, exhausted quota, unknown model, budget, no answers at all)
stops with its reason; the others are not affected.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

from pipelines.generate.answers import Answer, CallError
from pipelines.generate.budget import Budget, unknown_price
from pipelines.generate.client import Client
from pipelines.generate.journal import MOST_RESENDS, Journal, Request, Writer
from pipelines.generate.pacing import Pacer
from pipelines.generate.prices import Costs, worst_cost
from pipelines.generate.settle import Settled, settle
from pipelines.records.foreign_text import one_line
from pipelines.runs.process import draining

# Tries of one request in one run. Responses that turn it away (429, 503, 529) do not count.
TRIES = 5
TURNED_AWAY = ("throttled", "overloaded")
# A provider stops for this run after DEAD_FAILURES failures in a row that span more than
# DEAD_SECONDS. If it turns requests away, the limit is DEAD_REFUSING_SECONDS.
DEAD_FAILURES, DEAD_SECONDS, DEAD_REFUSING_SECONDS = 12, 5.0, 180.0
# Until the first answer, requests are sent one at a time. After this many of unknown fate, each
# charged at its worst case, the provider stops: it may be the wrong server (a login page, a proxy).
# Four are two requests, each sent twice.
FIRST_DOUBTS = 4
# After the first answer, the provider stops at this many lost requests in a row. A request counts
# only if it was sent after the first of them had been lost.
LATER_DOUBTS = 12
# Seconds. If a provider asks for a longer wait, this run sends it nothing more.
LONGEST_RETRY_AFTER = 4 * 3600.0
RELEASE_HINT = (
    "their worst-case cost stays charged; once the provider's bill shows no such charge, "
    "`featherweight generate --release-in-doubt REASON` gives it back"
)
# Seconds after Ctrl-C in which requests under way may still be answered.
DRAIN_SECONDS = 8.0


@dataclass
class Tally:
    """Counts of the outcomes of one provider's requests in this run.

    `answered` includes refusals: they are answers.
    """

    total: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    in_doubt: int = 0
    errors: int = 0
    tokens: int = 0
    stopped: str | None = None
    # Kind of oddity → how often it occurred, and its first example.
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def note(self, kind: str, example: str) -> None:
        count, first = self.notes.get(kind, (0, example))
        self.notes[kind] = (count + 1, first)

    def note_settled(self, settled: Settled) -> None:
        if settled.usage_note:
            self.note("impossible token counts", settled.usage_note)
        if settled.model_note:
            self.note("another model", settled.model_note)


@dataclass(frozen=True)
class Job:
    """One provider's share of a run: its requests, its client, limits on the pace, and the price of
    a token.

    `costs` is None where the price is unknown.
    """

    provider: str
    requests: list[Request]
    client: Callable[[], AbstractAsyncContextManager[Client]]
    slots: int = 8
    longest_wait: float = 60.0
    costs: Costs | None = None


@dataclass(frozen=True)
class Snapshot:
    """Progress of a run: seconds since its start, dollars it has charged, and each provider's
    tally."""

    seconds: float
    usd: float
    tallies: Mapping[str, Tally]


Progress = Callable[[Snapshot], None]


@dataclass
class Run:
    """State shared by all providers of one run."""

    journal: Journal
    writer: Writer
    budget: Budget
    progress: Progress
    started: float = field(default_factory=time.monotonic)
    senders: "list[_Sender]" = field(default_factory=list)
    # Key of a request → how often its fate became unknown.
    doubts: Counter[str] = field(default_factory=Counter)
    stopping: bool = False
    # Why the journal could not be written.
    broken: BaseException | None = None

    def report(self) -> None:
        tallies = {sender.job.provider: sender.tally for sender in self.senders}
        self.progress(Snapshot(time.monotonic() - self.started, self.budget.charged_now, tallies))

    @property
    def under_way(self) -> bool:
        return any(sender.under_way for sender in self.senders)

    def wake(self) -> None:
        for sender in self.senders:
            sender.wake()

    def stop(self) -> None:
        """Send nothing more, but wait for the requests under way."""
        self.stopping = True
        self.wake()


async def send_all(
    journal: Journal, jobs: list[Job], budget: Budget, *, progress: Progress | None = None
) -> dict[str, Tally]:
    """Send every job's requests; returns a tally per provider.

    Raises:
        WorkError: the journal cannot be written.
        KeyboardInterrupt: the run was interrupted. Nothing more was sent, and requests under way
            had DRAIN_SECONDS to be answered.
    """
    run = Run(journal, Writer(journal), budget, progress or (lambda _: None), doubts=journal.doubts())
    run.senders = [_Sender(run, job) for job in jobs]
    try:
        with draining(run.stop, seconds=DRAIN_SECONDS):
            async with asyncio.TaskGroup() as group:
                for sender in run.senders:
                    # Without requests, not even the provider's SDK is loaded.
                    if sender.job.requests:
                        group.create_task(sender.send())
    finally:
        await run.writer.close()
    if run.broken:
        raise run.broken
    return {sender.job.provider: sender.tally for sender in run.senders}


class _Sender:
    """One provider's queue."""

    def __init__(self, run: Run, job: Job) -> None:
        self.job = job
        self.tally = Tally(total=len(job.requests))
        self._run = run
        self._pacer = Pacer(slots=job.slots, longest_wait=job.longest_wait)
        self._queue = deque(job.requests)
        # Requests that wait for their next try, and those of them whose fate is unknown.
        self._waiting_retries = self._waiting_doubtful = 0
        # Whether this run has read an answer.
        self._proven = False
        # Requests lost since the last answer, and when the first of them was lost.
        self._doubts_in_row, self._doubts_since = 0, math.inf
        # Tries by request and by whether the provider turned it away.
        self._tries = Counter[tuple[str, bool]]()
        self.under_way = set[asyncio.Task[None]]()
        # Times of the failures in a row. True: requests turned away since the last answer.
        # False: other failures since the last response of any kind.
        self._failed_at: dict[bool, list[float]] = {True: [], False: []}
        self._last_response_at = time.monotonic()
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def send(self) -> None:
        try:
            connection = self.job.client()
        except Exception as error:
            # For instance, the environment names a proxy or certificates that do not exist.
            self._stop(f"it cannot be reached from here: {error}")
            return
        async with connection as client:
            try:
                await self._send_queue(client)
                while self.under_way:
                    await asyncio.wait(self.under_way)
            finally:
                for task in self.under_way:
                    task.cancel()
                await asyncio.gather(*self.under_way, return_exceptions=True)
        self._run.report()

    async def _send_queue(self, client: Client) -> None:
        while (self._queue or self._waiting_retries or self.under_way) and not self._ended:
            # The pacer decides when the next request may leave.
            # With an empty queue, wait for an event: a retry or an answer.
            delay = self._pacer.delay(time.monotonic(), len(self.under_way)) if self._queue else math.inf

            # Until the first answer proves the server right, only one request may be at risk.
            if not self._proven and (self.under_way or self._waiting_doubtful):
                delay = math.inf

            # Send the next request, unless the budget has no room for it. Requests under way, of
            # any provider, may cost less than reserved and free enough money; if there are none,
            # this provider stops.
            if delay > 0:
                await self._wait(delay)
            elif shortage := self._dispatch(client):
                if self._run.under_way:
                    await self._wait(math.inf)
                else:
                    self._stop(shortage)

    @property
    def _ended(self) -> bool:
        return self.tally.stopped is not None or self._run.stopping

    async def _wait(self, seconds: float) -> None:
        """Wait for the next event, but at most `seconds`."""
        self._event.clear()
        timer = asyncio.get_running_loop().call_later(seconds, self.wake) if math.isfinite(seconds) else None
        await self._event.wait()
        if timer:
            timer.cancel()

    def _dispatch(self, client: Client) -> str | None:
        """Reserve the worst-case cost of the next request and send it; returns the cap it would
        exceed, if any."""
        # Under a budget, a request of unknown price is never sent.
        provider, budget, request = self.job.provider, self._run.budget, self._queue[0]
        worst = worst_cost(self.job.costs, request)
        if worst is None and budget.caps.any_for(provider):
            self._stop(unknown_price(provider, request))
            return None
        if shortage := budget.hold(provider, worst or 0.0):
            return shortage

        # The money is reserved: take the request off the queue and send it in a task of its own.
        self._queue.popleft()
        sent_at = time.monotonic()
        self._pacer.sent(sent_at)
        task = asyncio.create_task(self._ask(client, request, worst or 0.0, sent_at))
        self.under_way.add(task)
        task.add_done_callback(self._on_done)
        return None

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self.under_way.discard(task)
        # Wake every sender: another one may wait for money that this one had reserved.
        self._run.wake()
        # The journal failed. Nothing may be sent that it cannot record, so all providers stop.
        if not task.cancelled() and (error := task.exception()):
            self._run.broken = error
            self._run.stop()

    async def _ask(self, client: Client, request: Request, reserved: float, sent_at: float) -> None:
        # Until the outcome is known, the whole reservation stays charged, also if this task is
        # cancelled.
        charged = reserved
        try:
            # The journal holds the request before it leaves, so a crash cannot lose a paid answer.
            await self._run.writer.write(lambda: self._run.journal.sending(request, reserve=reserved))
            try:
                answer = await client.answer(request)
            except CallError as error:
                charged = await self._unanswered(request, error, reserved, sent_at)
            else:
                charged = await self._answered(request, answer, reserved, sent_at)
        finally:
            self._run.budget.give_back(self.job.provider, reserved - charged)
        self._run.report()

    async def _answered(self, request: Request, answer: Answer, reserved: float, sent_at: float) -> float:
        """Record the answer; returns the dollars that stay charged."""
        # The journal first: the answer was paid for.
        settled = settle(request, answer, self.job.costs, reserved=reserved)
        answer, journal = replace(answer, usage=settled.usage), self._run.journal
        await self._run.writer.write(
            lambda: journal.answered(request.key, answer, cost=settled.cost, note=settled.note)
        )

        # An answer proves the server right, ends every row of failures and lets the pacer speed up.
        self._proven = True
        self._doubts_in_row, self._doubts_since = 0, math.inf
        self.tally.note_settled(settled)
        self._last_response_at = time.monotonic()
        self._pacer.answered(sent_at, self._last_response_at, answer.limits)
        self._note_response(turned_away=False)

        self.tally.answered += 1
        self.tally.refused += answer.refused
        self.tally.tokens += answer.usage.total
        return reserved if settled.cost is None else settled.cost

    async def _unanswered(self, request: Request, error: CallError, reserved: float, sent_at: float) -> float:
        """Record why there is no answer and plan the next try, if any; returns the dollars that
        stay charged."""
        journal, now = self._run.journal, time.monotonic()
        self.tally.errors += 1

        # Slow down or stop before the first await, so that no further request leaves at the old
        # pace. A lost request before the first answer does not slow the pacer down: only one was
        # under way.
        if error.fate == "throttled":
            self._pacer.throttled(sent_at, now, error.limits, error.retry_after)
        elif error.fate == "stopped":
            self._stop(str(error))
        elif error.fate == "unknown" and (why := self._lost_too_often(error, sent_at, now)):
            self._stop(why)
        elif error.fate != "impossible" and (self._proven or error.fate != "unknown"):
            self._pacer.failed(sent_at, now, error.retry_after)
        if (error.retry_after or 0.0) > LONGEST_RETRY_AFTER:
            hours = (error.retry_after or 0.0) / 3600
            self._stop(
                f"{error}; the provider asks to wait {hours:.0f} hours, so nothing more is sent to it in this run"
            )

        # A request of unknown fate may have been billed, so its reservation stays charged. All
        # others cost nothing.
        if error.fate == "unknown":
            await self._run.writer.write(lambda: journal.doubtful(request.key, str(error), raw=error.raw))
            self._run.doubts[request.key] += 1
        else:
            await self._run.writer.write(lambda: journal.failed(request.key, str(error)))
        self._plan(request, error)
        return reserved if error.fate == "unknown" else 0.0

    def _plan(self, request: Request, error: CallError) -> None:
        """Schedule the next try of the request, or give it up; stop the provider if it seems
        dead."""
        turned_away = error.fate in TURNED_AWAY
        self._tries[request.key, turned_away] += 1
        tries = self._tries[request.key, turned_away]
        # "throttled": the pacer delays the whole queue, so the request goes back to its front.
        # "overloaded": tried again after a pause, without a limit on the number of tries.
        # "unknown": sent again at most MOST_RESENDS times over all runs: each try may be billed.
        # "failed" and "unsent": tried again up to TRIES times.
        match error.fate:
            case "stopped" | "impossible":
                self.tally.failed += 1
            case "throttled":
                self._queue.appendleft(request)
            case "overloaded":
                self._again(request, self._pacer.backoff(min(tries, TRIES)))
            case "unknown" if self._run.doubts[request.key] > MOST_RESENDS:
                self.tally.in_doubt += 1
            case "failed" | "unsent" if tries >= TRIES:
                self.tally.failed += 1
            case _:
                self._again(request, self._pacer.backoff(tries), doubted=error.fate == "unknown")
        self._stop_if_dead(error)

    def _again(self, request: Request, seconds: float, *, doubted: bool = False) -> None:
        self._waiting_retries += 1
        self._waiting_doubtful += doubted

        def put_back() -> None:
            self._waiting_retries -= 1
            self._waiting_doubtful -= doubted
            if doubted and not self._proven:
                # To the front, so that no other request is put at risk before this one is settled.
                self._queue.appendleft(request)
            else:
                self._queue.append(request)
            self.wake()

        asyncio.get_running_loop().call_later(seconds, put_back)

    def _note_response(self, *, turned_away: bool) -> None:
        """The provider responded: clear the row of failures, and that of refusals unless it turned
        the request away."""
        self._failed_at[False].clear()
        if not turned_away:
            self._failed_at[True].clear()

    def _lost_too_often(self, error: CallError, sent_at: float, now: float) -> str | None:
        """Why the provider stops, if request after request is lost; None if not yet.

        Requests that were under way at the same time count once.
        """
        self._doubts_in_row += not self._proven or sent_at > self._doubts_since
        self._doubts_since = min(self._doubts_since, now)
        if self._doubts_in_row < (LATER_DOUBTS if self._proven else FIRST_DOUBTS):
            return None
        since = "since the last answer" if self._proven else "and no answer yet (is base_url the right server?)"
        return (
            f"{self._doubts_in_row} failures in a row, each of which may have been billed, {since}; the last: "
            f"{one_line(str(error), 400)}; {RELEASE_HINT}"
        )

    def _stop_if_dead(self, error: CallError) -> None:
        """Stop the provider after too many failures in a row over too long a time."""
        turned_away, now = error.fate in TURNED_AWAY, time.monotonic()
        if turned_away or error.fate == "impossible":
            self._note_response(turned_away=turned_away)
        failed_at = self._failed_at[turned_away]
        failed_at.append(now)
        limit = DEAD_REFUSING_SECONDS if turned_away else DEAD_SECONDS
        if len(failed_at) >= DEAD_FAILURES and now - failed_at[0] > limit:
            self._stop(
                f"no answer for {now - self._last_response_at:.0f} s, {len(failed_at)} failures in a row, the last: {error}; "
                "run it again later"
            )

    def _stop(self, why: str) -> None:
        if self.tally.stopped is None:
            self.tally.stopped = why
            self.wake()
