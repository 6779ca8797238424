"""No answer we hold is asked for again, and a request whose fate a crash left unknown is sent again once at most."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import WorkError
from pipelines.generate.journal import Answer, Journal, Request, opened

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
def journal(tmp_path: Path) -> Iterator[Journal]:
    with opened(tmp_path / "lake" / "journal.sqlite") as journal:
        yield journal


def answer(raw: str = '{"choices": []}') -> Answer:
    return Answer(raw=raw, stop_reason="stop", input_tokens=11, output_tokens=7, latency_ms=12.5)


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
    journal.answered(REQUEST, answer(raw))
    row = row_of(journal)
    assert row["response"] == raw
    assert (row["status"], row["stop_reason"], row["input_tokens"], row["output_tokens"]) == ("answered", "stop", 11, 7)
    assert row["latency_ms"] == 12.5
    assert row["cost_usd"] is None, "a cost that nobody measured is no number"


def test_an_answered_request_is_never_sent_again_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    first, second = numbered(2)
    with opened(path) as journal:
        journal.sending(first)
        journal.answered(first, answer("the one"))
    with opened(path) as journal:
        assert journal.mark_orphans_in_doubt() == 0
        assert journal.to_send([first, second]) == [second]
        assert journal.to_send([replace(first, topic="another")]) == []
        assert row_of(journal, first)["response"] == "the one"
        assert journal.answered_among([first, second]) == 1


def test_a_failed_request_is_sent_again_and_says_why_it_failed(journal: Journal) -> None:
    journal.sending(REQUEST)
    journal.failed(REQUEST, "HTTP 500: busy")
    assert journal.to_send([REQUEST]) == [REQUEST]
    assert (row_of(journal)["status"], row_of(journal)["error"]) == ("failed", "HTTP 500: busy")
    journal.sending(REQUEST)
    journal.answered(REQUEST, answer())
    assert (row_of(journal)["status"], row_of(journal)["error"], row_of(journal)["attempts"]) == ("answered", None, 2)


def test_what_a_killed_process_left_in_flight_is_in_doubt_and_sent_again_once_at_most(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
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


def test_a_request_once_in_doubt_is_settled_by_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    die_while_sending(path)
    with opened(path) as journal:
        journal.mark_orphans_in_doubt()
        journal.sending(REQUEST)
        journal.answered(REQUEST, answer())
        assert journal.mark_orphans_in_doubt() == 0
        assert journal.to_send([REQUEST]) == []
        assert row_of(journal)["in_doubt_count"] == 1, "that it was in doubt stays on record"


def test_requests_that_are_not_in_flight_are_not_put_in_doubt(journal: Journal) -> None:
    done, broken, flying = numbered(3)
    for request in (done, broken, flying):
        journal.sending(request)
    journal.answered(done, answer())
    journal.failed(broken, "refused")
    assert journal.mark_orphans_in_doubt() == 1
    assert [row_of(journal, request)["status"] for request in (done, broken, flying)] == [
        "answered",
        "failed",
        "in_doubt",
    ]


def test_another_process_reads_an_answer_as_soon_as_it_is_given(journal: Journal, tmp_path: Path) -> None:
    journal.sending(REQUEST)
    journal.answered(REQUEST, answer("kept"))
    reader = sqlite3.connect(f"file:{tmp_path / 'lake' / 'journal.sqlite'}?mode=ro", uri=True)
    assert reader.execute("SELECT response FROM requests").fetchall() == [("kept",)]
    reader.close()


def test_a_file_that_is_no_journal_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_text("this is no database, but a text of more than a hundred characters " * 3, encoding="utf-8")
    with pytest.raises(WorkError, match=r"journal\.sqlite: the journal of LLM calls cannot be opened"):
        Journal(path)
