"""No stored answer is requested again, and a request whose fate a crash left unknown is repeated at
most once."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import WorkError
from pipelines.generate.answers import Answer, Usage
from pipelines.generate.journal import Charges, Journal, Request, Writer, opened

REQUEST = Request(
    provider="local",
    model="tiny",
    messages=[
        {"role": "system", "content": "You recommend books."},
        {"role": "user", "content": "지친 간호사에게 한 권"},
    ],
    parameters={"max_tokens": 64, "temperature": 0.8, "seed": 1},
    schema={"type": "object", "properties": {"output": {"type": "string"}}},
    topic="tired/nurse",
    language="ko",
)
SEND_AND_DIE = """
import json, os, signal, sys
from pathlib import Path
from pipelines.generate.journal import Journal, Request
Journal(Path(sys.argv[1])).sending(Request(**json.loads(sys.argv[2])))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def journal(quick_path: Path) -> Iterator[Journal]:
    with opened(quick_path / "lake" / "journal.sqlite") as journal:
        yield journal


def answer(raw: str = '{"choices": []}') -> Answer:
    return Answer(raw=raw, stop_reason="stop", usage=Usage(input=11, output=7), latency_ms=12.5)


def row_of(journal: Journal, request: Request = REQUEST) -> dict[str, Any]:
    return next(row for row in journal.rows() if row["key"] == request.key)


def die_while_sending(path: Path) -> None:
    command = [sys.executable, "-c", SEND_AND_DIE, str(path), json.dumps(asdict(REQUEST))]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def numbered(count: int) -> list[Request]:
    return [replace(REQUEST, parameters={**REQUEST.parameters, "seed": number}) for number in range(count)]


def test_the_key_ignores_what_only_describes_a_request() -> None:
    assert replace(REQUEST, topic="calm/teacher", language="en").key == REQUEST.key


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "openai"},
        {"model": "other"},
        {"messages": REQUEST.messages[1:]},
        {"messages": REQUEST.messages[::-1]},
        {"parameters": {**REQUEST.parameters, "seed": 2}},
        {"parameters": {**REQUEST.parameters, "top_p": 0.9}},
        {"schema": {**REQUEST.schema, "required": ["output"]}},
        {"purpose": "judge"},
        {"replicate": 1},
    ],
    ids=lambda change: "-".join(change),
)
def test_the_key_depends_on_all_that_decides_the_answer(change: dict[str, Any]) -> None:
    assert replace(REQUEST, **change).key != REQUEST.key


def test_the_key_is_the_same_in_every_version() -> None:
    assert REQUEST.key == "8cb7f298f950b1ab", "with any other key every stored answer would be paid for again"


def test_the_key_does_not_depend_on_the_order_of_parameters() -> None:
    assert replace(REQUEST, parameters=dict(reversed(REQUEST.parameters.items()))).key == REQUEST.key


def test_a_request_is_noted_in_flight_with_all_it_says_before_it_is_answered(journal: Journal) -> None:
    journal.sending(REQUEST)
    row = row_of(journal)
    assert (row["status"], row["attempts"], row["response"]) == ("in_flight", 1, None)
    assert (row["topic"], row["language"]) == ("tired/nurse", "ko")
    noted = json.loads(row["request"])
    assert noted == {"messages": REQUEST.messages, "parameters": REQUEST.parameters, "schema": REQUEST.schema}


@pytest.mark.parametrize(
    "raw",
    [
        '{"a":1}',
        ' \n{ "a" : 1 }\r\n\r\n',
        "<html>이건 JSON이 아니다</html>",
        '{"text": "\\ud800 \\u0000"}',
        "",
        "긴 글" * 100_000,
    ],
    ids=["compact", "spaced", "not JSON", "escapes", "empty", "long"],
)
def test_an_answer_is_kept_as_it_came(journal: Journal, raw: str) -> None:
    journal.sending(REQUEST)
    journal.answered(REQUEST.key, answer(raw))
    row = row_of(journal)
    assert row["response"] == raw
    assert (row["status"], row["stop_reason"], row["input_tokens"], row["output_tokens"]) == ("answered", "stop", 11, 7)
    assert row["latency_ms"] == 12.5
    assert row["cost_usd"] is None, "an unmeasured cost is no number"


