"""The journal: one SQLite row per request, written before it is sent and committed when it is answered.

No answer we hold is asked for again: a request is known by the hash of all that decides its answer. A row left `in_flight`
by a process that died is `in_doubt`: its answer may have been given and paid for, so it is sent again once at most.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.errors import WorkError
from pipelines.files import stable_hash

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


@dataclass(frozen=True)
class Request:
    """All that decides an answer. `topic` and `language` only describe it and are not part of its key."""

    provider: str
    model: str
    messages: list[dict[str, str]]
    parameters: dict[str, Any]
    schema: dict[str, Any]
    purpose: str = "generate"
    replicate: int = 0
    topic: str | None = field(default=None)
    language: str | None = field(default=None)

    @property
    def key(self) -> str:
        decisive = asdict(self)
        del decisive["topic"], decisive["language"]
        return stable_hash(decisive)


@dataclass(frozen=True)
class Answer:
    """A provider's response as it came (`raw` is its body), with what it says of itself."""

    raw: str
    stop_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    latency_ms: float
    cost_usd: float | None = None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Journal:
    """The requests of one data root. One process writes at a time (the caller holds the generation lock)."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise WorkError(f"{path}: the journal of LLM calls cannot be opened: {error}") from error

    def close(self) -> None:
        self._db.close()

    def mark_orphans_in_doubt(self) -> int:
        """Rows that a dead process left in flight become in doubt. Returns how many."""
        sql = "UPDATE requests SET status = 'in_doubt', in_doubt_count = in_doubt_count + 1 WHERE status = 'in_flight'"
        return self._db.execute(sql).rowcount

    def to_send(self, requests: Iterable[Request]) -> list[Request]:
        """Those of `requests` that hold no answer yet; one that was in doubt twice is not sent a third time."""
        rows = self._db.execute("SELECT key, status, in_doubt_count FROM requests").fetchall()
        settled = {row["key"] for row in rows if row["status"] == "answered" or row["in_doubt_count"] > 1}
        return [request for request in requests if request.key not in settled]

    def answered_among(self, requests: Iterable[Request]) -> int:
        """How many of `requests` hold an answer."""
        answered = {row["key"] for row in self._db.execute("SELECT key FROM requests WHERE status = 'answered'")}
        return sum(request.key in answered for request in requests)

    def sending(self, request: Request) -> None:
        """Note, before it leaves, that `request` is on its way."""
        described = json.dumps(
            {"messages": request.messages, "parameters": request.parameters, "schema": request.schema},
            ensure_ascii=False,
        )
        self._db.execute(
            "INSERT INTO requests (key, provider, model, purpose, topic, language, request, status, attempts, sent_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, 'in_flight', 1, ?)"
            " ON CONFLICT (key) DO UPDATE SET status = 'in_flight', attempts = attempts + 1, sent_at = excluded.sent_at",
            (
                request.key,
                request.provider,
                request.model,
                request.purpose,
                request.topic,
                request.language,
                described,
                now(),
            ),
        )

    def answered(self, request: Request, answer: Answer) -> None:
        self._db.execute(
            "UPDATE requests SET status = 'answered', response = ?, stop_reason = ?, input_tokens = ?, output_tokens = ?,"
            " cost_usd = ?, latency_ms = ?, error = NULL, finished_at = ? WHERE key = ?",
            (
                answer.raw, answer.stop_reason, answer.input_tokens, answer.output_tokens,
                answer.cost_usd, answer.latency_ms, now(), request.key,
            ),
        )  # fmt: skip

    def failed(self, request: Request, error: str) -> None:
        self._db.execute(
            "UPDATE requests SET status = 'failed', error = ?, finished_at = ? WHERE key = ?",
            (error, now(), request.key),
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        for row in self._db.execute("SELECT * FROM requests ORDER BY key"):
            yield dict(row)


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()
