"""Send requests to several providers side by side: each at its own pace, all under one budget, every outcome in the journal.

A provider that cannot go on (bad key, exhausted quota, unknown model, budget, no answers at all) stops with its reason; the
others do not notice.
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

TRIES = 5  # of one request in one run; being turned away (429, 503, 529) is not counted
TURNED_AWAY = ("throttled", "overloaded")
# So many failures in a row, over so long a time: nobody is there, and the provider stops for this run.
DEAD_FAILURES, DEAD_SECONDS, DEAD_REFUSING_SECONDS = 12, 5.0, 180.0
# One request at a time until an answer was read. So many of unknown fate before it, each charged at its worst: it may be the wrong
# server (a login page, a proxy), and the provider stops. Two requests, each sent twice.
FIRST_DOUBTS = 4
# After an answer: so many in a row, each sent when the one before was lost already.
LATER_DOUBTS = 12
LONGEST_RETRY_AFTER = 4 * 3600.0  # seconds; a provider that asks for a longer wait is asked again by the next run
RELEASE_HINT = (
    "what they may cost stays charged until `featherweight generate --release-in-doubt REASON` gives back what the provider's own "
    "bill does not show"
)
DRAIN_SECONDS = 8.0  # what is under way may still answer so long after Ctrl-C


@dataclass
class Tally:
    """What became of one provider's requests in this run. `answered` counts refusals too: they are answers."""

    total: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    in_doubt: int = 0
    errors: int = 0
    tokens: int = 0
    stopped: str | None = None
    # What is odd, by kind: how often, and the first of them in words
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def note(self, kind: str, example: str) -> None:
        count, first = self.notes.get(kind, (0, example))
        self.notes[kind] = (count + 1, first)

    def note_settled(self, settled: Settled) -> None:
        if settled.usage_note:
            self.note("token counts that cannot be", settled.usage_note)
        if settled.model_note:
            self.note("another model", settled.model_note)


@dataclass(frozen=True)
class Job:
    """One provider's share: what to send, by whom, how fast at most, and what a token costs (None: nobody knows)."""

    provider: str
    requests: list[Request]
    client: Callable[[], AbstractAsyncContextManager[Client]]
    slots: int = 8
    longest_wait: float = 60.0
    costs: Costs | None = None


@dataclass(frozen=True)
class Snapshot:
    """How far a run is: seconds since it began, dollars charged by it, and each provider's tally."""

    seconds: float
    usd: float
    tallies: Mapping[str, Tally]


Progress = Callable[[Snapshot], None]


@dataclass
class Run:
    """What all providers of one run share."""

    journal: Journal
    writer: Writer
    budget: Budget
    progress: Progress
    started: float = field(default_factory=time.monotonic)
    senders: "list[_Sender]" = field(default_factory=list)
    doubts: Counter[str] = field(default_factory=Counter)  # by request: how often its fate was lost
    stopping: bool = False
    broken: BaseException | None = None  # why the journal could not be written

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
        """Send nothing more; what is under way is waited for."""
        self.stopping = True
        self.wake()


