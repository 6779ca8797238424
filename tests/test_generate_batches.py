"""Batch mode over HTTP, with both SDKs.

Two resumable steps at half price; nothing is doubled or lost, whatever is killed.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pipelines.generate import batches, show
from pipelines.generate.estimate import estimate
from pipelines.generate.generate import generated_records
from pipelines.generate.journal import Request
from pipelines.generate.requests import request_source
from tests.asking import KEY, KEYS, MILLION, NAMES, Asking, asking, child, kill, ready
from tests.fakes.batches import Batch
from tests.fakes.behavior import Behavior, Fault, Wire
from tests.fakes.provider import FakeProvider

WIRES: list[Wire] = ["anthropic", "openai"]
CREATE: dict[Wire, str] = {"anthropic": "POST /v1/messages/batches", "openai": "POST /v1/batches"}
LOOK: dict[Wire, str] = {"anthropic": "GET /v1/messages/batches/{id}", "openai": "GET /v1/batches/{id}"}
LIST: dict[Wire, str] = {"anthropic": "GET /v1/messages/batches", "openai": "GET /v1/batches"}
RESULTS: dict[Wire, str] = {
    "anthropic": "GET /v1/messages/batches/{id}/results",
    "openai": "GET /v1/files/{id}/content",
}
QUICK = Behavior(batch_seconds=0.0)
OPEN = Behavior(batch_seconds=3600.0)
Script = Callable[[Wire, str, int], Fault | None]


@pytest.fixture
def server(running: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    """A server without any requests, whose batches end at once, and keys for it."""
    return ready(running, monkeypatch, QUICK)


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


@pytest.fixture
def ask(quick_path: Path, server: FakeProvider, wire: Wire) -> Asking:
    """Six requests of one provider, in batches."""
    return asking(quick_path, server, wire, providers={NAMES[wire]: {"batch": True}})


def at(call: str, *faults: Fault | None) -> Script:
    """These faults at the first requests with `call` (a call of the API, or a prompt), one after
    the other, then none."""
    return lambda wire, name, nth: faults[nth - 1] if name == call and nth <= len(faults) else None


def made(server: FakeProvider, wire: Wire) -> list[Batch]:
    """The server's batches."""
    return list((server._batches.anthropic if wire == "anthropic" else server._batches.openai).values())


def end(server: FakeProvider, wire: Wire) -> None:
    """End every batch now, while the server is idle."""
    for batch in made(server, wire):
        if not batch.ended:
            server._batches._end(wire, batch)


def requests(ask: Asking) -> list[Request]:
    """The current requests of the one enabled provider."""
    experiments = ask.experiments
    (name,) = [name for name, provider in experiments.providers.items() if provider.enabled]
    with request_source(ask.data, experiments) as reading:
        return reading.requests(name)


def stopped(result: Any) -> str:
    (why,) = result.stopped.values()
    return why


# --- two steps


def test_submit_and_collect_are_steps_of_their_own_at_half_price(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = OPEN
    submitted = ask.generate("submit")
    (provider,) = submitted.providers.values()
    assert (provider.wanted, provider.in_batch, provider.answered, submitted.complete) == (6, 6, 0, True)
    (batch,) = ask.batches()
    assert (batch["status"], batch["requests"]) == ("submitted", 6)
    assert batch["provider_batch_id"] == made(ask.server, wire)[0].id
    worst = ask.charged()
    assert worst > 0
    assert {row["cost_usd"] for row in ask.rows()} == {None}
    assert ask.generate("collect").providers[NAMES[wire]].in_batch == 6, "it has not ended, and nobody waits for it"
    end(ask.server, wire)
    (provider,) = ask.generate("collect").providers.values()
    assert (provider.answered, provider.in_batch, provider.reserved_usd) == (6, 0, 0)
    assert ask.statuses() == {"answered": 6}
    assert ask.batches()[0]["status"] == "collected"
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)
    assert 0 < ask.charged() < worst
    assert ask.account(wire).batch_answers == 6
    assert ask.account(wire).requests == 0, "nothing went the dearer way"
    assert [record.problem for record in generated_records(ask.data, ask.experiments)] == [None] * 6


