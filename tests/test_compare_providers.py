"""Providers side by side: the same cells, the cleaning of each answer, Wilson's intervals, and no
invented number."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.clean.clean import clean
from pipelines.clean.read import raw_records
from pipelines.compare import plots
from pipelines.compare.columns.providers import OUTCOMES
from pipelines.compare.providers import provider_rows
from pipelines.compare.tables import all_tables
from pipelines.generate import coverage
from pipelines.generate.requests import request_source
from tests.asking import MILLION, PRICE, Asking, asking, ready
from tests.fakes.behavior import Behavior, Fault, Wire
from tests.fakes.llm_server import Reply, chat_server, completion
from tests.fakes.provider import FakeProvider

PLAIN = Behavior()
# R: binom::binom.wilson(hits, 10)
OF_TEN = {
    10: (0.7224672, 1.0), 7: (0.3967781, 0.8922087), 5: (0.2365931, 0.7634069), 2: (0.0566822, 0.5098375),
    1: (0.0178762, 0.4041500),
}  # fmt: skip


@pytest.fixture
def server(running: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> FakeProvider:
    return ready(running, monkeypatch, PLAIN)


@pytest.fixture
def ask(quick_path: Path, server: FakeProvider) -> Asking:
    return asking(quick_path, server, generation={"requests": 10})


def rows(ask: Asking) -> dict[str, dict[str, Any]]:
    return {row["provider"]: row for row in provider_rows(ask.data, ask.experiments)}


def write(ask: Asking, **of_gpt: Any) -> None:
    """Ask both providers, so that no two of their records are alike."""
    ask.server.behavior = PLAIN
    ask.generate(only=["claude"])
    ask.server.behavior = replace(PLAIN, seed=1, **of_gpt)
    ask.generate(only=["gpt"])


def cleaned(ask: Asking) -> None:
    """Clean the generated records beside the corpus, which alone is evaluated on."""
    ask.configure(sources={"corpus": True}, cleaning={"languages": None})
    clean(ask.data, raw_records(ask.data, ask.experiments), ask.experiments.cleaning)


# --- the fate of each answer

TEXT = (
    "Read The Summer Book by Tove Jansson this weekend: a girl and her grandmother spend a season on a small island, talk about "
    "everything that matters, quarrel over moss and driftwood, and forgive one another before the evening boat comes in again."
)
OTHERS = (
    "A Month in the Country by J. L. Carr follows a soldier who uncovers a mural in a village church and slowly mends.",
    "Try Stoner by John Williams, the plain life of a teacher of literature, told without a single raised voice.",
    "In The Housekeeper and the Professor, Yoko Ogawa lets numbers hold a family together for eighty minutes at a time.",
    "Convenience Store Woman by Sayaka Murata is short, funny and exact about work that asks nothing of you but itself.",
)


def planted(nth: int, prompt: str) -> str:
    """Two equal records, one near duplicate, four unique ones, and three answers that are no
    record."""
    if nth < 7:
        output = (TEXT, TEXT, TEXT.replace("evening boat", "morning boat"), *OTHERS)[nth]
        record = {"instruction": "Which book for a quiet weekend?", "input": "", "output": output}
        return completion(json.dumps(record))
    if nth == 7:
        return completion(json.dumps({"answer": "no such field"}))
    return completion(
        None if nth == 8 else '{"instruction": "Which bo', finish_reason="content_filter" if nth == 8 else "length"
    )


def test_every_answer_lands_in_the_right_count_by_what_real_cleaning_made_of_it(ask: Asking) -> None:
    seen: list[str] = []

    def answer(prompt: str, nth: int) -> Reply:
        seen.append(prompt)
        return Reply(planted(len(seen) - 1, prompt))

    with chat_server(answer) as other:
        mine = {"kind": "openai-compatible", "model": "mine-1", "base_url": other.url, "price": PRICE, "concurrency": 1}
        ask.configure(providers={"mine": {**mine, "enabled": True}, "gpt": {"enabled": False}})
        ask.configure(sources={"providers": ["claude", "mine"]})
        ask.generate()
    cleaned(ask)
    by_provider = rows(ask)
    assert list(by_provider) == ["claude", "mine"]
    row = by_provider["mine"]
    assert {name: row[name] for name in ("cells", "requested", *OUTCOMES)} == {
        "cells": 10, "requested": 10, "answered": 10, "valid": 7, "refused": 1, "truncated": 1, "duplicate": 2, "accepted": 5,
    }  # fmt: skip
    for name in OUTCOMES:
        assert row[f"{name}_share"] == row[name] / 10
        assert (row[f"{name}_share_low"], row[f"{name}_share_high"]) == pytest.approx(OF_TEN[row[name]], abs=1e-6)
    cost = 10 * (11 * 3 + 7 * 15) / MILLION
    assert row["cost_usd"] == pytest.approx(cost)
    assert row["usd_per_accepted"] == pytest.approx(cost / 5)
    assert (row["input_tokens"], row["output_tokens"], row["reserved_usd"], row["note"]) == (110, 70, 0.0, None)
    assert (row["model"], row["kind"], row["trained_on"], row["attempts"]) == ("mine-1", "openai-compatible", True, 10)
    other = by_provider["claude"]
    assert (other["valid"], other["accepted"], other["duplicate"]) == (10, 10, 0)
    assert other["cost_usd"] == pytest.approx(ask.account("anthropic").dollars)
    table = all_tables(ask.data, ask.experiments, [])["provider_comparison"].to_pylist()
    assert [one["accepted"] for one in table] == [10, 5]


def test_before_cleaning_nothing_is_called_accepted_or_rejected(ask: Asking) -> None:
    write(ask)
    for row in rows(ask).values():
        unknown = [name for name in row if name.startswith(("accepted", "duplicate"))]
        assert len(unknown) == 8
        assert {row[name] for name in unknown} == {None}
        assert row["usd_per_accepted"] is None
        assert "10 answers are not among what was cleaned last: run `featherweight clean`" in row["note"]
    assert plots.provider_shares(list(rows(ask).values()), "png")
    cleaned(ask)
    assert {row["accepted"] for row in rows(ask).values()} == {10}
    ask.configure(generation={"requests": 12})
    write(ask)
    assert {row["accepted"] for row in rows(ask).values()} == {None}, "two more are not cleaned yet"


def test_who_is_asked_but_not_trained_on_is_not_said_to_have_nothing_accepted(ask: Asking) -> None:
    ask.configure(sources={"providers": ["claude"]})
    write(ask)
    cleaned(ask)
    by_provider = rows(ask)
    assert (by_provider["claude"]["accepted"], by_provider["claude"]["trained_on"], by_provider["claude"]["note"]) == (
        10,
        True,
        None,
    )
    assert (by_provider["gpt"]["accepted"], by_provider["gpt"]["trained_on"], by_provider["gpt"]["valid"]) == (
        None,
        False,
        10,
    )
    assert "sources.providers does not name gpt" in by_provider["gpt"]["note"]


# --- the same cells


def test_only_cells_that_all_were_asked_count(ask: Asking) -> None:
    ask.configure(providers={"gpt": {"requests": 4}})
    write(ask)
    cleaned(ask)
    by_provider = rows(ask)
    assert [(row["cells"], row["requested"], row["answered"]) for row in by_provider.values()] == [(4, 4, 4)] * 2
    with request_source(ask.data, ask.experiments) as reading:
        cells = {one.request.cell for one in reading.prompted_requests("gpt")}
        records = [r.value["output"] for one, r in reading.records("claude") if one.request.cell in cells]
    words = [text.lower().replace(".", "").replace(",", "").split() for text in records]
    flat = [word for text in words for word in text]
    assert by_provider["claude"]["distinct_1"] == pytest.approx(len(set(flat)) / len(flat)), "of the same cells too"


def test_without_a_common_cell_each_stands_over_its_own_and_says_so(ask: Asking) -> None:
    ask.configure(providers={"claude": {"languages": ["ko"], "requests": 7}})
    write(ask)
    by_provider = rows(ask)
    assert [row["requested"] for row in by_provider.values()] == [7, 10]
    assert all("no topic cell was asked of all" in row["note"] for row in by_provider.values())


def test_replicates_are_cells_of_their_own(ask: Asking) -> None:
    ask.configure(generation={"requests": 3, "replicates": 2})
    write(ask)
    assert [(row["cells"], row["requested"]) for row in rows(ask).values()] == [(6, 6)] * 2


def test_before_anything_was_generated_there_are_no_rows(ask: Asking) -> None:
    assert provider_rows(ask.data, ask.experiments) == []
    assert plots.provider_shares([], "png") is None
    ask.generate(only=["claude"])
    assert list(rows(ask)) == ["claude"], "gpt was asked nothing yet"


def test_what_lies_in_an_open_batch_has_no_outcome_yet(ask: Asking) -> None:
    ask.configure(providers={"gpt": {"batch": True}})
    ask.server.behavior = replace(PLAIN, batch_seconds=3600)
    ask.generate()
    assert list(rows(ask)) == ["claude"]
    ask.configure(providers={"gpt": {"batch": False}}, generation={"requests": 12})
    ask.generate()
    assert {row["requested"] for row in rows(ask).values()} == {2}
    row = rows(ask)["gpt"]
    assert (row["answered_share"], row["in_doubt"]) == (1.0, 0)


def test_a_batchs_answers_have_a_cost_and_no_latency(ask: Asking) -> None:
    ask.configure(providers={"gpt": {"batch": True, "enabled": True}})
    ask.server.behavior = replace(PLAIN, batch_seconds=0)
    ask.generate()
    ask.finish()
    row = rows(ask)["gpt"]
    assert (row["answered"], row["p50_latency_ms"], row["p95_latency_ms"]) == (10, None, None)
    assert row["cost_usd"] == pytest.approx(ask.account("openai").dollars)


# --- unknown numbers


def test_p95_needs_twenty_answers(ask: Asking) -> None:
    ask.configure(generation={"requests": 19})
    write(ask)
    for row in rows(ask).values():
        assert row["p50_latency_ms"] > 0
        assert row["p95_latency_ms"] is None
    ask.configure(generation={"requests": 20})
    write(ask)
    latencies = sorted(row["latency_ms"] for row in ask.rows() if row["provider"] == "gpt")
    row = rows(ask)["gpt"]
    assert row["p50_latency_ms"] == pytest.approx((latencies[9] + latencies[10]) / 2)
    assert row["p95_latency_ms"] == pytest.approx(latencies[18] + 0.05 * (latencies[19] - latencies[18]))


def test_an_unknown_price_makes_every_cost_unknown_and_none_zero(ask: Asking) -> None:
    ask.configure(providers={"gpt": {"price": None}})
    write(ask)
    cleaned(ask)
    by_provider = rows(ask)
    assert (by_provider["gpt"]["cost_usd"], by_provider["gpt"]["usd_per_accepted"]) == (None, None)
    assert by_provider["claude"]["usd_per_accepted"] == pytest.approx(by_provider["claude"]["cost_usd"] / 10)


def test_what_is_held_for_lost_requests_is_shown_and_counted(ask: Asking) -> None:
    lost: list[str] = []

    def once(wire: Wire, prompt: str, nth: int) -> Fault | None:
        if lost:
            return None
        lost.append(prompt)
        return "cut"

    write(ask, script=once)
    cleaned(ask)
    row = rows(ask)["gpt"]
    assert (row["answered"], row["in_doubt"], row["attempts"]) == (10, 1, 11)
    assert row["reserved_usd"] > 0
    assert row["usd_per_accepted"] == pytest.approx((row["cost_usd"] + row["reserved_usd"]) / 10)
    assert row["cost_usd"] + row["reserved_usd"] >= ask.account("openai").dollars


def test_a_request_that_was_lost_for_good_counts_against_its_provider(ask: Asking) -> None:
    lost: list[str] = []

    def script(wire: Wire, prompt: str, nth: int) -> Fault | None:
        if lost and prompt not in lost:
            return None
        lost.append(prompt)
        return "cut"

    write(ask, script=script)
    ask.server.behavior = replace(PLAIN, seed=1)
    # The next prompt of the grid takes its place.
    ask.generate()
    assert len(lost) == 2
    by_provider = rows(ask)
    assert [(row["requested"], row["answered"], row["in_doubt"]) for row in by_provider.values()] == [
        (10, 10, 0),
        (10, 9, 1),
    ]
    assert by_provider["gpt"]["reserved_usd"] > 0


def test_failures_and_refusals_are_counted_apart(ask: Asking) -> None:
    kinds = iter(["refusal", "content_filter", "invalid_request"])
    write(ask, script=lambda wire, prompt, nth: next(kinds, None))
    row = rows(ask)["gpt"]
    assert row["refused"] == 2
    assert row["failed"] == 1
    assert row["answered"] + row["failed"] == row["requested"]


# --- coverage and diversity


def covered(ask: Asking, name: str = "claude") -> coverage.Coverage:
    (report,) = coverage.coverage(ask.data, ask.experiments, [name])
    return report


def test_coverage_counts_cells_topics_and_axis_values_that_valid_records_hit(ask: Asking) -> None:
    axes = {"mood": ["tired", "glad"], "job": ["nurse", "cook", "farmer"], "language": ["English"]}
    ask.grid(axes=axes)
    ask.configure(generation={"requests": 6, "languages": None})
    bad = "A book for a tired"
    ask.server.behavior = replace(
        PLAIN, script=lambda wire, prompt, nth: "breaks_schema" if prompt.startswith(bad) else None
    )
    ask.generate()
    report = covered(ask)
    assert (report.records, report.cells, report.topics) == (3, "3 of 6", "3 of 6")
    assert report.axes == {"mood": 0.5, "job": 1.0, "language": 1.0}


def test_distinct_n_is_the_share_of_different_n_grams() -> None:
    values = [{"output": "The cat sat. The cat ran."}, {"output": "the cat sat"}]
    # "the cat sat the cat ran" and "the cat sat": 9 words, 4 of them distinct; 7 pairs, 4 of them
    # distinct.
    assert coverage.distinct(values, 1) == pytest.approx(4 / 9)
    assert coverage.distinct(values, 2) == pytest.approx(4 / 7)
    assert coverage.distinct([{"output": "책을 읽다, 책을 덮다"}], 1) == pytest.approx(3 / 4)
    assert coverage.distinct([], 1) is coverage.distinct([{"output": "one"}], 2) is None
    assert coverage.distinct([{"other": 1}, {"output": None}], 1) is None


def test_coverage_of_nothing_is_nothing(ask: Asking) -> None:
    assert coverage.coverage(ask.data, ask.experiments, []) == []
    report = covered(ask)
    assert (report.records, report.cells, report.distinct_1, report.distinct_2) == (0, "0 of 10", None, None)
    assert set(report.axes.values()) == {0.0}


def test_prompts_of_a_file_have_no_axes(ask: Asking) -> None:
    prompts = ask.data.root / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"instruction": f"Name a book, number {n}."}) + "\n" for n in range(3)))
    ask.configure(generation={"prompts": "file", "prompts_file": str(prompts), "requests": 3})
    write(ask)
    report = covered(ask)
    assert (report.records, report.cells, report.topics, report.axes) == (3, "3 of 3", "1 of 1", {})
    assert [row["cells"] for row in rows(ask).values()] == [3, 3]