def test_an_answered_request_is_never_sent_again_also_after_a_restart(quick_path: Path) -> None:
    path = quick_path / "journal.sqlite"
    first, second = numbered(2)
    with opened(path) as journal:
        journal.sending(first)
        journal.answered(first.key, answer("the one"))
    with opened(path) as journal:
        assert journal.mark_orphans_in_doubt() == 0
        assert journal.to_send([first, second]) == [second]
        assert journal.to_send([replace(first, topic="another")]) == []
        assert row_of(journal, first)["response"] == "the one"
        assert journal.answered_among([first, second]) == 1


def test_a_failed_request_is_sent_again_and_says_why_it_failed(journal: Journal) -> None:
    journal.sending(REQUEST)
    journal.failed(REQUEST.key, "HTTP 500: busy")
    assert journal.to_send([REQUEST]) == [REQUEST]
    assert (row_of(journal)["status"], row_of(journal)["error"]) == ("failed", "HTTP 500: busy")
    journal.sending(REQUEST)
    journal.answered(REQUEST.key, answer())
    assert (row_of(journal)["status"], row_of(journal)["error"], row_of(journal)["attempts"]) == ("answered", None, 2)


def test_what_a_killed_process_left_in_flight_is_in_doubt_and_sent_again_once_at_most(quick_path: Path) -> None:
    path = quick_path / "journal.sqlite"
    die_while_sending(path)
    with opened(path) as journal:
        assert row_of(journal)["status"] == "in_flight", "the note was committed before the request left"
        assert journal.mark_orphans_in_doubt() == 1
        assert row_of(journal)["status"] == "in_doubt"
        assert journal.to_send([REQUEST]) == [REQUEST]
    die_while_sending(path)
    with opened(path) as journal:
        assert journal.mark_orphans_in_doubt() == 1
        assert journal.to_send([REQUEST]) == []
        assert (row_of(journal)["status"], row_of(journal)["in_doubt_count"]) == ("in_doubt", 2)
        assert journal.mark_orphans_in_doubt() == 0, "it is counted once for each crash"


def test_a_request_once_in_doubt_is_settled_by_its_answer(quick_path: Path) -> None:
    path = quick_path / "journal.sqlite"
    die_while_sending(path)
    with opened(path) as journal:
        journal.mark_orphans_in_doubt()
        journal.sending(REQUEST)
        journal.answered(REQUEST.key, answer())
        assert journal.mark_orphans_in_doubt() == 0
        assert journal.to_send([REQUEST]) == []
        assert row_of(journal)["in_doubt_count"] == 1, "that it was in doubt stays on record"


def test_requests_that_are_not_in_flight_are_not_put_in_doubt(journal: Journal) -> None:
    done, broken, flying = numbered(3)
    for request in (done, broken, flying):
        journal.sending(request)
    journal.answered(done.key, answer())
    journal.failed(broken.key, "refused")
    assert journal.mark_orphans_in_doubt() == 1
    assert [row_of(journal, request)["status"] for request in (done, broken, flying)] == [
        "answered",
        "failed",
        "in_doubt",
    ]


def test_another_process_reads_an_answer_as_soon_as_it_is_given(journal: Journal, quick_path: Path) -> None:
    journal.sending(REQUEST)
    journal.answered(REQUEST.key, answer("kept"))
    reader = sqlite3.connect(f"file:{quick_path / 'lake' / 'journal.sqlite'}?mode=ro", uri=True)
    assert reader.execute("SELECT response FROM requests").fetchall() == [("kept",)]
    reader.close()


def test_a_file_that_is_no_journal_is_an_error_that_names_it(quick_path: Path) -> None:
    path = quick_path / "journal.sqlite"
    path.write_text("this is no database, but a text of more than a hundred characters " * 3, encoding="utf-8")
    with pytest.raises(WorkError, match=r"journal\.sqlite: the journal of LLM calls cannot be opened"):
        Journal(path)