def test_every_answer_goes_to_its_own_request_though_results_are_unordered(ask: Asking, wire: Wire) -> None:
    ask.configure(generation={"requests": 40})
    ask.generate("submit")
    ask.finish()
    (batch,) = made(ask.server, wire)
    assert [one.custom_id for one in batch.outcomes] != [one.custom_id for one in batch.items], "a test of the test"
    raw = {one.custom_id.rpartition("-")[2]: one.body for one in batch.outcomes}
    rows = ask.rows()
    assert len(rows) == 40
    assert all(json.loads(row["response"]) == raw[row["key"]] for row in rows)


def test_one_call_collects_what_has_ended_and_submits_what_is_missing(ask: Asking, wire: Wire) -> None:
    ask.generate()
    ask.configure(generation={"requests": 9})
    while not made(ask.server, wire)[0].ended:
        time.sleep(0.002)
    (provider,) = ask.generate().providers.values()
    assert (provider.wanted, provider.answered, provider.in_batch) == (9, 6, 3)
    assert [len(batch.items) for batch in made(ask.server, wire)] == [6, 3]
    ask.finish()
    assert ask.statuses() == {"answered": 9}
    assert set(ask.account(wire).attempts.values()) == {1}


def test_the_batch_is_written_down_before_the_call_and_its_id_before_it_is_looked_at(ask: Asking, wire: Wire) -> None:
    seen: dict[str, Any] = {}

    def look(_: Wire, name: str, nth: int) -> None:
        if name in (CREATE[wire], LOOK[wire]) and nth == 1:
            seen[name] = (ask.batches()[0], [row["status"] for row in ask.rows()], ask.charged())

    ask.server.behavior = replace(QUICK, script=look)
    ask.generate("submit")
    batch, statuses, charged = seen[CREATE[wire]]
    assert (batch["status"], batch["provider_batch_id"], statuses) == ("creating", None, ["in_flight"] * 6)
    assert charged > 0, "its worst case is held from then on"
    ask.generate("collect")
    assert seen[LOOK[wire]][0]["provider_batch_id"] == made(ask.server, wire)[0].id


