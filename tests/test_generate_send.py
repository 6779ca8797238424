"""Sending over HTTP with both SDKs against the fake provider: stored answers, retries, stops and
costs."""

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.clean.clean import clean, rejects
from pipelines.clean.read import raw_records
from pipelines.generate import send
from pipelines.generate.generate import generate_again, generated_records
from tests.asking import (
    GRID,
    KEY,
    KEYS,
    NAMES,
    PRICE,
    Asking,
    asking,
    child,
    kill,
    ready,
    started,
    wait_for,
)
from tests.fakes.behavior import Behavior, Fault, Wire
from tests.fakes.provider import FakeProvider

WIRES: list[Wire] = ["anthropic", "openai"]


@pytest.fixture
def server(running: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    """A server without any requests, keys for it, and waits that a test can afford."""
    monkeypatch.setattr("pipelines.generate.pacing.FIRST_BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(send, "DEAD_SECONDS", 0.5)
    return ready(running, monkeypatch, Behavior())


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


@pytest.fixture
def ask(quick_path: Path, server: FakeProvider, wire: Wire) -> Asking:
    """Six requests of one provider."""
    return asking(quick_path, server, wire)


@pytest.fixture
def both(quick_path: Path, server: FakeProvider) -> Asking:
    """Six requests of each of two providers."""
    return asking(quick_path, server)


def first(*faults: Fault | None) -> Callable[[Wire, str, int], Fault | None]:
    """These faults at the first requests with every prompt, one after the other, then none."""
    return lambda wire, prompt, nth: faults[nth - 1] if nth <= len(faults) else None


def always(fault: Fault, only: Wire | None = None) -> Callable[[Wire, str, int], Fault | None]:
    return lambda wire, prompt, nth: fault if only in (None, wire) else None


def stopped(result: Any) -> str:
    (why,) = result.stopped.values()
    return why


# --- requests


def test_anthropic_gets_the_system_prompt_apart_and_the_schema_in_its_own_form(
    quick_path: Path, server: FakeProvider
) -> None:
    ask = asking(quick_path, server, "anthropic", generation={"requests": 1})
    ask.configure(providers={"claude": {"parameters": {"temperature": 0.5, "output_config": {"effort": "low"}}}})
    assert ask.generate().complete
    body = server.ledger.received[0].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("claude-test", 200, 0.5)
    assert body["system"] == "You recommend books."
    assert [message["role"] for message in body["messages"]] == ["user"]
    form = body["output_config"]["format"]
    assert (body["output_config"]["effort"], form["type"]) == ("low", "json_schema")
    assert "maxLength" not in form["schema"]["properties"]["output"], "the API refuses what it does not enforce"
    assert "maxLength: 400" in form["schema"]["properties"]["output"]["description"]


def test_openai_gets_a_strict_schema_and_its_own_name_for_the_limit(quick_path: Path, server: FakeProvider) -> None:
    ask = asking(quick_path, server, "openai", generation={"requests": 1})
    assert ask.generate().complete
    body = server.ledger.received[0].body
    assert body["max_completion_tokens"] == 200 and "max_tokens" not in body
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["response_format"]["json_schema"]["strict"] is True
    assert "seed" not in body


def test_a_compatible_server_gets_the_schema_as_it_is_a_seed_and_no_key_of_anybody_else(
    quick_path: Path, server: FakeProvider
) -> None:
    server.behavior = Behavior(api_keys=("none",))
    mine = {"kind": "openai-compatible", "model": "mine", "base_url": server.openai_url, "enabled": True}
    ask = asking(quick_path, server, "openai", providers={"mine": mine, "gpt": {"enabled": False}})
    ask.configure(generation={"requests": 2})
    assert ask.generate().complete, "the server takes no other key than the placeholder"
    bodies = [received.body for received in server.ledger.received]
    assert sorted(body["seed"] for body in bodies) == [1, 2]
    for body in bodies:
        assert body["max_tokens"] == 200
        assert body["response_format"]["json_schema"]["schema"]["properties"]["output"]["maxLength"] == 400
    assert {row["cost_usd"] for row in ask.rows()} == {None}, "its price is unknown"


def test_no_more_requests_are_under_way_than_slots(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = Behavior(latency=0.05)
    ask.configure(providers={NAMES[wire]: {"concurrency": 2}})
    assert ask.generate().complete
    assert ask.account(wire).most_at_once == 2


# --- stored answers


def test_answers_are_kept_raw_with_what_they_say_of_themselves(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = Behavior(cached_share=0.5, reasoning_tokens=5)
    result = ask.generate()
    assert (result.wanted, result.answered, result.missing, result.complete) == (6, 6, 0, True)
    for row in ask.rows():
        assert json.loads(row["response"])["usage"]
        assert (row["status"], row["attempts"]) == ("answered", 1)
        assert row["stop_reason"] == {"anthropic": "end_turn", "openai": "stop"}[wire]
        assert row["cached_input_tokens"] > 0 and row["reasoning_tokens"] == 5 and row["output_tokens"] > 5
        assert row["latency_ms"] > 0 and row["reserved_usd"] == 0
        assert row["input_tokens"] > row["cached_input_tokens"], "all input tokens, the cached ones among them"
        assert row["cost_usd"] == pytest.approx((3 * row["input_tokens"] + 15 * row["output_tokens"]) / 1e6)


OUTCOMES: list[tuple[Fault, dict[Wire, str], str]] = [
    ("refusal", {"anthropic": "refusal", "openai": "refusal"}, "answer"),
    ("truncated", {"anthropic": "max_tokens", "openai": "length"}, "answer is not the JSON asked for (stopped by "),
    ("breaks_schema", {"anthropic": "end_turn", "openai": "stop"}, "answer is not the JSON asked for: "),
    ("empty", {"anthropic": "end_turn", "openai": "stop"}, "answer"),
]


@pytest.mark.parametrize(("fault", "reasons", "words"), OUTCOMES, ids=[fault for fault, _, _ in OUTCOMES])
def test_an_answer_that_is_no_record_is_kept_paid_for_and_never_asked_again(
    ask: Asking, wire: Wire, fault: Fault, reasons: dict[Wire, str], words: str
) -> None:
    ask.server.behavior = Behavior(script=always(fault), refusal_category="frontier_llm")
    for _ in range(2):
        ask.generate()
    assert ask.account(wire).requests == 6
    assert ask.statuses() == {"answered": 6}
    assert {row["stop_reason"] for row in ask.rows()} == {reasons[wire]}
    if fault == "refusal" and wire == "anthropic":
        assert {row["stop_category"] for row in ask.rows()} == {"frontier_llm"}
    assert all(row["cost_usd"] is not None for row in ask.rows())
    problems = [record.problem or "" for record in generated_records(ask.data, ask.experiments)]
    assert len(problems) == 6 and all(problem.startswith(words) for problem in problems)


def test_a_refusal_is_never_sent_to_another_provider(both: Asking) -> None:
    both.server.behavior = Behavior(script=always("refusal", only="anthropic"))
    result = both.generate()
    assert (result.providers["claude"].refused, result.providers["gpt"].refused) == (6, 0)
    assert both.account("openai").requests == 6


def test_what_is_no_record_is_a_reject_with_its_reason(ask: Asking) -> None:
    ask.configure(sources={"corpus": True}, cleaning={"max_chars": 5000})
    ask.server.behavior = Behavior(script=always("breaks_schema"))
    ask.generate()
    cleaned = clean(ask.data, raw_records(ask.data, ask.experiments), ask.experiments.cleaning)
    broken = [row for row in rejects(cleaned) if row["source"] == "providers"]
    assert [row["reason"] for row in broken] == ["schema"] * 6
    assert {row["call_key"] for row in broken} == {row["key"] for row in ask.rows()}


# --- retries


RETRIED: list[Fault] = ["server_error", "unavailable", "overloaded", "rate_limited"]


@pytest.mark.parametrize("fault", RETRIED)
def test_what_was_turned_away_or_failed_is_tried_again_and_costs_nothing(ask: Asking, wire: Wire, fault: Fault) -> None:
    ask.configure(generation={"requests": 2})
    ask.server.behavior = Behavior(script=first(fault, fault), retry_after_seconds=0)
    assert ask.generate().complete
    rows = ask.rows()
    assert {(row["status"], row["attempts"], row["in_doubt_count"]) for row in rows} == {("answered", 3, 0)}
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)


def test_a_request_that_keeps_failing_is_given_up_for_this_run_and_costs_no_other(ask: Asking, wire: Wire) -> None:
    # Nothing is submitted: the call only makes the journal.
    ask.generate("submit")
    hopeless = "A book for a tired"
    ask.server.behavior = Behavior(script=lambda _, prompt, nth: "server_error" if hopeless in prompt else None)
    result = ask.generate()
    failed = [row for row in ask.rows() if row["status"] == "failed"]
    assert result.providers[NAMES[wire]].failed == len(failed) >= 1
    assert {row["attempts"] for row in failed} == {send.TRIES}
    assert all(row["error"].startswith("HTTP 500") for row in failed)
    assert result.answered == 6 - len(failed)
    ask.server.behavior = Behavior()
    assert ask.generate().complete


UNKNOWN: list[Fault] = ["cut", "cut_body", "malformed", "hang_after"]


@pytest.mark.parametrize("fault", UNKNOWN)
def test_a_request_of_unknown_fate_stays_charged_is_sent_again_once_and_then_answered(
    ask: Asking, wire: Wire, fault: Fault
) -> None:
    ask.configure(providers={NAMES[wire]: {"timeout_seconds": 0.5}})
    ask.server.behavior = Behavior(script=first(fault))
    assert ask.generate().complete
    rows = ask.rows()
    assert {(row["status"], row["attempts"], row["in_doubt_count"]) for row in rows} == {("answered", 2, 1)}
    assert all(row["reserved_usd"] > 0 and row["cost_usd"] for row in rows)
    assert ask.charged() >= ask.account(wire).dollars, "the server was paid for both"


def test_a_request_whose_fate_is_lost_twice_is_given_up_and_the_next_topic_takes_its_place(
    ask: Asking, wire: Wire
) -> None:
    lost = "A book for a tired"
    ask.server.behavior = Behavior(script=lambda _, prompt, nth: "cut" if lost in prompt else None)
    result = ask.generate()
    given_up = [row for row in ask.rows() if row["in_doubt_count"] == 2]
    assert result.providers[NAMES[wire]].in_doubt == len(given_up) >= 1
    assert ask.account(wire).attempts.most_common(1)[0][1] == 2
    # The topic that takes a lost one's place may be lost as well.
    while not (result := ask.generate()).complete:
        assert ask.account(wire).requests < 60
    assert (result.wanted, result.missing) == (6, 0)
    assert len(generated_records(ask.data, ask.experiments)) == 6
    assert max(ask.account(wire).attempts.values()) == 2
    given_up = [row for row in ask.rows() if row["in_doubt_count"] == 2]
    assert generate_again(ask.data) == len(given_up) > 0


def test_a_body_that_is_no_answer_is_kept_to_be_looked_at(ask: Asking) -> None:
    ask.server.behavior = Behavior(script=always("malformed"))
    ask.generate()
    assert all(row["response"] for row in ask.rows())
    assert all("no answer in it" in row["error"] for row in ask.rows())


# --- stops of a provider


PERMANENT: list[tuple[Fault, str]] = [
    ("unauthorized", "401"),
    ("forbidden", "403"),
    ("unknown_model", "404"),
    ("invalid_request", "400"),
    ("insufficient_quota", "HTTP 4"),
    ("spend_limit", "429"),
]


@pytest.mark.parametrize(("fault", "message"), PERMANENT, ids=[fault for fault, _ in PERMANENT])
def test_a_permanent_error_stops_that_provider_at_once_with_its_message_and_leaves_the_other_running(
    both: Asking, wire: Wire, fault: Fault, message: str
) -> None:
    if (wire, fault) == ("openai", "spend_limit"):
        pytest.skip("an error of Anthropic's alone")
    both.configure(generation={"requests": 40}, providers={NAMES[wire]: {"concurrency": 4}})
    both.server.behavior = Behavior(script=always(fault, only=wire), latency=0.01)
    result = both.generate()
    (other,) = [name for name in ("claude", "gpt") if name != NAMES[wire]]
    assert message in stopped(result) and list(result.stopped) == [NAMES[wire]]
    assert both.account(wire).requests <= 8, "only the requests that were under way"
    assert result.providers[other].answered == 40
    assert not result.complete
    assert sum(row["reserved_usd"] for row in both.rows()) == 0
    assert both.leaks(stopped(result)) == []
    both.server.behavior = Behavior()
    assert both.generate().complete, "once it is mended, only what is missing is asked for"


def test_a_missing_key_is_said_and_costs_the_other_nothing(both: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    result = both.generate()
    assert "OPENAI_API_KEY is not set" in stopped(result)
    assert result.providers["claude"].answered == 6


@pytest.mark.parametrize("how", ["hangs", "refuses connections"])
def test_a_dead_provider_stops_and_never_holds_the_other_up(both: Asking, how: str) -> None:
    gone = {"base_url": "http://127.0.0.1:9/v1"} if how == "refuses connections" else {"timeout_seconds": 0.3}
    both.configure(generation={"requests": 30}, providers={"gpt": gone})
    both.server.behavior = Behavior(script=always("hang", only="openai"))
    seen: list[tuple[int, bool]] = []

    def hooks(snapshot: send.Snapshot) -> None:
        seen.append((snapshot.tallies["claude"].answered, snapshot.tallies["gpt"].stopped is not None))

    result = both.generate(progress=hooks)
    assert result.providers["claude"].answered == 30
    assert "failures in a row" in stopped(result)
    # How far the other provider gets meanwhile depends on the machine's load; a blocked one would
    # not have started.
    assert max(answered for answered, dead in seen if not dead) > 0, "the other was answered before it was given up"


# --- no stored answer is requested again


def test_answered_requests_are_not_sent_again_and_more_requests_send_only_the_new(ask: Asking, wire: Wire) -> None:
    ask.generate()
    held = {row["key"]: row["response"] for row in ask.rows()}
    again = ask.generate()
    assert (again.reused, again.answered, ask.account(wire).requests) == (6, 0, 6)
    ask.configure(generation={"requests": 10})
    ask.generate()
    assert ask.account(wire).requests == 10
    assert held.items() <= {row["key"]: row["response"] for row in ask.rows()}.items()


def test_a_changed_topic_file_asks_only_for_what_is_new(ask: Asking, wire: Wire) -> None:
    ask.configure(generation={"requests": 48})
    ask.generate()
    moods = ["tired", "glad", "bored", "curious", "lonely", "hopeful", "angry", "calm", "proud"]
    ask.grid(
        axes={
            "mood": moods,
            "job": ["nurse", "cook", "farmer", "lawyer", "student", "teacher"],
            "language": ["English"],
        }
    )
    ask.configure(generation={"requests": 54})
    result = ask.generate()
    assert (result.reused, result.answered) == (48, 6)
    assert ask.account(wire).requests == 54


def test_a_key_in_the_environment_alone_asks_nobody(both: Asking) -> None:
    both.configure(providers={"claude": {"enabled": False}, "gpt": {"enabled": False}})
    assert both.generate().providers == {}
    assert both.server.ledger.received == []


# --- the budget


def test_the_cap_is_never_crossed_with_64_requests_under_way(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = Behavior(latency=0.05)
    ask.configure(
        generation={"requests": 90, "languages": None},
        providers={NAMES[wire]: {"budget_usd": 0.1, "concurrency": 64}},
    )
    result = ask.generate()
    assert "budget reached" in stopped(result) and f"providers.{NAMES[wire]}.budget_usd is $0.1" in stopped(result)
    assert 0 < ask.account(wire).dollars <= 0.1
    assert ask.charged() == pytest.approx(ask.account(wire).dollars), "all of it is settled by usage"
    assert result.answered > 0.5 * 0.1 / (ask.charged() / result.answered), "settled requests made room for more"
    ask.configure(providers={NAMES[wire]: {"budget_usd": 10}})
    assert ask.generate().complete


def test_in_doubt_and_timed_out_requests_count_against_the_cap(ask: Asking, wire: Wire) -> None:
    faults: dict[Fault, float] = {"cut": 0.2, "hang_after": 0.1, "cut_body": 0.1}
    ask.server.behavior = Behavior(faults=faults, seed=3)
    ask.configure(
        generation={"requests": 80, "languages": None, "budget_usd": 0.12},
        providers={NAMES[wire]: {"concurrency": 32, "timeout_seconds": 0.5}},
    )
    for _ in range(3):
        ask.generate()
    assert 0 < ask.account(wire).dollars <= 0.12
    assert ask.account(wire).dollars <= ask.charged() <= 0.12 + 1e-9


def test_the_budget_in_all_is_shared_and_that_of_a_run_is_its_own(both: Asking) -> None:
    both.configure(generation={"requests": 48, "budget_usd": 0.06})
    result = both.generate()
    assert set(result.stopped) == {"claude", "gpt"}
    spent = both.account("anthropic").dollars + both.account("openai").dollars
    assert 0.03 < spent <= 0.06
    both.configure(generation={"budget_usd": 100})
    assert both.generate(budget_usd=0.02).stopped
    now = both.account("anthropic").dollars + both.account("openai").dollars
    assert now - spent <= 0.02


def test_an_unknown_price_is_refused_under_a_cap_and_null_without(ask: Asking, wire: Wire) -> None:
    ask.configure(providers={NAMES[wire]: {"price": None}}, generation={"budget_usd": 1})
    result = ask.generate()
    assert "the price of" in stopped(result) and "set `price:" in stopped(result)
    assert ask.account(wire).requests == 0
    ask.configure(generation={"budget_usd": None})
    assert ask.generate().complete
    assert {row["cost_usd"] for row in ask.rows()} == {None}


# --- killed, and started again


def restart_until_done(ask: Asking, wire: Wire, *, kills: int, seed: int, most: int = 8) -> int:
    """Kill -9 at random moments, at most this many requests into a life, then run to the end.

    Returns the number of requests that were under way at the kills.
    """
    rng, under_way = random.Random(seed), 0
    for _ in range(kills):
        process = child(ask)
        before = ask.account(wire).requests
        process.start()
        deadline = time.monotonic() + 600
        target = before + rng.randint(1, most)
        while ask.account(wire).requests < target and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        if process.is_alive():
            kill(process)
        process.join()
        # Wait for requests that are still on their way.
        time.sleep(0.1)
        under_way += ask.statuses().get("in_flight", 0)
    for _ in range(20):
        if ask.generate().complete:
            return under_way
    raise AssertionError("it never ended")


def check_after_kills(ask: Asking, wire: Wire, under_way: int, expected: int) -> None:
    account, rows = ask.account(wire), ask.rows()
    answered = [row for row in rows if row["status"] == "answered"]
    records = generated_records(ask.data, ask.experiments)
    assert len(records) == expected and all(record.problem is None for record in records)
    assert max(account.attempts.values()) <= 2, "sent again once at most"
    once = {row["key"] for row in answered if not row["in_doubt_count"]}
    assert {row["attempts"] for row in rows if row["key"] in once} <= {1}, "no journaled answer is requested again"
    assert sum(row["in_doubt_count"] for row in rows) == under_way
    assert account.answers <= len(answered) + under_way
    assert account.dollars <= ask.charged() + 1e-9
    assert all((row["reserved_usd"] > 0) == (row["in_doubt_count"] > 0) for row in rows)


def test_after_kills_every_record_is_made_and_nothing_is_paid_for_twice(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = Behavior(latency=0.05, jitter=0.05)
    ask.configure(generation={"requests": 30}, providers={NAMES[wire]: {"concurrency": 6, "budget_usd": 5}})
    under_way = restart_until_done(ask, wire, kills=4, seed=1)
    check_after_kills(ask, wire, under_way, 30)


@pytest.mark.slow
def test_after_a_hundred_kills_every_record_is_made_within_the_budget(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = Behavior(latency=0.1, jitter=0.1)
    seasons = ["spring", "summer", "autumn", "winter"]
    ask.grid(axes={**GRID["axes"], "season": seasons}, prompt=f"{GRID['prompt']} It is {{season}}.")
    cap = 4.0
    ask.configure(
        generation={"requests": 300, "languages": None}, providers={NAMES[wire]: {"concurrency": 3, "budget_usd": cap}}
    )
    under_way = restart_until_done(ask, wire, kills=100, seed=1, most=3)
    assert under_way > 50
    check_after_kills(ask, wire, under_way, 300)
    assert ask.account(wire).dollars <= ask.charged() <= cap


# --- interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_sends_nothing_more_and_waits_for_what_is_under_way(
    quick_path: Path, server: FakeProvider, number: signal.Signals
) -> None:
    server.behavior = Behavior(latency=1)
    ask = asking(quick_path, server, "openai", generation={"requests": 40}, providers={"gpt": {"concurrency": 4}})
    process = started(ask)
    wait_for(lambda: server.ledger.openai.in_progress == 4)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "interrupted: waiting for what is under way" in err and "Traceback" not in err
    assert ask.statuses() == {"answered": 5}, "the first alone, then four at once"
    assert server.ledger.openai.requests == 5
    assert ask.leaks(out, err) == []


def test_a_second_interrupt_ends_at_once_and_leaves_the_requests_in_doubt(
    quick_path: Path, server: FakeProvider
) -> None:
    first_alone: list[str] = []

    def hang(_: Wire, prompt: str, __: int) -> Fault | None:
        first_alone.append(prompt)
        return "hang" if len(first_alone) > 1 else None

    server.behavior = Behavior(script=hang)
    ask = asking(quick_path, server, "openai", generation={"requests": 5})
    process = started(ask)
    wait_for(lambda: server.ledger.openai.in_progress == 4)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: process.poll() is None and bool(process.stderr and "waiting" in process.stderr.readline()))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in err
    server.behavior = Behavior()
    result = ask.generate()
    assert (result.orphans, result.complete) == (4, True)
    lost = [row for row in ask.rows() if row["in_doubt_count"]]
    assert len(lost) == 4 and {(row["in_doubt_count"], row["attempts"]) for row in lost} == {(1, 2)}


# --- two at once


def test_two_runs_at_once_ask_for_nothing_twice(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = Behavior(latency=0.05)
    other = threading.Thread(target=ask.generate)
    other.start()
    ask.generate()
    other.join()
    assert ask.account(wire).requests == 6
    assert Counter(ask.account(wire).attempts.values()) == {1: 6}


def test_the_prices_of_the_test_are_those_of_the_server() -> None:
    assert (Behavior().price_input, Behavior().price_output) == (PRICE["input"], PRICE["output"])
    assert KEY in KEYS.values()