# --- costs of a request


def charges(journal: Journal) -> Charges:
    return journal.charges()["local"]


def test_a_reservation_is_given_back_once_the_cost_is_known(journal: Journal) -> None:
    journal.sending(REQUEST, reserve=0.5)
    assert charges(journal) == Charges(settled=0, reserved=0.5)
    journal.answered(REQUEST.key, answer(), cost=0.125)
    assert charges(journal) == Charges(settled=0.125, reserved=0)


def test_a_reservation_stays_where_the_cost_of_the_answer_is_not_known(journal: Journal) -> None:
    journal.sending(REQUEST, reserve=0.5)
    journal.answered(REQUEST.key, answer())
    assert charges(journal) == Charges(settled=0, reserved=0.5)
    assert row_of(journal)["cost_usd"] is None


def test_a_failed_request_gives_its_reservation_back(journal: Journal) -> None:
    journal.sending(REQUEST, reserve=0.5)
    journal.failed(REQUEST.key, "HTTP 503")
    assert charges(journal).total == 0


def test_what_a_doubtful_attempt_may_have_cost_stays_charged_beside_the_next_attempts_cost(journal: Journal) -> None:
    journal.sending(REQUEST, reserve=0.5)
    journal.doubtful(REQUEST.key, "timed out", raw="half a bo")
    assert (row_of(journal)["status"], row_of(journal)["in_doubt_count"]) == ("in_doubt", 1)
    assert row_of(journal)["response"] == "half a bo"
    journal.sending(REQUEST, reserve=0.5)
    assert charges(journal).reserved == 1.0
    journal.answered(REQUEST.key, answer("whole"), cost=0.125)
    assert charges(journal) == Charges(settled=0.125, reserved=0.5)
    assert row_of(journal)["response"] == "whole"


def test_what_was_in_doubt_once_is_sent_last_and_twice_not_at_all_until_it_is_forgiven(journal: Journal) -> None:
    once, twice, fresh = numbered(3)
    for request, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            journal.sending(request)
            journal.doubtful(request.key, "cut")
    assert journal.to_send([once, twice, fresh]) == [fresh, once]
    assert journal.given_up() == {twice.key}
    assert journal.forgive_doubts() == 1
    assert journal.to_send([once, twice, fresh]) == [fresh, once, twice]


FIRST_VERSION = """
CREATE TABLE requests (key TEXT PRIMARY KEY, provider TEXT NOT NULL, model TEXT NOT NULL, purpose TEXT NOT NULL, topic TEXT,
    language TEXT, request TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('in_flight', 'in_doubt', 'answered', 'failed')),
    attempts INTEGER NOT NULL, in_doubt_count INTEGER NOT NULL DEFAULT 0, response TEXT, stop_reason TEXT, input_tokens INTEGER,
    output_tokens INTEGER, cost_usd REAL, latency_ms REAL, error TEXT, sent_at TEXT NOT NULL, finished_at TEXT)
"""


def test_a_journal_of_the_first_version_keeps_its_answers(quick_path: Path) -> None:
    path = quick_path / "journal.sqlite"
    with sqlite3.connect(path) as db:
        db.execute(FIRST_VERSION)
        db.execute(
            "INSERT INTO requests (key, provider, model, purpose, request, status, attempts, response, sent_at)"
            " VALUES (?, 'local', 'tiny', 'generate', '{}', 'answered', 1, 'paid for', 'then')",
            (REQUEST.key,),
        )
    db.close()
    for _ in range(2):
        with opened(path) as journal:
            assert journal.to_send([REQUEST]) == []
            row = row_of(journal)
            assert (row["response"], row["reserved_usd"], row["reasoning_tokens"]) == ("paid for", 0, None)


# --- many at once