def test_the_users_share_of_the_price_is_reserved_and_charged(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = OPEN
    ask.generate("submit")
    at_half = ask.charged()
    end(ask.server, wire)
    ask.finish()
    half = ask.charged()
    other = asking(ask.data.root / "other", ask.server, wire, providers={NAMES[wire]: {"batch": True}})
    other.configure(providers={NAMES[wire]: {"price": {"input": 3, "output": 15, "batch_share": 0.25}}})
    other.generate("submit")
    assert other.charged() == pytest.approx(at_half / 2)
    end(ask.server, wire)
    other.finish()
    tokens = [(row["input_tokens"], row["output_tokens"]) for row in other.rows()]
    assert other.charged() == pytest.approx(sum(i * 3 + o * 15 for i, o in tokens) / MILLION / 4)
    assert half == pytest.approx(sum(r["input_tokens"] * 3 + r["output_tokens"] * 15 for r in ask.rows()) / MILLION / 2)


def test_nothing_is_submitted_twice_while_a_batch_is_open(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = OPEN
    for _ in range(3):
        ask.generate()
        ask.generate("submit")
    assert len(made(ask.server, wire)) == 1
    assert set(ask.account(wire).attempts.values()) == {1}


def test_a_changed_topic_file_asks_for_what_is_new_and_keeps_what_lies_in_a_batch(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = OPEN
    ask.generate("submit")
    ask.grid(prompt="Two books for a {mood} {job}, in {language}.")
    ask.generate("submit")
    end(ask.server, wire)
    result = ask.finish()
    assert ask.statuses() == {"answered": 12}
    assert result.providers[NAMES[wire]].wanted == 6
    assert len(generated_records(ask.data, ask.experiments)) == 6
    ask.grid()
    assert ask.generate("submit").reused == 6, "the first file's answers are there again"
    assert set(ask.account(wire).attempts.values()) == {1}


def test_a_provider_that_no_longer_uses_batches_still_gets_its_open_one_collected(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = OPEN
    ask.generate("submit")
    ask.configure(providers={NAMES[wire]: {"batch": False}}, generation={"requests": 8})
    result = ask.generate()
    assert (result.answered, result.providers[NAMES[wire]].in_batch) == (2, 6)
    end(ask.server, wire)
    assert ask.generate().answered == 6
    assert ask.statuses() == {"answered": 8}
    assert set(ask.account(wire).attempts.values()) == {1}


def test_one_provider_in_batches_and_one_asked_directly_go_side_by_side(quick_path: Path, server: FakeProvider) -> None:
    ask = asking(quick_path, server, providers={"claude": {"batch": True}})
    result = ask.generate()
    assert (result.providers["claude"].in_batch, result.providers["gpt"].answered, result.complete) == (6, 6, True)
    assert list(ask.generate("collect").providers) == ["claude"]


def test_many_requests_go_in_batches_of_a_size(ask: Asking, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ITEMS", 4)
    ask.configure(generation={"requests": 10})
    ask.generate("submit")
    assert [len(batch.items) for batch in made(ask.server, wire)] == [4, 4, 2]
    assert ask.finish().answered >= 0
    assert ask.statuses() == {"answered": 10}


# --- the fate of items


def test_refusals_truncations_and_broken_schemas_are_answers(ask: Asking, wire: Wire) -> None:
    prompts = [request.messages[-1]["content"] for request in requests(ask)]
    faults: dict[str, Fault] = dict(
        zip(prompts, ("refusal", "truncated", "breaks_schema", "content_filter"), strict=False)
    )
    ask.server.behavior = replace(QUICK, script=lambda _, name, __: faults.get(name))
    ask.generate("submit")
    result = ask.finish()
    assert ask.statuses() == {"answered": 6}
    assert sum(row["stop_reason"] in ("refusal", "content_filter") for row in ask.rows()) == 2
    assert sum(row["stop_reason"] in ("max_tokens", "length") for row in ask.rows()) == 1
    assert result.complete
    assert sum(record.problem is None for record in generated_records(ask.data, ask.experiments)) == 2
    ask.generate("submit")
    assert set(ask.account(wire).attempts.values()) == {1}, "none is asked again"
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)


def test_items_that_fail_go_into_the_next_batch(ask: Asking, wire: Wire) -> None:
    prompts = [request.messages[-1]["content"] for request in requests(ask)]
    ask.server.behavior = replace(
        QUICK, script=lambda _, name, nth: "server_error" if name in prompts[:2] and nth == 1 else None
    )
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 4, "failed": 2}
    assert {row["reserved_usd"] for row in ask.rows()} == {0.0}, "failed items cost nothing"
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 6}
    assert [len(batch.items) for batch in made(ask.server, wire)] == [6, 2]
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)


def test_an_item_that_always_fails_is_tried_a_few_times_and_then_named_as_failed(ask: Asking, wire: Wire) -> None:
    hopeless = requests(ask)[0].messages[-1]["content"]
    ask.server.behavior = replace(QUICK, script=lambda _, name, __: "server_error" if name == hopeless else None)
    for _ in range(batches.TRIES + 2):
        ask.generate("submit")
        ask.finish()
    assert ask.account(wire).attempts[hopeless] == batches.TRIES
    result = ask.generate()
    assert (result.providers[NAMES[wire]].failed, result.missing, result.complete) == (1, 1, False)
    assert ask.statuses() == {"answered": 5, "failed": 1}


def test_a_fault_of_the_key_inside_a_batch_stops_the_provider(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = replace(QUICK, script=lambda _, name, __: "forbidden" if name.startswith("A book") else None)
    ask.generate("submit")
    result = ask.finish()
    assert "in a batch: " in stopped(result)
    assert "permission" in stopped(result) or "not allowed" in stopped(result)
    assert ask.charged() == 0


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_expired_items_cost_nothing_and_are_asked_again(ask: Asking, wire: Wire, share: float) -> None:
    ask.configure(generation={"requests": 20})
    ask.server.behavior = replace(QUICK, batch_expire_share=share)
    ask.generate("submit")
    assert ask.finish().stopped == {}
    expired = ask.statuses().get("failed", 0)
    assert expired == 20 if share == 1 else 0 < expired < 20
    assert all("expired" in row["error"] for row in ask.rows() if row["status"] == "failed")
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)
    ask.server.behavior = QUICK
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 20}
    assert len(made(ask.server, wire)[1].items) == expired


def test_expiring_again_and_again_never_makes_a_request_a_failed_one(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = replace(QUICK, batch_outcome="expired")
    for _ in range(batches.TRIES + 1):
        ask.generate("submit")
        ask.finish()
    ask.server.behavior = QUICK
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 6}