async def send_all(
    journal: Journal, jobs: list[Job], budget: Budget, *, progress: Progress | None = None
) -> dict[str, Tally]:
    """Send every job's requests; returns what became of them, by provider.

    Raises:
        WorkError: the journal cannot be written.
        KeyboardInterrupt: interrupted; nothing more was sent, and what was under way got some seconds to be answered.
    """
    run = Run(journal, Writer(journal), budget, progress or (lambda _: None), doubts=journal.doubts())
    run.senders = [_Sender(run, job) for job in jobs]
    try:
        with draining(run.stop, seconds=DRAIN_SECONDS):
            async with asyncio.TaskGroup() as group:
                for sender in run.senders:
                    if sender.job.requests:  # else not even its SDK is loaded
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
        self._waiting_retries = 0  # requests that wait for their next try
        self._proven = False  # whether an answer was read in this run
        self._waiting_doubtful = 0  # those of `_waiting_retries` whose fate was lost
        self._doubts_in_row, self._doubts_since = 0, math.inf  # since the last answer; when its first was lost
        self._tries = Counter[tuple[str, bool]]()  # by request, those it was turned away at apart
        self.under_way = set[asyncio.Task[None]]()
        # when requests failed in a row: those turned away (True) since the last answer, others since anything was heard
        self._failed_at: dict[bool, list[float]] = {True: [], False: []}
        self._last_response_at = time.monotonic()
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def send(self) -> None:
        try:
            connection = self.job.client()
        except Exception as error:  # a proxy or certificates that the environment names wrongly, say
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
            delay = self._pacer.delay(time.monotonic(), len(self.under_way)) if self._queue else math.inf
            if not self._proven and (self.under_way or self._waiting_doubtful):
                delay = math.inf
            if delay > 0:
                await self._wait(delay)
            elif shortage := self._dispatch(client):
                if self._run.under_way:  # what they do not cost after all may be enough
                    await self._wait(math.inf)
                else:
                    self._stop(shortage)

    @property
    def _ended(self) -> bool:
        return self.tally.stopped is not None or self._run.stopping

    async def _wait(self, seconds: float) -> None:
        """Until something has happened, or so many seconds."""
        self._event.clear()
        timer = asyncio.get_running_loop().call_later(seconds, self.wake) if math.isfinite(seconds) else None
        await self._event.wait()
        if timer:
            timer.cancel()

    def _dispatch(self, client: Client) -> str | None:
        """Reserve what the next request may cost and let it go; or say what the budget lacks for it."""
        provider, budget, request = self.job.provider, self._run.budget, self._queue[0]
        worst = worst_cost(self.job.costs, request)
        if worst is None and budget.caps.any_for(provider):
            self._stop(unknown_price(provider, request))
            return None
        if shortage := budget.hold(provider, worst or 0.0):
            return shortage
        self._queue.popleft()
        sent_at = time.monotonic()
        self._pacer.sent(sent_at)
        task = asyncio.create_task(self._ask(client, request, worst or 0.0, sent_at))
        self.under_way.add(task)
        task.add_done_callback(self._on_done)
        return None

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self.under_way.discard(task)
        self._run.wake()  # every sender: it may wait for what this one had reserved
        if not task.cancelled() and (error := task.exception()):  # the journal: nothing may be sent that it cannot hold
            self._run.broken = error
            self._run.stop()

    async def _ask(self, client: Client, request: Request, reserved: float, sent_at: float) -> None:
        charged = reserved
        try:
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
        """Keep the answer; returns the dollars that stay charged."""
        settled = settle(request, answer, self.job.costs, reserved=reserved)
        answer, journal = replace(answer, usage=settled.usage), self._run.journal
        await self._run.writer.write(
            lambda: journal.answered(request.key, answer, cost=settled.cost, note=settled.note)
        )
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
        """Note what became of the request and plan its next try, if it has one; returns the dollars that stay charged."""
        journal, now = self._run.journal, time.monotonic()
        self.tally.errors += 1
        # before anything is awaited: no further request leaves as if nothing had happened
        if error.fate == "throttled":
            self._pacer.throttled(sent_at, now, error.limits, error.retry_after)
        elif error.fate == "stopped":
            self._stop(str(error))
        elif error.fate == "unknown" and (why := self._lost_too_often(error, sent_at, now)):
            self._stop(why)
        elif error.fate != "impossible" and (self._proven or error.fate != "unknown"):  # one alone tells of no overload
            self._pacer.failed(sent_at, now, error.retry_after)
        if (error.retry_after or 0.0) > LONGEST_RETRY_AFTER:
            hours = (error.retry_after or 0.0) / 3600
            self._stop(
                f"{error}; it asks to come again in {hours:.0f} hours, so nothing more is asked of it in this run"
            )
        if error.fate == "unknown":
            await self._run.writer.write(lambda: journal.doubtful(request.key, str(error), raw=error.raw))
            self._run.doubts[request.key] += 1
        else:
            await self._run.writer.write(lambda: journal.failed(request.key, str(error)))
        self._plan(request, error)
        return reserved if error.fate == "unknown" else 0.0

    def _plan(self, request: Request, error: CallError) -> None:
        """Whether, and when, the request is tried again; and whether the provider is."""
        turned_away = error.fate in TURNED_AWAY
        self._tries[request.key, turned_away] += 1
        tries = self._tries[request.key, turned_away]
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
                self._queue.appendleft(request)  # no further request is put at risk before it
            else:
                self._queue.append(request)
            self.wake()

        asyncio.get_running_loop().call_later(seconds, put_back)

    def _note_response(self, *, turned_away: bool) -> None:
        """Somebody is there; unless it only turns requests away, it answers them."""
        self._failed_at[False].clear()
        if not turned_away:
            self._failed_at[True].clear()

    def _lost_too_often(self, error: CallError, sent_at: float, now: float) -> str | None:
        """Why the provider stops, where one request after the other is lost; those that were under way together count once."""
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
        turned_away, now = error.fate in TURNED_AWAY, time.monotonic()
        if turned_away or error.fate == "impossible":
            self._note_response(turned_away=turned_away)
        failed_at = self._failed_at[turned_away]
        failed_at.append(now)
        longest = DEAD_REFUSING_SECONDS if turned_away else DEAD_SECONDS
        if len(failed_at) >= DEAD_FAILURES and now - failed_at[0] > longest:
            self._stop(
                f"no answer for {now - self._last_response_at:.0f} s, {len(failed_at)} failures in a row, the last: {error}; "
                "run it again later"
            )

    def _stop(self, why: str) -> None:
        if self.tally.stopped is None:
            self.tally.stopped = why
            self.wake()
