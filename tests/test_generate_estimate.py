"""The cost of a run before anything is sent: the worst case, the likely one, and no unknown price
taken as zero."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.generate.answers import Usage
from pipelines.generate.estimate import Estimate, estimate, in_words
from pipelines.generate.judge import judge
from pipelines.generate.prices import OVERHEAD_TOKENS, costs_of
from tests.asking import KEYS, MILLION, Asking, asking, ready
from tests.fakes.behavior import Behavior
from tests.fakes.provider import FakeProvider


@pytest.fixture
def ask(quick_path: Path, running: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> Asking:
    ready(running, monkeypatch, Behavior())
    return asking(quick_path, running)


def estimates(ask: Asking) -> dict[str, Estimate]:
    return {one.provider: one for one in estimate(ask.data, ask.experiments)}


def words(ask: Asking) -> str:
    return "\n".join(in_words(list(estimates(ask).values()), ask.experiments.generation.budget_usd))


def test_the_worst_case_is_every_byte_a_token_and_every_answer_as_long_as_it_may_be(ask: Asking) -> None:
    one = estimates(ask)["claude"]
    assert (one.requests, one.held, one.in_batch, one.problem) == (6, 0, 0, None)
    assert one.worst_output_tokens == 6 * 200
    assert (one.likely_input_tokens, one.likely_usd) == (None, None), "no past answer to go by"
    ask.generate()
    sent = [json.loads(row["request"]) for row in ask.rows() if row["provider"] == "claude"]
    size = sum(len(json.dumps([r["messages"], r["schema"]], ensure_ascii=False).encode()) for r in sent)
    assert one.worst_input_tokens == size + 6 * OVERHEAD_TOKENS
    assert one.worst_usd == pytest.approx((one.worst_input_tokens * 3 + one.worst_output_tokens * 15) / MILLION)
    assert one.worst_usd is not None
    assert ask.account("anthropic").dollars < one.worst_usd
    assert ask.account("anthropic").input_tokens < one.worst_input_tokens


def test_nothing_is_sent_and_a_key_is_not_needed(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    by_provider = estimates(ask)
    assert by_provider["claude"].worst_usd
    assert "ANTHROPIC_API_KEY is not set" in (by_provider["claude"].problem or "")
    assert "cannot be asked: OPENAI_API_KEY is not set" in words(ask)
    assert ask.rows() == []
    for wire in ("anthropic", "openai"):
        assert (ask.account(wire).requests, ask.account(wire).calls) == (0, {})


def test_what_is_held_or_lies_in_a_batch_is_not_estimated_again(ask: Asking) -> None:
    ask.configure(providers={"gpt": {"batch": True}})
    ask.server.behavior = Behavior(batch_seconds=3600)
    ask.generate()
    by_provider = estimates(ask)
    assert (by_provider["claude"].requests, by_provider["claude"].held, by_provider["claude"].worst_usd) == (0, 6, 0.0)
    assert (by_provider["gpt"].requests, by_provider["gpt"].held, by_provider["gpt"].in_batch) == (0, 0, 6)
    assert by_provider["gpt"].charged_usd > 0
    assert "6 in a batch" in words(ask)
    ask.configure(generation={"requests": 8})
    assert [one.requests for one in estimates(ask).values()] == [2, 2]


def test_the_likely_cost_goes_by_past_answers_of_the_same_model_and_kind(ask: Asking) -> None:
    ask.configure(generation={"judge": {"providers": ["gpt"]}})
    ask.generate(only=["claude"])
    ask.server.behavior = Behavior(seed=1)
    ask.generate(only=["gpt"])
    spent = {row["key"]: row["cost_usd"] for row in ask.rows() if row["provider"] == "gpt"}
    # Judging has longer prompts, so it is no measure of what a record takes.
    judge(ask.data, ask.experiments)
    assert len(ask.rows()) > 12
    ask.configure(generation={"requests": 18})
    one = estimates(ask)["gpt"]
    assert one.requests == 12
    assert one.likely_usd == pytest.approx(2 * sum(spent.values()), rel=0.01)
    assert one.worst_usd is not None
    assert one.likely_usd is not None
    assert one.likely_usd < one.worst_usd
    before = ask.account("openai").dollars
    ask.generate()
    assert ask.account("openai").dollars - before == pytest.approx(one.likely_usd, rel=0.25)
    ask.configure(providers={"gpt": {"model": "gpt-other"}})
    assert estimates(ask)["gpt"].likely_usd is None


def test_a_price_that_rises_with_the_length_of_a_request_is_that_of_one_request(ask: Asking) -> None:
    """The table's price of this model rises above some 200,000 tokens of one prompt; many short
    prompts never reach it."""
    ask.configure(providers={"gpt": {"model": "gpt-5.4", "price": None}})
    ask.generate(only=["gpt"])
    numbers = {
        "mood": [f"mood {n}" for n in range(60)],
        "job": [f"job {n}" for n in range(60)],
        "language": ["English"],
    }
    ask.grid(axes=numbers)
    ask.configure(generation={"requests": 3000})
    one, costs = estimates(ask)["gpt"], costs_of(ask.experiments.provider("gpt"))
    taken_in, given_out = one.likely_input_tokens or 0, one.likely_output_tokens or 0
    assert costs is not None
    each = costs(Usage(input=taken_in // 3000, output=given_out // 3000))
    together = costs(Usage(input=taken_in, output=given_out))
    assert each is not None
    assert together is not None
    assert together > 1.2 * 3000 * each, "a test of the test"
    assert one.likely_usd == pytest.approx(3000 * each)


def test_batches_cost_their_share(ask: Asking) -> None:
    plain = estimates(ask)["claude"].worst_usd
    ask.configure(providers={"claude": {"batch": True}})
    assert plain is not None
    assert estimates(ask)["claude"].worst_usd == pytest.approx(plain / 2)
    ask.configure(providers={"claude": {"price": {"input": 3, "output": 15, "batch_share": 0.1}}})
    assert estimates(ask)["claude"].worst_usd == pytest.approx(plain / 10)


def test_an_unknown_price_is_said_to_be_unknown_and_refused_under_a_budget(ask: Asking) -> None:
    ask.configure(providers={"gpt": {"price": None}})
    one = estimates(ask)["gpt"]
    assert (one.worst_usd, one.likely_usd, one.problem) == (None, None, None)
    assert "price unknown" in words(ask)
    ask.generate()
    ask.configure(generation={"requests": 8, "budget_usd": 5})
    one = estimates(ask)["gpt"]
    assert one.likely_input_tokens
    assert one.likely_usd is None
    assert "the price of gpt-test is not known" in (one.problem or "")
    assert "budget for all providers together: $5" in words(ask)
    assert "the price of gpt-test" in ask.generate().stopped["gpt"], "as it was foretold"


def test_what_was_charged_and_may_be_spent_is_shown(ask: Asking) -> None:
    ask.configure(providers={"claude": {"budget_usd": 0.5}})
    ask.generate()
    one = estimates(ask)["claude"]
    assert (one.charged_usd, one.budget_usd) == (pytest.approx(ask.account("anthropic").dollars), 0.5)
    assert f"charged   ${one.charged_usd:.4f} so far, of $0.5" in words(ask)


def test_without_an_enabled_provider_it_says_so(ask: Asking) -> None:
    ask.configure(providers={"claude": {"enabled": False}, "gpt": {"enabled": False}})
    assert estimates(ask) == {}
    assert "no provider is enabled" in words(ask)


def test_lost_requests_that_may_go_once_more_are_estimated_and_those_given_up_are_not(ask: Asking) -> None:
    first = replace(Behavior(), script=lambda wire, prompt, nth: "cut" if wire == "openai" and nth == 1 else None)
    ask.server.behavior = first
    ask.configure(generation={"requests": 1})
    ask.generate()
    assert estimates(ask)["gpt"].requests == 0
    assert estimates(ask)["gpt"].charged_usd > ask.account("openai").dollars / 2