def test_a_batch_that_failed_as_a_whole_is_told_and_asked_again(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = replace(QUICK, batch_outcome="failed")
    ask.generate("submit")
    result = ask.finish()
    # Anthropic's batches fail item by item.
    if wire == "openai":
        assert "Enqueued token limit reached" in stopped(result)
    assert ask.statuses() == {"failed": 6}
    assert ask.charged() == ask.account(wire).dollars == 0
    ask.server.behavior = QUICK
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 6}


def test_what_somebody_cancelled_half_way_is_kept_and_the_rest_asked_again(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = replace(OPEN, batch_cancel_seconds=0.0)
    ask.generate("submit")
    (batch,) = made(ask.server, wire)
    # Half of the batch is done.
    batch.created -= 1800
    base = ask.server.openai_url if wire == "openai" else f"{ask.server.anthropic_url}/v1/messages"
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    assert (
        httpx2.post(f"{base}/batches/{batch.id}/cancel", headers=headers, trust_env=False, timeout=600).status_code
        == 200
    )
    ask.finish()
    assert ask.statuses() == {"answered": 3, "failed": 3}
    ask.server.behavior = QUICK
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 6}
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)


# --- kill -9


def killed_at(ask: Asking, step: Any, call: str, *, before: bool = False) -> None:
    """Kill a process that runs `step` when the server receives `call`: before the server acts, or
    afterwards."""
    process, heard = child(ask, step), threading.Event()

    def script(_: Wire, name: str, __: int) -> Fault | None:
        if name != call:
            return None
        if before:
            kill(process)
            return "cut_before"
        heard.set()
        # The work is done, but the client never hears of it.
        return "hang_after"

    ask.server.behavior = replace(ask.server.behavior, script=script)
    process.start()
    if not before:
        assert heard.wait(600)
        while not (called := [*ask.server._batches.anthropic, *ask.server._batches.openai]):
            time.sleep(0.002)
        assert len(called) == 1
        kill(process)
    process.join(600)
    assert process.exitcode == -9
    ask.server.behavior = replace(ask.server.behavior, script=None)


def test_killed_after_it_was_made_the_batch_is_found_again_and_not_doubled(ask: Asking, wire: Wire) -> None:
    killed_at(ask, "submit", CREATE[wire])
    assert [(row["status"], row["provider_batch_id"]) for row in ask.batches()] == [("creating", None)]
    assert ask.statuses() == {"in_flight": 6}
    result = ask.generate()
    assert (result.answered, result.orphans, result.complete) == (6, 0, True)
    assert len(made(ask.server, wire)) == 1
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)


def test_killed_before_it_was_made_the_batch_is_believed_lost_only_after_a_while(
    ask: Asking, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(ask, "submit", CREATE[wire], before=True)
    worst = ask.charged()
    for _ in range(2):
        assert ask.generate().providers[NAMES[wire]].in_batch == 6
    assert made(ask.server, wire) == []
    monkeypatch.setattr(batches, "BELIEVED_LOST_SECONDS", -1.0)
    ask.generate()
    assert ask.rows("SELECT DISTINCT status, in_doubt_count, attempts FROM requests") == [
        {"status": "in_flight", "in_doubt_count": 1, "attempts": 2}
    ]
    assert ask.charged() == pytest.approx(2 * worst), "a request that may have been paid stays charged"
    ask.finish()
    assert ask.statuses() == {"answered": 6}
    assert ask.charged() == pytest.approx(worst + ask.account(wire).dollars)
    assert [row["status"] for row in ask.batches()] == ["lost", "collected"]


def test_killed_while_collecting_nothing_is_lost_or_counted_twice(ask: Asking, wire: Wire) -> None:
    ask.generate("submit")
    while not made(ask.server, wire)[0].ended:
        time.sleep(0.002)
    killed_at(ask, "collect", RESULTS[wire])
    assert ask.statuses() == {"in_flight": 6}
    assert ask.generate("collect").answered == 6
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)
    assert set(ask.account(wire).attempts.values()) == {1}


def test_killed_while_the_file_was_handed_in_nothing_is_held(quick_path: Path, server: FakeProvider) -> None:
    ask = asking(quick_path, server, "openai", providers={"gpt": {"batch": True}})
    killed_at(ask, "submit", "POST /v1/files", before=True)
    assert ask.rows() == ask.batches() == []
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 6}


def test_two_processes_at_once_submit_one_batch(ask: Asking, wire: Wire) -> None:
    both = [child(ask, "submit"), child(ask, "submit")]
    for process in both:
        process.start()
    for process in both:
        process.join(600)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(made(ask.server, wire)) == 1