def test_writes_that_wait_for_one_another_are_all_committed(quick_path: Path) -> None:
    requests = numbered(50)

    async def write_all() -> None:
        with opened(quick_path / "journal.sqlite") as journal:
            writer = Writer(journal)
            await asyncio.gather(*(writer.write(partial(journal.sending, request)) for request in requests))
            with sqlite3.connect(f"file:{quick_path / 'journal.sqlite'}?mode=ro", uri=True) as db:
                assert db.execute("SELECT count(*) FROM requests WHERE status = 'in_flight'").fetchone() == (50,)
            db.close()
            await writer.close()

    asyncio.run(write_all())


def test_a_commit_that_fails_reaches_everybody_who_waits_for_it_and_writes_nothing_of_it(quick_path: Path) -> None:
    def breaks() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def write_all() -> list[BaseException | None]:
        with opened(quick_path / "journal.sqlite") as journal:
            writer = Writer(journal)
            works = [partial(journal.sending, request) for request in numbered(3)]
            done = await asyncio.gather(*(writer.write(work) for work in [*works, breaks]), return_exceptions=True)
            assert list(journal.rows()) == []
            await writer.write(works[0])
            assert len(list(journal.rows())) == 1, "what comes later can be written again"
            await writer.close()
        return done

    failed = asyncio.run(write_all())
    assert all(isinstance(error, WorkError) and "disk is full" in str(error) for error in failed)


def test_work_that_breaks_in_any_way_leaves_nobody_waiting(quick_path: Path) -> None:
    unwritable = replace(REQUEST, topic="half a character \ud83d")

    async def write_all() -> list[BaseException | None]:
        with opened(quick_path / "journal.sqlite") as journal:
            writer = Writer(journal)
            works = [partial(journal.sending, unwritable), partial(journal.sending, REQUEST), partial(int, "no number")]
            done = [await asyncio.gather(writer.write(work), return_exceptions=True) for work in works]
            await writer.close()
            await writer.close()
        return [one for (one,) in done]

    first, second, third = asyncio.run(asyncio.wait_for(write_all(), 600))
    assert isinstance(first, WorkError) and second is None and isinstance(third, WorkError)


def test_a_waiter_that_is_cancelled_loses_nothing_of_what_was_handed_in(quick_path: Path) -> None:
    async def write_one() -> None:
        with opened(quick_path / "journal.sqlite") as journal:
            writer = Writer(journal)
            waiting = asyncio.create_task(writer.write(partial(journal.sending, REQUEST)))
            await asyncio.sleep(0)
            waiting.cancel()
            await writer.close()
            assert waiting.cancelled()
            assert row_of(journal)["status"] == "in_flight"

    asyncio.run(write_one())


def test_a_disk_that_is_full_loses_the_transaction_alone(journal: Journal) -> None:
    with journal.transaction() as db:
        journal.sending(REQUEST)
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    with journal.transaction() as db:
        db.execute(f"PRAGMA max_page_count = {pages + 2}")
    first, second = numbered(2)
    with pytest.raises(sqlite3.Error, match="full"), journal.transaction():
        journal.sending(first)
        journal.sending(second)
        journal.answered(first.key, answer("x" * 1_000_000))
    assert [row["key"] for row in journal.rows()] == [REQUEST.key]
    with journal.transaction() as db:
        db.execute("PRAGMA max_page_count = 1000000")
        journal.answered(REQUEST.key, answer("x" * 1_000_000), cost=0.5)
    assert row_of(journal)["status"] == "answered"


def test_two_processes_may_open_a_journal_of_the_first_version_at_once(quick_path: Path) -> None:
    path = quick_path / "journal.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(FIRST_VERSION)
    db.close()
    columns = []
    for _ in range(3):
        threads = [threading.Thread(target=lambda: columns.append(opened_columns(path))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(columns) == 12 and len(set(columns)) == 1


def opened_columns(path: Path) -> tuple[str, ...]:
    with opened(path) as journal:
        journal.sending(replace(REQUEST, replicate=threading.get_ident()))
        return tuple(next(journal.rows()))
