"""The journal: one SQLite row per request, written before it is sent and committed when it is
answered.

A request is identified by a hash of everything that decides its answer, so an answer in the journal
is never requested again. A row that a dead process left `in_flight` becomes `in_doubt`: the request
may have been answered and billed. Its worst-case cost stays charged, and it is sent again at most
once. The same goes for a request that timed out or was cut off.
"""

import asyncio
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import WorkError
from pipelines.generate.answers import Answer
from pipelines.lake import disk
from pipelines.lake.files import is_private, stable_hash
from pipelines.runs.clock import now

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    key TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    purpose TEXT NOT NULL,
    topic TEXT,
    language TEXT,
    request TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('in_flight', 'in_doubt', 'answered', 'failed')),
    attempts INTEGER NOT NULL,
    in_doubt_count INTEGER NOT NULL DEFAULT 0,
    response TEXT,
    stop_reason TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost_usd REAL,
    latency_ms REAL,
    error TEXT,
    sent_at TEXT NOT NULL,
    finished_at TEXT
)
"""
# Columns added since the first version. Opening an older journal adds them.
ADDED_COLUMNS = {
    "stop_category": "TEXT",
    "cached_input_tokens": "INTEGER",
    "cache_write_tokens": "INTEGER",
    "reasoning_tokens": "INTEGER",
    # Reserved for all attempts whose cost is unknown, and the part of the latest attempt.
    "reserved_usd": "REAL NOT NULL DEFAULT 0",
    "attempt_reserved_usd": "REAL NOT NULL DEFAULT 0",
    "batch_id": "TEXT",
    # How often the request failed inside a batch.
    "batch_failures": "INTEGER NOT NULL DEFAULT 0",
    # Once reserved, then released by the user: see RELEASES.
    "released_usd": "REAL NOT NULL DEFAULT 0",
    # Oddities of the answer, in words.
    "note": "TEXT",
}
RELEASES = """
CREATE TABLE IF NOT EXISTS releases (
    id INTEGER PRIMARY KEY,
    provider TEXT NOT NULL,
    reason TEXT NOT NULL,
    requests INTEGER NOT NULL,
    usd REAL NOT NULL,
    released_at TEXT NOT NULL
)
"""
BATCHES = """
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    provider_batch_id TEXT,
    status TEXT NOT NULL CHECK (status IN ('creating', 'submitted', 'collected', 'lost')),
    requests INTEGER NOT NULL,
    detail TEXT,
    created_at TEXT NOT NULL,
    finished_at TEXT
)
"""
# SQL that gives back the latest attempt's reservation, unless its parameter is 1.
RELEASE = "reserved_usd = CASE WHEN ? THEN reserved_usd ELSE max(0, reserved_usd - attempt_reserved_usd) END"
# How often a request may be sent again after its fate became unknown.
MOST_RESENDS = 1
LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """Everything that decides an answer. `topic` and `language` only describe it and are not part
    of its key.

    `schema` is the JSON schema of the answer; empty: plain text.
    """

    provider: str
    model: str
    messages: list[dict[str, str]]
    parameters: dict[str, Any]
    schema: dict[str, Any]
    purpose: str = "generate"
    replicate: int = 0
    topic: str | None = field(default=None)
    language: str | None = field(default=None)

    @cached_property
    def key(self) -> str:
        names = (one.name for one in fields(self))
        return stable_hash({name: getattr(self, name) for name in names if name not in ("topic", "language")})

    @cached_property
    def cell(self) -> str:
        """Hash of the task: equal for every provider that gets the same messages, schema and
        replicate."""
        return stable_hash([self.messages, self.schema, self.replicate])


@dataclass(frozen=True)
class Charges:
    """Dollars of one provider: billed by usage (`settled`), and `reserved` for requests of unknown
    cost."""

    settled: float = 0.0
    reserved: float = 0.0

    @property
    def total(self) -> float:
        return self.settled + self.reserved


@dataclass(frozen=True)
class Released:
    """The released reservations of one provider: number of requests and dollars."""

    requests: int
    usd: float


class Journal:
    """The requests of one data root. One process writes at a time (the caller holds the generation
    lock).

    Dollars: the worst-case cost of a request is reserved when it is sent and given back once its
    cost is known. The rest belongs to attempts of unknown fate or cost and stays reserved until the
    user calls `release`.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # SQLite creates its -wal and -shm files with the mode of the database.
            os.close(os.open(path, os.O_CREAT, 0o600 if is_private(path) else 0o666))
            # One thread at a time uses it: the caller's, or the writer's while requests are under
            # way.
            self._db = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(SCHEMA)
            self._db.execute(BATCHES)
            self._db.execute(RELEASES)
            if self._missing_columns():
                # Checked again inside a transaction, since two processes may open the journal at
                # once.
                with self.transaction():
                    for name in self._missing_columns():
                        self._db.execute(f"ALTER TABLE requests ADD COLUMN {name} {ADDED_COLUMNS[name]}")
        except (OSError, sqlite3.Error) as error:
            raise WorkError(
                f"{path}: the journal of LLM calls cannot be opened: {error} "
                f"({disk.megabytes(disk.free_bytes(path.parent))} of disk are free). No answer in it is lost; free disk space "
                "or make its folder writable, then run the same command again."
            ) from error

    def close(self) -> None:
        self._db.close()

    def _missing_columns(self) -> list[str]:
        known = {row["name"] for row in self._db.execute("PRAGMA table_info(requests)")}
        return [name for name in ADDED_COLUMNS if name not in known]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction: rolled back if its body raises."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            # A full disk has already ended the transaction.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def mark_orphans_in_doubt(self) -> int:
        """Mark the rows that a dead process left in flight as in doubt, except those in a batch;
        returns their number."""
        sql = (
            "UPDATE requests SET status = 'in_doubt', in_doubt_count = in_doubt_count + 1"
            " WHERE status = 'in_flight' AND batch_id IS NULL"
        )
        return self._db.execute(sql).rowcount

    def to_send(self, requests: Iterable[Request]) -> list[Request]:
        """The requests that have no answer and are not under way.

        Requests that were in doubt once come last. Those that were in doubt twice are given up and
        left out.
        """
        rows = self._rows_by_key("SELECT key, status, in_doubt_count FROM requests")
        fresh, doubtful = [], []
        for request in requests:
            row = rows.get(request.key)
            if row is None or (row["status"] == "failed" and not row["in_doubt_count"]):
                fresh.append(request)
            elif row["status"] in ("failed", "in_doubt") and row["in_doubt_count"] <= MOST_RESENDS:
                doubtful.append(request)
        return fresh + doubtful

    def doubts(self) -> Counter[str]:
        """Key → how often the request's fate became unknown, where it ever did."""
        sql = "SELECT key, in_doubt_count FROM requests WHERE in_doubt_count > 0"
        return Counter({row["key"]: row["in_doubt_count"] for row in self._db.execute(sql)})

    def given_up(self) -> set[str]:
        """Keys of requests without an answer whose fate became unknown too often to send them
        again."""
        sql = "SELECT key FROM requests WHERE status IN ('in_doubt', 'failed') AND in_doubt_count > ?"
        return {row["key"] for row in self._db.execute(sql, (MOST_RESENDS,))}

    def answered_among(self, requests: Iterable[Request]) -> int:
        """How many of `requests` have an answer."""
        answered = {row["key"] for row in self._db.execute("SELECT key FROM requests WHERE status = 'answered'")}
        return sum(request.key in answered for request in requests)

    def in_batch_among(self, requests: Iterable[Request]) -> int:
        """How many of `requests` are in a batch that has not been collected."""
        sql = "SELECT key FROM requests WHERE status = 'in_flight' AND batch_id IS NOT NULL"
        waiting = {row["key"] for row in self._db.execute(sql)}
        return sum(request.key in waiting for request in requests)

    def charges(self) -> dict[str, Charges]:
        """Charges per provider, over the whole journal and every purpose."""
        sums = "sum(coalesce(cost_usd, 0)) AS settled, sum(reserved_usd) AS reserved"
        sql = f"SELECT provider, {sums} FROM requests GROUP BY provider"
        return {row["provider"]: Charges(row["settled"], row["reserved"]) for row in self._db.execute(sql)}

    def charged_since(self, moment: str) -> float:
        """Dollars of requests last sent at or after `moment` (ISO, UTC), reserved ones included."""
        sql = "SELECT sum(coalesce(cost_usd, 0) + reserved_usd) FROM requests WHERE sent_at >= ?"
        return self._db.execute(sql, (moment,)).fetchone()[0] or 0.0

    def sending(self, request: Request, *, reserve: float = 0.0, batch: str | None = None) -> None:
        """Record `request` and its worst-case cost, just before it is sent."""
        described = json.dumps(
            {"messages": request.messages, "parameters": request.parameters, "schema": request.schema},
            ensure_ascii=False,
        )
        self._db.execute(
            "INSERT INTO requests (key, provider, model, purpose, topic, language, request, status, attempts, sent_at,"
            " reserved_usd, attempt_reserved_usd, batch_id) VALUES (?, ?, ?, ?, ?, ?, ?, 'in_flight', 1, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET status = 'in_flight', attempts = attempts + 1, sent_at = excluded.sent_at,"
            " reserved_usd = reserved_usd + excluded.reserved_usd, attempt_reserved_usd = excluded.attempt_reserved_usd,"
            " batch_id = excluded.batch_id",
            (
                request.key, request.provider, request.model, request.purpose, request.topic, request.language, described,
                now(), reserve, reserve, batch,
            ),
        )  # fmt: skip

    def answered(self, key: str, answer: Answer, *, cost: float | None = None, note: str | None = None) -> None:
        """Record the answer and a note on its oddities. If its cost is unknown, its reservation
        stays."""
        usage = answer.usage
        keep_reservation = 1 if cost is None else 0
        self._db.execute(
            "UPDATE requests SET status = 'answered', response = ?, stop_reason = ?, stop_category = ?, input_tokens = ?,"
            " cached_input_tokens = ?, cache_write_tokens = ?, output_tokens = ?, reasoning_tokens = ?, cost_usd = ?,"
            f" {RELEASE}, latency_ms = ?, error = NULL, note = ?, finished_at = ? WHERE key = ?",
            (
                answer.raw, answer.stop_reason, answer.stop_category, usage.input, usage.cached_input, usage.cache_write,
                usage.output, usage.reasoning, cost, keep_reservation, answer.latency_ms, note, now(), key,
            ),
        )  # fmt: skip

    def failed(self, key: str, error: str) -> None:
        """Record that the request got no answer and costs nothing."""
        self._db.execute(
            f"UPDATE requests SET status = 'failed', error = ?, {RELEASE}, finished_at = ?, batch_id = NULL WHERE key = ?",
            (error, 0, now(), key),
        )

    def doubtful(self, key: str, error: str, *, raw: str | None = None) -> None:
        """Record that the request may have been answered: its worst-case cost stays charged.

        `raw`: the response that came instead of an answer.
        """
        self._db.execute(
            "UPDATE requests SET status = 'in_doubt', in_doubt_count = in_doubt_count + 1, error = ?, finished_at = ?,"
            " response = coalesce(?, response), batch_id = NULL WHERE key = ?",
            (error, now(), raw, key),
        )

    def forgive_doubts(self) -> int:
        """Allow the requests that were given up to be sent again; returns their number.

        The user decides this. The worst-case cost of the earlier attempts stays charged.
        """
        sql = "UPDATE requests SET in_doubt_count = 1 WHERE status IN ('in_doubt', 'failed') AND in_doubt_count > ?"
        return self._db.execute(sql, (MOST_RESENDS,)).rowcount

    def release(self, reason: str, providers: Iterable[str] | None = None) -> dict[str, Released]:
        """Release the reservations of requests of unknown cost that are not under way; returns sums
        by provider.

        The user decides this. All of it happens in one transaction, which also writes `reason` and
        the sums to the table `releases`. Statuses and counts of doubts stay as they are, so nothing
        is sent again because of it.
        """
        held = "reserved_usd > 0 AND status != 'in_flight'"
        sums = f"SELECT provider, count(*) AS requests, sum(reserved_usd) AS usd FROM requests WHERE {held} GROUP BY provider"
        chosen, released = None if providers is None else set(providers), dict[str, Released]()
        with self.transaction() as db:
            for row in db.execute(sums).fetchall():
                name = row["provider"]
                if chosen is not None and name not in chosen:
                    continue
                released[name] = Released(row["requests"], row["usd"])
                db.execute(
                    "INSERT INTO releases (provider, reason, requests, usd, released_at) VALUES (?, ?, ?, ?, ?)",
                    (name, reason, row["requests"], row["usd"], now()),
                )
                db.execute(
                    "UPDATE requests SET released_usd = released_usd + reserved_usd, reserved_usd = 0, attempt_reserved_usd = 0"
                    f" WHERE provider = ? AND {held}",
                    (name,),
                )
        return released

    def row(self, key: str) -> dict[str, Any] | None:
        row = self._db.execute("SELECT * FROM requests WHERE key = ?", (key,)).fetchone()
        return dict(row) if row else None

    def answered_for(self, purpose: str, provider: str, model: str) -> Iterator[dict[str, Any]]:
        """The rows of one purpose that hold an answer of this provider's model, the oldest
        first."""
        sql = (
            "SELECT * FROM requests WHERE status = 'answered' AND purpose = ? AND provider = ? AND model = ?"
            " ORDER BY finished_at, key"
        )
        for row in self._db.execute(sql, (purpose, provider, model)):
            yield dict(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        for row in self._db.execute("SELECT * FROM requests ORDER BY key"):
            yield dict(row)

    def _rows_by_key(self, sql: str) -> dict[str, sqlite3.Row]:
        return {row["key"]: row for row in self._db.execute(sql)}


class Writer:
    """Commits for a running event loop, in a thread of its own.

    Writes that arrive during a commit share the next one, so a slow disk blocks neither the loop
    nor the requests.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[tuple[Callable[[], None], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

    async def write(self, work: Callable[[], None]) -> None:
        """Run `work` on the journal and return once it is committed.

        Raises:
            WorkError: the journal cannot be written.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._commit_all())
        await asyncio.shield(done)

    async def close(self) -> None:
        while self._task is not None and not self._task.done():
            await asyncio.shield(self._task)
        self._thread.shutdown()

    async def _commit_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._commit, [work for work, _ in group]
                )
            except Exception as error:
                # Whatever went wrong, every waiting caller must be told.
                problem = WorkError(
                    f"the journal of LLM calls cannot be written: {error}; free disk space, then run it again"
                )
                for _, done in group:
                    done.set_exception(problem)
                    # Marks the exception as retrieved: its caller may have been cancelled, and
                    # asyncio would warn.
                    done.exception()
            else:
                for _, done in group:
                    done.set_result(None)

    def _commit(self, group: list[Callable[[], None]]) -> None:
        with self._journal.transaction():
            for work in group:
                work()


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()
