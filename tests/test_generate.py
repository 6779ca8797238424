"""Generation against a real small server: every answer is kept raw, failures are retried and recorded, keys stay out."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.clean.clean import clean, rejects
from pipelines.clean.read import corpus_records
from pipelines.experiments import Experiments
from pipelines.generate.generate import _send, _send_all, generate, generated_records, local_requests
from pipelines.generate.journal import Request, opened
from pipelines.generate.openai_client import CallError, OpenAIClient
from pipelines.generate.topics import load_topics
from pipelines.paths import DataRoot
from pipelines.records import RawRecord
from tests.servers import Answers, ChatServer, Reply, chat_server, completion

KEY = "sk-planted-0123456789abcdef"
RECORD = {
    "instruction": "피곤한 밤에 읽을 책 한 권만요.",
    "input": "",
    "output": "『어린이라는 세계』를 한 꼭지만. 짧아서 졸려도 끝까지 가요.",
}
VALID = completion(json.dumps(RECORD, ensure_ascii=False))
TOPICS = """\
axes:
  mood: [tired, glad, bored, curious]
  job: [nurse, cook]
  language: [English, Korean]
languages: {English: en, Korean: ko}
topic: [mood, job]
prompt: A book for a {mood} {job}, in {language}.
system: You recommend books.
schema: {type: object, required: [instruction, input, output]}
"""


def call_counts(data: DataRoot) -> dict[str, int]:
    """Requests in the journal by status."""
    with opened(data.journal) as journal:
        return dict(Counter(row["status"] for row in journal.rows()))


@pytest.fixture(scope="module")
def running() -> Iterator[ChatServer]:
    with chat_server(always(Reply(VALID))) as server:
        yield server


@pytest.fixture
def server(running: ChatServer) -> ChatServer:
    """A server that has not been asked anything yet and gives valid answers."""
    running.answer_with(always(Reply(VALID)))
    return running


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    (tmp_path / "topics.yaml").write_text(TOPICS, encoding="utf-8")
    return DataRoot(tmp_path)


def configured(**settings: Any) -> Experiments:
    return Experiments.model_validate(
        {
            "models": {"tiny": {"source": {"hub": "planted/tiny"}, "prompt": "chat", "lora_targets": ["q_proj"]}},
            "methods": {"base": {"kind": "none"}},
            "profiles": {"local": {"models": ["tiny"], "methods": ["base"]}},
            "sources": {"local_generator": True},
            "generation": {"local": {"model": "tiny", "requests": 3, **settings}},
        }
    )


def requests_of(data: DataRoot, experiments: Experiments) -> list[Request]:
    return local_requests(load_topics(data.tracked("topics.yaml")), experiments.generation.local)


def send_pending(data: DataRoot, experiments: Experiments, server: ChatServer) -> list[tuple[int, int]]:
    """Have the server asked all that is not answered; returns the progress that was told."""
    told: list[tuple[int, int]] = []
    with opened(data.journal) as journal:
        pending = journal.to_send(requests_of(data, experiments))
        settings = experiments.generation.local
        asyncio.run(_send_all(journal, pending, settings, server.url, lambda done, total: told.append((done, total))))
    return told


async def ask_one(data: DataRoot, server: ChatServer, *, timeout: float = 10) -> None:
    """Ask once, past the journal."""
    async with OpenAIClient(base_url=server.url, api_key=KEY, timeout_seconds=timeout) as client:
        await client.answer(requests_of(data, configured())[0])


async def send_one(data: DataRoot, server: ChatServer) -> None:
    """Send one request with the planted key."""
    with opened(data.journal) as journal:
        async with OpenAIClient(base_url=server.url, api_key=KEY, timeout_seconds=10) as client:
            await _send(journal, client, requests_of(data, configured())[0])


def rows_of(data: DataRoot) -> list[dict[str, Any]]:
    with opened(data.journal) as journal:
        return list(journal.rows())


def only_row(data: DataRoot) -> dict[str, Any]:
    (row,) = rows_of(data)
    return row


def journal_bytes(data: DataRoot) -> bytes:
    files = list(data.lake.glob("journal.sqlite*"))
    assert files
    return b"".join(file.read_bytes() for file in files)


def always(*replies: Reply) -> Answers:
    """The n-th asking of a prompt gets the n-th reply, later ones the last."""
    return lambda _, nth: replies[min(nth, len(replies)) - 1]


def with_numbers(prompt: str, nth: int) -> Reply:
    return Reply(completion(json.dumps({**RECORD, "input": f"{prompt} {nth}"})))


# --- what is sent


def test_a_request_says_all_that_the_topics_and_settings_say(data: DataRoot, server: ChatServer) -> None:
    experiments = configured(requests=4, languages=["ko"], max_tokens=50, temperature=0.3, seed=9)
    send_pending(data, experiments, server)
    assert len(server.bodies) == 4
    assert {body["seed"] for body in server.bodies} == {9, 10, 11, 12}
    for body in server.bodies:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 50, 0.3)
        assert body["messages"][0] == {"role": "system", "content": "You recommend books."}
        assert body["messages"][1]["content"].endswith("in Korean.")
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema == {"type": "object", "required": ["instruction", "input", "output"]}


def test_no_more_requests_are_under_way_than_slots(data: DataRoot, server: ChatServer) -> None:
    server.answer_with(always(Reply(VALID, after=0.05)))
    told = send_pending(data, configured(requests=8, concurrency=2), server)
    assert server.most_at_once == 2
    assert told == [(done, 8) for done in range(1, 9)]


def test_a_loopback_server_is_reached_past_a_proxy(
    data: DataRoot, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    send_pending(data, configured(requests=1), server)
    assert len(server.bodies) == 1
    assert call_counts(data) == {"answered": 1}


# --- what is kept


def test_a_valid_answer_becomes_a_record_with_where_it_came_from(data: DataRoot, server: ChatServer) -> None:
    experiments = configured()
    send_pending(data, experiments, server)
    found = generated_records(data, experiments)
    assert [record.value for record in found] == [RECORD] * 3
    assert {record.topic for record in found} == {request.topic for request in requests_of(data, experiments)}
    for record in found:
        assert (record.source, record.provider, record.model) == ("local_generator", "local", "tiny")
        assert record.problem is None
        assert record.language in ("en", "ko")


def test_answers_are_kept_raw_with_what_they_say_of_themselves(data: DataRoot, server: ChatServer) -> None:
    send_pending(data, configured(), server)
    rows = rows_of(data)
    assert len(rows) == len(server.bodies) == 3
    for row in rows:
        assert row["response"] == VALID, "spaces, line ends and Korean as they came"
        assert (row["status"], row["attempts"], row["stop_reason"]) == ("answered", 1, "stop")
        assert (row["input_tokens"], row["output_tokens"]) == (11, 7)
        assert row["latency_ms"] > 0


BROKEN_ANSWERS = [
    ("Sure! Here is a book.", "stop", "answer is not the JSON asked for: "),
    ('{"instruction": "Wha', "length", "answer is not the JSON asked for (stopped by length): "),
    ("[" * 100_000, "length", "answer is not the JSON asked for (stopped by length): "),
    ("", "stop", "answer is not the JSON asked for: "),
    (None, "content_filter", "answer is not the JSON asked for (stopped by content_filter): "),
]


@pytest.mark.parametrize(("content", "stopped", "said"), BROKEN_ANSWERS, ids=["prose", "cut", "deep", "empty", "none"])
def test_a_broken_answer_is_kept_not_asked_again_and_says_why_it_is_no_record(
    data: DataRoot, server: ChatServer, content: str | None, stopped: str, said: str
) -> None:
    experiments = configured(requests=1)
    raw = completion(content, finish_reason=stopped)
    server.answer_with(always(Reply(raw)))
    send_pending(data, experiments, server)
    assert len(server.bodies) == 1, "it was answered, and paid for"
    assert only_row(data)["response"] == raw
    (record,) = generated_records(data, experiments)
    assert record.problem is not None
    assert record.problem.startswith(said)
    assert record.value == content


def test_cleaning_rejects_broken_answers_with_their_text(data: DataRoot, server: ChatServer) -> None:
    experiments = configured(requests=3)
    good = requests_of(data, experiments)[0].messages[-1]["content"]
    server.answer_with(lambda prompt, _: Reply(VALID if prompt == good else completion(f"no JSON for {prompt}")))
    send_pending(data, experiments, server)
    records: list[RawRecord] = [*corpus_records(data), *generated_records(data, experiments)]
    broken = [row for row in rejects(clean(data, records, experiments.cleaning)) if row["reason"] == "schema"]
    assert [row["source"] for row in broken] == ["local_generator", "local_generator"]
    assert all("no JSON for A book" in row["record"] and "not the JSON asked for" in row["detail"] for row in broken)


# --- failures


def test_a_server_error_is_retried_until_it_answers(data: DataRoot, server: ChatServer) -> None:
    server.answer_with(always(Reply("busy", status=500), Reply(VALID)))
    send_pending(data, configured(requests=2), server)
    assert len(server.bodies) == 4
    assert [(row["status"], row["attempts"], row["error"]) for row in rows_of(data)] == [("answered", 2, None)] * 2


def test_a_request_that_keeps_failing_is_given_up_recorded_and_costs_no_other(
    data: DataRoot, server: ChatServer
) -> None:
    experiments = configured(requests=3)
    hopeless = requests_of(data, experiments)[1].messages[-1]["content"]
    refusal = Reply(json.dumps({"error": {"message": "model overloaded"}}), status=503)
    server.answer_with(lambda prompt, nth: refusal if prompt == hopeless else with_numbers(prompt, nth))
    send_pending(data, experiments, server)
    assert sum(body["messages"][-1]["content"] == hopeless for body in server.bodies) == 3
    assert call_counts(data) == {"answered": 2, "failed": 1}
    (failed,) = [row for row in rows_of(data) if row["status"] == "failed"]
    assert (failed["attempts"], failed["response"]) == (3, None)
    assert failed["error"].startswith("HTTP 503: ")
    assert "model overloaded" in failed["error"]
    assert len(generated_records(data, experiments)) == 2


NO_COMPLETIONS = {
    "page": Reply("<html>Sign in to the proxy</html>", content_type="text/html"),
    "no JSON": Reply("{not json"),
    "empty": Reply(""),
    "list": Reply("[1]"),
    "null": Reply("null"),
    "odd choice": Reply('{"choices": [7]}'),
    "deep": Reply("[" * 100_000),
}


@pytest.mark.parametrize("name", NO_COMPLETIONS)
def test_a_body_that_is_no_completion_is_an_error_that_shows_it(data: DataRoot, server: ChatServer, name: str) -> None:
    server.answer_with(always(NO_COMPLETIONS[name]))
    with pytest.raises(CallError, match="HTTP 200, but no chat completion: '") as raised:
        asyncio.run(ask_one(data, server))
    assert NO_COMPLETIONS[name].body[:30] in str(raised.value)


def test_a_body_that_is_no_completion_is_retried(data: DataRoot, server: ChatServer) -> None:
    server.answer_with(always(NO_COMPLETIONS["page"], Reply(VALID)))
    send_pending(data, configured(requests=1), server)
    row = only_row(data)
    assert (row["status"], row["attempts"], row["response"]) == ("answered", 2, VALID)


def test_an_answer_that_takes_too_long_is_an_error_with_its_reason(data: DataRoot, server: ChatServer) -> None:
    server.answer_with(always(Reply(VALID, after=1)))
    with pytest.raises(CallError, match="Timeout"):
        asyncio.run(ask_one(data, server, timeout=0.2))


def test_a_server_that_is_not_there_is_a_failure_that_can_be_sent_again(data: DataRoot, server: ChatServer) -> None:
    experiments = configured(requests=1)
    with socket.socket() as unused:  # bound, so that nobody else gets the port, but not listening
        unused.bind(("127.0.0.1", 0))
        send_pending(
            data, experiments, ChatServer(server.answers, url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        )
    assert only_row(data)["status"] == "failed"
    assert "onnection" in only_row(data)["error"]
    send_pending(data, experiments, server)
    assert only_row(data)["status"] == "answered"


# --- no answer we hold is asked for again


def test_answered_requests_are_not_sent_again_and_more_requests_send_only_the_new(
    data: DataRoot, server: ChatServer
) -> None:
    server.answer_with(with_numbers)
    send_pending(data, configured(requests=3), server)
    held = {row["key"]: row["response"] for row in rows_of(data)}
    send_pending(data, configured(requests=3), server)
    assert len(server.bodies) == 3
    send_pending(data, configured(requests=5), server)
    assert len(server.bodies) == 5
    now = {row["key"]: row["response"] for row in rows_of(data)}
    assert len(now) == 5
    assert held.items() <= now.items()


def test_generate_needs_no_server_where_the_journal_holds_every_answer(data: DataRoot, server: ChatServer) -> None:
    experiments = configured(requests=3)
    send_pending(data, experiments, server)
    result = generate(data, experiments)
    assert (result.wanted, result.reused, result.answered, result.failed, result.in_doubt) == (3, 3, 0, 0, 0)


def test_a_request_twice_in_doubt_is_counted_as_failed_not_as_reused(data: DataRoot, server: ChatServer) -> None:
    experiments = configured(requests=3)
    lost = requests_of(data, experiments)[0]
    with opened(data.journal) as journal:
        for _ in range(2):
            journal.sending(lost)
            journal.mark_orphans_in_doubt()
    send_pending(data, experiments, server)
    assert len(server.bodies) == 2, "it may have been answered and paid for twice already"
    result = generate(data, experiments)
    assert (result.wanted, result.reused, result.answered, result.failed) == (3, 2, 0, 1)


def test_answers_to_what_is_no_longer_configured_stay_but_are_not_used(data: DataRoot, server: ChatServer) -> None:
    send_pending(data, configured(requests=3), server)
    other = configured(requests=3, temperature=0.1)
    assert generated_records(data, other) == []
    assert call_counts(data) == {"answered": 3}
    assert len(generated_records(data, configured(requests=2))) == 2


# --- keys stay out


def test_a_key_is_sent_but_never_stands_in_the_journal(data: DataRoot, server: ChatServer) -> None:
    refusal = Reply(json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}), status=401)
    page = Reply(f"<html>you sent Bearer {KEY}</html>", content_type="text/html")
    server.answer_with(always(refusal, page, refusal))
    asyncio.run(send_one(data, server))
    assert server.authorizations == [f"Bearer {KEY}"] * 3
    assert "Incorrect API key provided: " in only_row(data)["error"], "the rest of the message stays"
    assert KEY.encode() not in journal_bytes(data)


def test_the_key_is_in_no_error_that_is_shown(data: DataRoot, server: ChatServer) -> None:
    server.answer_with(always(Reply(f"who is {KEY}?", content_type="text/plain")))
    with pytest.raises(CallError, match=r"no chat completion: 'who is …\?'") as raised:
        asyncio.run(ask_one(data, server))
    assert KEY not in str(raised.value)


def test_a_key_in_the_environment_does_not_reach_the_local_server(
    data: DataRoot, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    send_pending(data, configured(), server)
    assert set(server.authorizations) == {"Bearer local"}
    assert KEY.encode() not in journal_bytes(data)


def test_local_requests_differ_in_their_keys_and_not_by_their_labels(data: DataRoot) -> None:
    requests = requests_of(data, configured(requests=16))
    assert len({request.key for request in requests}) == 16
    assert [request.key for request in requests_of(data, configured(requests=8))] == [r.key for r in requests[:8]]
    assert replace(requests[0], topic=None, language=None).key == requests[0].key
