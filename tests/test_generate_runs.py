"""Whole runs under odd conditions: a fault of one server, prompt or environment costs nothing
else."""

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.generate import pacing, send
from pipelines.generate.generate import generated_records
from pipelines.generate.journal import opened
from tests.asking import Asking, asking, ready, started, wait_for
from tests.fakes.behavior import Behavior, Fault
from tests.fakes.llm_server import ChatServer, Reply, chat_server, completion
from tests.fakes.provider import FakeProvider

RECORD = {"instruction": "What could I read tonight?", "input": "", "output": "Stoner, by John Williams: calm and sad."}
GOOD = Reply(completion(json.dumps(RECORD)))


@pytest.fixture(scope="module")
def compatible() -> Iterator[ChatServer]:
    with chat_server(lambda *_: GOOD) as server:
        yield server


@pytest.fixture
def server(running: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    monkeypatch.setattr(pacing, "FIRST_BACKOFF_SECONDS", 0.02)
    return ready(running, monkeypatch, Behavior())


@pytest.fixture
def ask(quick_path: Path, server: FakeProvider) -> Asking:
    """Six requests of one provider."""
    return asking(quick_path, server, "openai")


@pytest.fixture
def mine(quick_path: Path, server: FakeProvider, compatible: ChatServer) -> Asking:
    """Six requests of a single compatible server."""
    compatible.answer_with(lambda *_: GOOD)
    ask = asking(quick_path, server, providers={"claude": {"enabled": False}, "gpt": {"enabled": False}})
    settings = {"kind": "openai-compatible", "model": "mine", "base_url": compatible.url, "enabled": True}
    return ask.configure(providers={"mine": settings}, sources={"providers": ["mine"]})


def faults(*those: Fault) -> Behavior:
    """These faults at the first requests with every prompt, one after the other, then none."""
    return Behavior(
        script=lambda wire, prompt, nth: those[nth - 1] if nth <= len(those) else None, retry_after_seconds=0
    )


# --- retries


def test_a_wait_of_hours_that_the_server_asks_for_is_waited_for_up_to_the_cap(ask: Asking) -> None:
    ask.server.behavior = Behavior(
        script=lambda _, prompt, nth: "rate_limited" if nth == 1 else None, retry_after_seconds=7200
    )
    ask.configure(providers={"gpt": {"longest_retry_after_seconds": 0.05}})
    assert ask.generate().complete


def test_being_turned_away_is_no_try_of_a_request_that_fails_later(ask: Asking) -> None:
    turned_away: list[Fault] = ["rate_limited"] * (send.TRIES - 1)
    ask.configure(generation={"requests": 1})
    ask.server.behavior = faults(*turned_away, "overloaded", "server_error", "server_error")
    assert ask.generate().complete
    assert {row["attempts"] for row in ask.rows()} == {send.TRIES + 3}


# Slow because of its waits: even when a busy machine spreads them, failures must lie within
# DEAD_SECONDS.
@pytest.mark.slow
def test_connections_that_break_all_at_once_do_not_make_a_slow_provider_a_dead_one(ask: Asking) -> None:
    ask.configure(generation={"requests": 24}, providers={"gpt": {"concurrency": 24}})
    late = send.DEAD_SECONDS + 1
    ask.server.behavior = Behavior(latency=late, script=lambda _, prompt, nth: "cut" if nth == 1 else None)
    assert ask.generate().complete, "no answer for long, but the first failure was only now"


def test_one_prompt_that_is_too_long_for_its_server_costs_no_other(mine: Asking, compatible: ChatServer) -> None:
    refusal = {
        "error": {"message": "Request too large for mine on tokens per min (TPM)", "code": "rate_limit_exceeded"}
    }
    long = Reply(json.dumps(refusal), status=429)
    compatible.answer_with(lambda prompt, _: long if "nurse" in prompt else GOOD)
    result = mine.generate().providers["mine"]
    failed = sum("nurse" in body["messages"][-1]["content"] for body in compatible.bodies)
    assert failed > 0 and (result.failed, result.answered, result.stopped) == (failed, 6 - failed, None)


def test_an_interrupt_does_not_wait_for_requests_that_would_be_tried_again_later(
    quick_path: Path, server: FakeProvider
) -> None:
    server.behavior = Behavior(script=lambda *_: "overloaded", retry_after=False)
    ask = asking(quick_path, server, generation={"requests": 10})
    process = started(ask)
    wait_for(lambda: server.ledger.openai.requests > 5 and server.ledger.anthropic.requests > 5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in err
    assert set(ask.statuses()) == {"failed"} and ask.charged() == 0


def test_an_interrupt_is_heard_when_nobody_reads_the_output_any_more(quick_path: Path, server: FakeProvider) -> None:
    server.behavior = Behavior(latency=1)
    ask = asking(quick_path, server, "openai", generation={"requests": 40}, providers={"gpt": {"concurrency": 4}})
    process = started(ask)
    wait_for(lambda: server.ledger.openai.in_progress == 4)
    assert process.stderr is not None
    # Like `| tee`, which the same Ctrl-C ends.
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    # 120: Python could not flush its output.
    assert process.wait(timeout=600) in (130, 120)
    # The first request is sent alone, then four.
    assert ask.statuses() == {"answered": 5} and server.ledger.openai.requests == 5


# --- faults of a single provider


def test_an_environment_in_which_one_cannot_be_reached_stops_that_one_alone(
    quick_path: Path, server: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "carrier-pigeon://nowhere")
    ask = asking(quick_path, server, providers={"gpt": {"base_url": "http://gateway.invalid/v1"}})
    result = ask.generate()
    assert "cannot be reached from here" in result.stopped["gpt"]
    assert result.providers["claude"].answered == 6, "on loopback, past every proxy"
    assert ask.charged() == pytest.approx(server.ledger.anthropic.dollars)


def test_a_schema_that_an_api_cannot_take_stops_that_api_and_costs_nothing(
    quick_path: Path, server: FakeProvider, compatible: ChatServer
) -> None:
    compatible.answer_with(lambda *_: GOOD)
    mine = {"kind": "openai-compatible", "model": "mine", "base_url": compatible.url, "enabled": True}
    ask = asking(quick_path, server, providers={"mine": mine})
    ask.grid(schema={"type": ["object", "null"], "required": ["instruction", "output"]})
    result = ask.generate()
    assert set(result.stopped) == {"claude", "gpt"}
    assert all("schema cannot be put in the API's form" in why for why in result.stopped.values())
    assert server.ledger.received == [] and ask.charged() == 0
    assert result.providers["mine"].answered == 6


def test_answers_with_counts_and_characters_that_are_none_are_kept(mine: Asking, compatible: ChatServer) -> None:
    body = json.loads(GOOD.body)
    body["usage"] = {"prompt_tokens": 10**30, "completion_tokens": "many", "prompt_tokens_details": []}
    body["choices"][0]["finish_reason"] = "\ud83d"
    body["choices"][0]["message"]["content"] = json.dumps(RECORD | {"output": "\ud83d" * 40})
    odd = json.dumps(body)
    compatible.answer_with(lambda *_: Reply(odd))
    assert mine.generate().complete
    assert {(row["response"], row["input_tokens"], row["stop_reason"]) for row in mine.rows()} == {(odd, None, "?")}
    for record in generated_records(mine.data, mine.experiments):
        assert record.problem is not None and "half a character" in record.problem


def test_an_error_in_any_alphabet_is_kept_and_shown(mine: Asking, compatible: ChatServer) -> None:
    compatible.answer_with(lambda *_: Reply('{"error": {"message": "\\ud83d 열쇠가 없다 \\u0000"}}', status=401))
    why = mine.generate().stopped["mine"]
    assert why.encode() and "열쇠가 없다" in why
    assert any("열쇠가 없다" in row["error"] for row in mine.rows())


# --- traces of a run


def test_nothing_stays_open_after_a_run_that_was_cut_up(ask: Asking) -> None:
    # After this call, everything that is loaded once is loaded.
    ask.generate()
    before = len(os.listdir("/proc/self/fd"))
    ask.configure(generation={"requests": 40, "seed": 5}, providers={"gpt": {"timeout_seconds": 0.3}})
    ask.server.behavior = Behavior(faults={"cut": 0.1, "cut_body": 0.1, "hang": 0.1, "malformed": 0.1}, seed=1)
    ask.generate()
    # The server closes its ends a little later, too.
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_journal_that_cannot_be_written_ends_the_run_before_anything_more_leaves(
    ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask.configure(generation={"requests": 30}, providers={"gpt": {"concurrency": 2}})
    ask.server.behavior = Behavior(latency=0.05)
    with opened(ask.data.journal) as journal:
        journal.close()

    blocked = sqlite3.connect(ask.data.journal)
    monkeypatch.setattr("pipelines.generate.journal.LOCK_SECONDS", 0.05)

    def block(snapshot: send.Snapshot) -> None:
        if not blocked.in_transaction:
            blocked.execute("BEGIN IMMEDIATE")

    with pytest.raises(Exception, match="the journal of LLM calls cannot be written: database is locked"):
        ask.generate(progress=block)
    blocked.rollback()
    blocked.close()
    assert ask.account("openai").requests <= 4
    assert ask.generate().complete
    assert ask.account("openai").dollars <= ask.charged() + 1e-9


def test_a_key_that_the_server_repeats_stands_nowhere_nor_in_the_logs_of_the_sdks(
    quick_path: Path, server: FakeProvider
) -> None:
    server.behavior = Behavior(
        script=lambda wire, prompt, nth: "unauthorized" if (wire, nth) == ("openai", 1) else None
    )
    ask = asking(quick_path, server)
    process = started(ask, OPENAI_LOG="debug", ANTHROPIC_LOG="debug")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 3, err
    assert "gpt stopped: HTTP 401" in out and "claude: 6 requests, 6 answered now" in out
    assert "HTTP Response" in err, "the logs are on"
    assert ask.leaks(out, err) == []