def test_killed_again_and_again_at_any_moment_every_record_is_made_and_paid_for_once(
    ask: Asking, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    ask.server.behavior = Behavior(batch_seconds=0.05, batch_error_share=0.1)
    for count in range(6, 36, 5):
        ask.configure(generation={"requests": count})
        process = child(ask)
        process.start()
        process.join(rng.uniform(0.05, 0.4))
        process.kill()
        process.join()
    monkeypatch.setattr(batches, "BELIEVED_LOST_SECONDS", -1.0)
    ask.server.behavior = replace(ask.server.behavior, batch_error_share=0.0)
    while not (done := ask.generate()).complete or done.providers[NAMES[wire]].in_batch:
        assert done.stopped == {}
    rows = ask.rows()
    assert ask.statuses() == {"answered": len(rows)}
    assert len(rows) >= 31
    assert len(generated_records(ask.data, ask.experiments)) == 31
    failures = sum(row["batch_failures"] for row in rows)
    lost = sum(row["in_doubt_count"] for row in rows)
    assert 31 <= sum(ask.account(wire).attempts.values()) <= len(rows) + lost + failures
    assert max(row["in_doubt_count"] for row in rows) <= 1
    assert ask.account(wire).dollars <= ask.charged() + 1e-9


# --- cut connections and garbled bodies


@pytest.mark.parametrize("fault", ["cut", "cut_body", "malformed", "hang_after"])
def test_a_batch_whose_making_was_not_confirmed_is_found_again(ask: Asking, wire: Wire, fault: Fault) -> None:
    ask.configure(providers={NAMES[wire]: {"timeout_seconds": 0.5 if fault == "hang_after" else 600}})
    ask.server.behavior = replace(QUICK, script=at(CREATE[wire], fault))
    assert "run it again later" in stopped(ask.generate("submit"))
    assert ask.statuses() == {"in_flight": 6}
    assert ask.generate().answered == 6
    assert len(made(ask.server, wire)) == 1
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)


