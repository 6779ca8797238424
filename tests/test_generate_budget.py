"""Spending never exceeds the caps: sums to the last bit, many senders at once, stops and interrupts
during a wait for money."""

import math
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines.generate.budget import Budget, Caps
from pipelines.generate.journal import Charges
from pipelines.generate.prices import costs_of, worst_cost
from pipelines.generate.requests import request_source
from tests.asking import NAMES, PRICE, Asking, asking, ready, started, wait_for
from tests.fakes.behavior import Behavior, Fault, Wire
from tests.fakes.llm_server import Reply, chat_server, completion
from tests.fakes.provider import FakeProvider, fake_provider

WIRES: list[Wire] = ["anthropic", "openai"]


@pytest.fixture
def server(running: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    return ready(running, monkeypatch, Behavior())


def worst_of_one(ask: Asking, name: str) -> float:
    """The cost in dollars of a provider's dearest request."""
    with request_source(ask.data, ask.experiments) as reading:
        costs = costs_of(ask.experiments.provider(name))
        return max(worst_cost(costs, request) or 0.0 for request in reading.requests(name))


def paid(server: FakeProvider) -> float:
    return server.ledger.anthropic.dollars + server.ledger.openai.dollars


# --- the sums


def test_a_cap_that_is_met_exactly_is_not_crossed() -> None:
    budget = Budget(Caps(total=1.0), {})
    assert [budget.hold("a", 0.1) for _ in range(10)] == [None] * 10, "ten tenths are one, in spite of rounding"
    assert budget.hold("a", 0.1) is not None
    assert budget.hold("a", 0.0) is None


def test_each_cap_is_named_with_what_is_charged_and_what_the_next_request_may_cost() -> None:
    before = {"a": Charges(settled=1.0, reserved=0.5), "b": Charges(settled=2.0)}
    budget = Budget(Caps(total=5.0, per_provider={"a": 2.0, "b": None}, this_run=1.0), before)
    assert budget.hold("a", 0.6) == (
        "budget reached: providers.a.budget_usd is $2, $1.5000 are charged and the next request may cost $0.6000"
    )
    assert budget.hold("b", 1.1) == (
        "budget reached: the budget of this run is $1, $0.0000 are charged and the next request may cost $1.1000"
    )
    assert budget.hold("b", 1.0) is None
    # The reservation of an earlier run, such as a batch's.
    budget.give_back("b", 1.0, of_this_run=False)
    assert "the budget of this run" in (budget.hold("b", 0.1) or ""), (
        "money released by an earlier run is not this run's"
    )
    assert "generation.budget_usd is $5" in (Budget(Caps(total=5.0), before).hold("c", 1.6) or "")


@pytest.mark.parametrize("cap", [math.nan, -1.0, 0.0])
def test_a_cap_that_leaves_nothing_allows_nothing_that_costs(cap: float) -> None:
    assert Budget(Caps(this_run=cap), {}).hold("a", 1e-6) is not None


def test_whatever_is_held_and_given_back_no_cap_is_crossed_and_the_sum_stays_true() -> None:
    rng = random.Random(3)
    caps = Caps(total=3.0, per_provider={"a": 1.0, "b": 2.5}, this_run=2.0)
    budget = Budget(caps, {"a": Charges(0.25, 0.25)})
    held: list[tuple[str, float]] = []
    spent = {"a": 0.5, "b": 0.0}
    for _ in range(20_000):
        if held and rng.random() < 0.5:
            name, worst = held.pop(rng.randrange(len(held)))
            cost = worst * rng.choice([0.0, 0.01, 0.5, 1.0]) / 100
            budget.give_back(name, worst - cost)
            spent[name] += cost
        else:
            name, worst = rng.choice("ab"), rng.uniform(0, 0.3)
            if budget.hold(name, worst) is None:
                held.append((name, worst))
        now = {name: spent[name] + sum(worst for other, worst in held if other == name) for name in spent}
        assert budget.charged_by("a") == pytest.approx(now["a"], abs=1e-9) and now["a"] <= 1.0 + 1e-8
        assert budget.charged == pytest.approx(sum(now.values()), abs=1e-9) and sum(now.values()) <= 3.0 + 1e-8
        assert budget.charged_now <= 2.0 + 1e-8


# --- many at once


@pytest.mark.parametrize("seed", [1, 2])
def test_no_cap_of_any_kind_is_crossed_by_the_servers_own_count_whatever_goes_wrong(
    quick_path: Path, server: FakeProvider, seed: int
) -> None:
    faults: dict[Fault, float] = {
        "cut": 0.1, "cut_body": 0.05, "hang_after": 0.05, "malformed": 0.05, "server_error": 0.1, "overloaded": 0.05,
    }  # fmt: skip
    server.behavior = Behavior(faults=faults, seed=seed, latency=0.01, jitter=0.05, reasoning_tokens=90)
    slots = {"concurrency": 64, "timeout_seconds": 0.4}
    ask = asking(quick_path, server, generation={"requests": 80, "languages": None, "budget_usd": 0.3})
    ask.configure(providers={"claude": {**slots, "budget_usd": 0.2}, "gpt": {**slots, "budget_usd": 0.15}})
    spent = 0.0
    for of_this_run in (0.12, None, None):
        ask.generate(budget_usd=of_this_run)
        assert paid(server) - spent <= (of_this_run or 1)
        spent = paid(server)
    assert 0 < server.ledger.anthropic.dollars <= 0.2 and 0 < server.ledger.openai.dollars <= 0.15
    assert paid(server) <= ask.charged() <= 0.3 + 1e-9
    assert all(row["reserved_usd"] > 0 for row in ask.rows() if row["in_doubt_count"]), (
        "the cost that may have been paid"
    )


def test_who_finds_too_little_waits_for_what_the_other_gives_back(quick_path: Path, server: FakeProvider) -> None:
    server.behavior = Behavior(latency=0.02, jitter=0.02)
    ask = asking(quick_path, server, generation={"requests": 8})
    worst = max(worst_of_one(ask, name) for name in ("claude", "gpt"))
    # The most that all answers of this server can cost.
    answer = 8 * 2 * 0.0025
    ask.configure(generation={"budget_usd": answer + worst}, providers={"claude": {"price": PRICE}})
    result = ask.generate()
    assert result.complete, result.stopped
    assert server.ledger.anthropic.most_at_once + server.ledger.openai.most_at_once >= 2


@pytest.mark.parametrize("wire", WIRES)
def test_a_provider_that_stops_while_money_is_waited_for_sends_nothing_more(
    quick_path: Path, server: FakeProvider, wire: Wire
) -> None:
    server.behavior = Behavior(script=lambda *_: "unauthorized", latency=0.05)
    ask = asking(quick_path, server, wire, generation={"requests": 20})
    ask.configure(providers={NAMES[wire]: {"budget_usd": 1.5 * worst_of_one(ask, NAMES[wire])}})
    result = ask.generate()
    assert "401" in result.stopped[NAMES[wire]]
    assert ask.account(wire).requests == 1, "the second one's money was there once the first had come back"
    assert ask.charged() == 0


def test_an_interrupt_while_money_is_waited_for_sends_nothing_more(quick_path: Path, server: FakeProvider) -> None:
    server.behavior = Behavior(latency=0.8)
    ask = asking(quick_path, server, "openai", generation={"requests": 20}, providers={"gpt": {"concurrency": 16}})
    ask.configure(providers={"gpt": {"budget_usd": 2.5 * worst_of_one(ask, "gpt")}})
    process = started(ask)
    wait_for(lambda: server.ledger.openai.in_progress == 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert ask.statuses() == {"answered": 3}, "the first alone, then two at once"
    assert server.ledger.openai.requests == 3


def test_what_is_left_out_for_want_of_money_is_sent_once_there_is_more(quick_path: Path, server: FakeProvider) -> None:
    ask = asking(quick_path, server, "anthropic", generation={"requests": 12})
    worst = worst_of_one(ask, "claude")
    for cap in (0.0, worst, 2 * worst):
        ask.configure(providers={"claude": {"budget_usd": cap}})
        before = server.ledger.anthropic.requests
        assert "budget reached: providers.claude.budget_usd" in ask.generate().stopped["claude"]
        assert (server.ledger.anthropic.requests > before) == (cap > 0)
        assert server.ledger.anthropic.dollars <= cap
    ask.configure(providers={"claude": {"budget_usd": 1.0}})
    assert ask.generate().complete
    assert set(server.ledger.anthropic.attempts.values()) == {1}


def test_an_answer_that_does_not_say_what_it_took_keeps_its_worst_case_charged(quick_path: Path) -> None:
    body = completion('{"instruction": "What to read?", "input": "", "output": "Stoner, by John Williams, tonight."}')
    silent = body.replace('"usage"', '"used"')
    with chat_server(lambda *_: Reply(silent)) as server, fake_provider() as fake:
        mine: dict[str, Any] = {
            "kind": "openai-compatible", "model": "mine", "base_url": server.url, "enabled": True, "price": PRICE,
            "budget_usd": 1.0,
        }  # fmt: skip
        ask = asking(
            quick_path, fake, providers={"mine": mine, "claude": {"enabled": False}, "gpt": {"enabled": False}}
        )
        result = ask.generate()
    assert result.complete
    rows = ask.rows()
    assert {row["cost_usd"] for row in rows} == {None} and all(row["reserved_usd"] > 0 for row in rows)
    assert result.providers["mine"].reserved_usd == pytest.approx(ask.charged())


def test_two_providers_under_one_cap_share_it_until_it_is_used_up(quick_path: Path, server: FakeProvider) -> None:
    ask = asking(quick_path, server, generation={"requests": 40, "languages": None, "budget_usd": 0.08})
    result = ask.generate()
    assert set(result.stopped) == {"claude", "gpt"}
    assert all("generation.budget_usd is $0.08" in why for why in result.stopped.values())
    assert all(one.answered > 0 for one in result.providers.values())
    room = max(worst_of_one(ask, name) for name in ("claude", "gpt"))
    assert 0.08 - room <= paid(server) <= 0.08, "no more is left than one more request may need"