def test_a_batch_is_found_again_behind_many_newer_ones(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = replace(QUICK, script=at(CREATE[wire], "cut"))
    ask.generate("submit")
    (ours,) = made(ask.server, wire)
    end(ask.server, wire)
    known = ask.server._batches.anthropic if wire == "anthropic" else ask.server._batches.openai
    for n in range(250):
        known[f"other-{n}"] = Batch(f"other-{n}", ours.created + 1, 0.0, [], ended=ours.created + 2)
    listed = ask.account(wire).calls[LIST[wire]]
    assert ask.generate("collect").answered == 6
    assert ask.account(wire).calls[LIST[wire]] == listed + 3, "a hundred a page"


def test_too_many_calls_at_once_put_a_batch_off_and_cost_nothing(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = replace(QUICK, script=at(CREATE[wire], "rate_limited"))
    assert "run it again later" in stopped(ask.generate("submit"))
    assert (ask.charged(), ask.statuses()) == (0, {"failed": 6})
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 6}


def test_a_batch_that_is_never_made_is_sent_again_once_at_most(
    ask: Asking, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BELIEVED_LOST_SECONDS", -1.0)
    ask.server.behavior = replace(QUICK, script=lambda _, name, __: "cut_before" if name == CREATE[wire] else None)
    first = {request.key for request in requests(ask)}
    for _ in range(4):
        ask.generate()
    rows = [row for row in ask.rows() if row["key"] in first]
    assert {(row["attempts"], row["in_doubt_count"], row["status"]) for row in rows} == {(2, 2, "in_doubt")}
    assert all(row["reserved_usd"] > row["attempt_reserved_usd"] for row in rows), "both attempts stay charged"
    assert made(ask.server, wire) == []


@pytest.mark.parametrize("fault", ["cut_before", "malformed", "server_error"])
@pytest.mark.parametrize("call", [LOOK, RESULTS], ids=["look", "results"])
def test_a_collection_that_goes_wrong_is_done_again(
    ask: Asking, wire: Wire, fault: Fault, call: dict[Wire, str]
) -> None:
    ask.generate("submit")
    while not made(ask.server, wire)[0].ended:
        time.sleep(0.002)
    ask.server.behavior = replace(QUICK, script=at(call[wire], fault))
    assert "run it again later" in stopped(ask.generate("collect"))
    assert ask.statuses() == {"in_flight": 6}
    assert ask.generate("collect").answered == 6
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)


def test_nobody_there_costs_nothing_and_holds_nothing(quick_path: Path, server: FakeProvider, wire: Wire) -> None:
    nowhere = "http://127.0.0.1:9" if wire == "anthropic" else "http://127.0.0.1:9/v1"
    ask = asking(quick_path, server, wire, providers={NAMES[wire]: {"batch": True, "base_url": nowhere}})
    assert "run it again later" in stopped(ask.generate())
    assert ask.charged() == 0
    assert set(ask.statuses()) <= {"failed"}
    ask.configure(
        providers={
            NAMES[wire]: {"base_url": asking(quick_path / "x", server).experiments.provider(NAMES[wire]).base_url}
        }
    )
    ask.generate("submit")
    ask.finish()
    assert ask.statuses() == {"answered": 6}


# --- batches that are gone, or another's


def test_a_batch_that_the_provider_does_not_know_is_waited_for_and_then_in_doubt(
    ask: Asking, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask.generate("submit")
    ask.server.reset()
    ask.configure(generation={"requests": 8})
    assert "another key" in stopped(ask.generate())
    assert ask.statuses() == {"in_flight": 6}
    monkeypatch.setattr(batches, "GONE_SECONDS", -1.0)
    ask.generate()
    ask.finish()
    assert ask.statuses() == {"answered": 8}
    assert sum(row["in_doubt_count"] for row in ask.rows()) == 6
    assert sum(row["reserved_usd"] > 0 for row in ask.rows()) == 6


def test_results_that_are_gone_put_their_requests_in_doubt(ask: Asking, wire: Wire) -> None:
    ask.generate("submit")
    while not made(ask.server, wire)[0].ended:
        time.sleep(0.002)
    ask.server.behavior = replace(QUICK, script=at(RESULTS[wire], "not_found"))
    result = ask.generate()
    assert (result.stopped, result.providers[NAMES[wire]].in_batch) == ({}, 6)
    ask.finish()
    assert ask.statuses() == {"answered": 6}
    assert {row["in_doubt_count"] for row in ask.rows()} == {1}
    assert ask.charged() > ask.account(wire).dollars, "the first batch may have been paid"


def test_one_lost_batch_does_not_keep_the_others_from_being_collected(
    ask: Asking, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask.server.behavior = OPEN
    ask.generate("submit")
    ask.configure(generation={"requests": 10})
    ask.generate("submit")
    first, _ = made(ask.server, wire)
    known = ask.server._batches.anthropic if wire == "anthropic" else ask.server._batches.openai
    end(ask.server, wire)
    del known[first.id]
    assert "another key" in stopped(ask.generate("collect"))
    assert ask.statuses() == {"in_flight": 6, "answered": 4}


def test_anothers_batch_of_the_same_size_is_not_taken_for_ours(
    ask: Asking, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask.server.behavior = replace(OPEN, script=at(CREATE[wire], "cut_before"))
    ask.generate("submit")
    other = asking(ask.data.root / "other", ask.server, wire, providers={NAMES[wire]: {"batch": True}})
    other.generate("submit")
    monkeypatch.setattr(batches, "BELIEVED_LOST_SECONDS", -1.0)
    # Only its results tell whose batch it is.
    if wire == "anthropic":
        assert ask.generate("collect").providers[NAMES[wire]].in_batch == 6
        assert ask.statuses() == {"in_flight": 6}
        end(ask.server, wire)
    else:
        # A batch made by hand: ours carry our mark.
        made(ask.server, wire)[0].metadata = None
    ask.generate("collect")
    assert ask.statuses() == {"in_doubt": 6}
    end(ask.server, wire)
    assert other.finish().answered == 6


# --- money


def test_no_cap_is_crossed_by_the_servers_own_count(ask: Asking, wire: Wire) -> None:
    cap = 0.02
    ask.configure(generation={"requests": 40, "budget_usd": cap})
    for _ in range(30):
        result = ask.generate()
        assert ask.charged() <= cap + 1e-9
        if "budget reached" in str(result.stopped) and not result.providers[NAMES[wire]].in_batch:
            break
    assert ask.account(wire).dollars <= cap
    assert 0.5 * cap < ask.account(wire).dollars, "what batches gave back was spent on further ones"
    assert ask.charged() == pytest.approx(ask.account(wire).dollars)
    assert ask.statuses().get("failed", 0) == 0


def test_what_a_batch_gives_back_is_there_for_the_same_call(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = OPEN
    ask.generate("submit")
    ask.configure(generation={"requests": 9, "budget_usd": ask.charged() * 1.05})
    assert "budget reached" in stopped(ask.generate())
    end(ask.server, wire)
    result = ask.generate()
    assert (result.stopped, result.answered, result.providers[NAMES[wire]].in_batch) == ({}, 6, 3)


def test_what_a_batch_gives_back_does_not_widen_a_runs_own_cap(ask: Asking, wire: Wire) -> None:
    ask.server.behavior = OPEN
    ask.generate("submit")
    one = ask.charged() / 6
    ask.configure(generation={"requests": 20})
    end(ask.server, wire)
    before = ask.charged()
    result = ask.generate(budget_usd=2.5 * one)
    assert "budget of this run" in stopped(result)
    assert result.providers[NAMES[wire]].in_batch == 2
    assert before > ask.charged()


def test_a_batch_that_is_turned_away_leaves_the_budget_to_the_others(quick_path: Path, server: FakeProvider) -> None:
    ask = asking(quick_path, server, providers={"claude": {"batch": True}})
    server.behavior = replace(
        QUICK, script=lambda _, name, __: "credit_too_low" if name == CREATE["anthropic"] else None
    )
    (one, _) = estimate(ask.data, ask.experiments)
    assert one.worst_usd is not None
    # A request that is asked directly may cost a third of it.
    ask.configure(generation={"budget_usd": 1.2 * one.worst_usd})
    result = ask.generate()
    assert "credit balance is too low" in result.stopped["claude"]
    assert result.providers["gpt"].answered == 6
    assert result.providers["claude"].usd == 0


def test_an_unknown_price_is_refused_under_a_cap_and_never_called_free_without_one(ask: Asking, wire: Wire) -> None:
    ask.configure(providers={NAMES[wire]: {"price": None}}, generation={"budget_usd": 5})
    assert "the price of" in stopped(ask.generate())
    assert made(ask.server, wire) == []
    ask.configure(generation={"budget_usd": None})
    ask.generate("submit")
    ask.finish()
    assert {row["cost_usd"] for row in ask.rows()} == {None}
    assert ask.statuses() == {"answered": 6}


# --- keys and permanent errors


def test_without_its_key_a_provider_is_not_asked_and_says_so(
    ask: Asking, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask.server.behavior = OPEN
    ask.generate("submit")
    (name,) = [name for name in KEYS if name.startswith(wire.upper())]
    monkeypatch.delenv(name)
    calls_before = ask.account(wire).calls.copy()
    for step in (None, "submit", "collect"):
        assert f"{name} is not set" in stopped(ask.generate(step)), "also where all that is wanted lies in a batch"
    assert ask.account(wire).calls == calls_before


@pytest.mark.parametrize("fault", ["unauthorized", "insufficient_quota"])
def test_a_permanent_error_stops_this_provider_alone_however_often_it_comes(
    quick_path: Path, server: FakeProvider, wire: Wire, fault: Fault
) -> None:
    ask = asking(quick_path, server, providers={name: {"batch": True} for name in NAMES.values()})
    server.behavior = replace(QUICK, script=lambda _, name, __: fault if name == CREATE[wire] else None)
    for _ in range(batches.TRIES + 1):
        result = ask.generate()
        assert list(result.stopped) == [NAMES[wire]]
        assert result.providers[NAMES[wire]].usd == 0
    server.behavior = QUICK
    ask.generate()
    ask.finish()
    assert ask.statuses() == {"answered": 12}, "a refused batch does not count against its requests"


def test_the_key_stands_nowhere(
    ask: Asking, wire: Wire, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    ask.server.behavior = replace(QUICK, api_keys=("another",))
    texts = [str(ask.generate()), *show.summary(ask.generate())]
    assert any("API key" in text or "x-api-key" in text for text in texts), "the rest of the message is there"
    ask.server.behavior = replace(QUICK, script=at(CREATE[wire], "malformed"))
    texts += [str(ask.generate()), str(ask.generate())]
    assert ask.statuses() == {"answered": 6}
    printed = capfd.readouterr()
    assert ask.leaks(*texts, caplog.text, printed.out, printed.err) == []
