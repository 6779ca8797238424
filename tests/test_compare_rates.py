"""Verdicts consider how learning rates were chosen: no win against an arm at the edge, and one note
on shared rates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.compare import figures, rates
from pipelines.compare.quality import Qualities, Quality
from pipelines.compare.ranking import make_picks, mark_pareto
from pipelines.compare.rates import method_name, rates_of, still_open, trained_at, weakest
from pipelines.compare.show import pick_answer, render
from pipelines.compare.table import Row, comparison
from tests.fakes import planted
from tests.fakes.planted import Lake, losses, row

SEARCHED = {"learning_rate": [1e-4, 3e-4, 1e-3]}
ONE = "at one shared learning rate"
METHODS = ("full", "lora-r8", "qlora-r8")


def arm(method: str, how: str | None, rate: float = 2e-4, **values: Any) -> Row:
    """A row whose rate was `tuned`, lies at the `edge`, or came from a level of
    experiments.yaml."""
    source = "search" if how in ("tuned", "edge") else how
    edge = {"tuned": False, "edge": True}.get(how or "")
    adapter = {"rank": None if method == "full" else 8}
    defaults = {
        "method": method,
        "learning_rate": rate,
        "learning_rate_source": source,
        "learning_rate_at_edge": edge,
    }
    return row(**{**defaults, **adapter, **values})


# rows


@pytest.mark.parametrize(
    ("source", "edge", "expected"),
    [
        pytest.param("default", None, "shared", id="given"),
        pytest.param("pair", None, "shared", id="given for one method"),
        pytest.param("search", False, "tuned", id="searched"),
        pytest.param("search", True, "edge", id="searched, at the edge"),
        pytest.param("tune", None, "tuned", id="by featherweight tune"),
        pytest.param("search", None, "shared", id="a list of one rate chooses nothing"),
        pytest.param(None, None, "shared", id="of older code, which kept no source"),
    ],
)
def test_a_rate_is_tuned_shared_or_at_the_edge(source: str | None, edge: bool | None, expected: str) -> None:
    given = row(learning_rate=1e-3, learning_rate_source=source, learning_rate_at_edge=edge)
    assert rates_of(given) == expected


def test_what_trains_nothing_has_no_rate() -> None:
    assert rates_of(row(trainable_params=0, learning_rate=1e-3)) is None
    assert rates_of(row()) is None


def test_of_several_seeds_the_one_at_the_edge_counts() -> None:
    tuned, edge, shared = arm("full", "tuned"), arm("full", "edge", 9.0), arm("full", "default")
    assert weakest([tuned, edge, shared]) is edge
    assert weakest([tuned, shared]) is shared


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        pytest.param([arm("full", "default"), arm("lora", "default")], f"both trained {ONE}", id="one rate"),
        pytest.param(
            [arm("full", "default", 1e-5), arm("a", "default"), arm("b", "default")],
            f"all trained {ONE} for each kind of method", id="a rate a kind",
        ),
        pytest.param(
            [arm("full", "profile", 1e-4), arm("a", "profile", 1e-3), arm("q", "pair", 2e-3)],
            f"all trained {ONE} for each kind of method, or one of its own (q)", id="and one of its own",
        ),
        pytest.param(
            [arm("full", "profile", 1e-4), arm("q", "pair", 2e-3)],
            f"both trained {ONE}, or one of its own (q)", id="one kind, and one of its own",
        ),
        pytest.param([arm("full", "default"), arm("a", "tuned")], f"full trained {ONE}", id="one is tuned"),
        pytest.param([arm("full", "default"), arm("a", "edge")], f"full trained {ONE}", id="one is at the edge"),
        pytest.param(
            [arm("a", "model", 1e-4), arm("b", "model", 1e-3)], "both trained at shared learning rates", id="of two models"
        ),
        pytest.param(
            [arm("a", "method", 1e-4), arm("b", "method", 1e-3)],
            "both trained at learning rates that experiments.yaml gives each method", id="each its own",
        ),
        pytest.param([arm("full", "tuned"), arm("a", "tuned")], "", id="all tuned"),
        pytest.param([arm("full", "default")], "", id="nothing to compare with"),
        pytest.param([arm("full", "default"), row(trainable_params=0)], "", id="the untouched model needs no rate"),
        pytest.param([], "", id="none"),
    ],
)  # fmt: skip
def test_a_comparison_says_at_which_rates(arms: list[Row], expected: str) -> None:
    assert trained_at(arms, method_name) == expected


def test_many_names_are_cut_short() -> None:
    arms = [arm(name, "edge", 1e-3) for name in "abcde"]
    assert still_open(arms, method_name).startswith(
        "the learning rates of a (0.001), b (0.001), c (0.001) and 2 more lie at the edge"
    )


# picks

# GB; each cell takes 25 s per GB.
COSTS = {"full": 4.0, "lora-r8": 2.0, "qlora-r8": 1.0}
BITS = {"full": 0.80, "lora-r8": 0.85, "qlora-r8": 0.90}
TUNED: Row = {"learning_rate": 3e-4, "learning_rate_source": "search", "learning_rate_at_edge": False}
EDGE: Row = {"learning_rate": 1e-3, "learning_rate_source": "search", "learning_rate_at_edge": True}
SHARED: Row = {"learning_rate": 2e-4, "learning_rate_source": "default", "learning_rate_at_edge": None}


def grid(**changed: Row) -> tuple[list[Row], Qualities]:
    """Three tuned rows, each a little worse than the one before and half as expensive; `changed` by
    their first letters."""
    rows = []
    for method in METHODS:
        numbers = {
            "eval_bits_per_byte": BITS[method],
            "peak_memory_gb": COSTS[method],
            "train_seconds": 25 * COSTS[method],
        }
        rows.append({**arm(method, "tuned"), **numbers, "eval_records": 12, **changed.get(method[0], {})})
    return rows, Qualities({("tiny", one["method"]): known(one) for one in rows})


def known(one: Row) -> Quality:
    values = losses(one["eval_bits_per_byte"], own=one["method"])
    nats = np.array([[value["scored_nats"] for value in values]])
    return Quality(tuple(value["example_id"] for value in values), nats, np.full(len(values), 100.0))


def picks(**changed: Row) -> dict[str, Row]:
    return {one["pick"]: one for one in make_picks(*grid(**changed))}


def who(by_name: dict[str, Row]) -> dict[str, str]:
    return {name: one["method"] or one["verdict"] for name, one in by_name.items()}


def test_tuned_arms_are_picked_among_without_a_word_on_rates() -> None:
    by_name = picks()
    assert who(by_name) == {"best quality": "full", "best value": "full", "least memory": "qlora-r8"}
    assert not [one for one in by_name.values() if "learning rate" in one["reason"]]


@pytest.mark.parametrize("loser", ["lora-r8", "qlora-r8"])
def test_nobody_wins_in_quality_or_value_against_an_arm_at_the_edge(loser: str) -> None:
    by_name = picks(**{loser[0]: EDGE})
    assert who(by_name) == {
        "best quality": "no clear winner",
        "best value": "no clear winner",
        "least memory": "qlora-r8",
    }
    for pick in ("best quality", "best value"):
        assert by_name[pick]["candidates"] == f"full, {loser}"
        caveat = f"the learning rate of {loser}, 0.001, lies at the edge of those tried: widen its list, or set learning_rate: auto"
        assert caveat in by_name[pick]["reason"]
        assert [by_name[pick][column] for column in ("model", "method", "run_id", "eval_bits_per_byte")] == [None] * 4


def test_the_leader_itself_at_the_edge_leads_and_has_not_won() -> None:
    pick = picks(f=EDGE)["best quality"]
    assert pick_answer(pick) == "no clear winner yet (full leads)"
    assert pick["reason"].startswith("full is lowest with 0.8000 bits per byte; not settled: the learning rate of full")


def test_least_memory_hangs_on_an_edge_only_where_quality_breaks_a_tie() -> None:
    least = picks(q=EDGE)["least memory"]
    assert least["method"] == "qlora-r8"
    assert "its quality is worse than that of full so far: +0.1000" in least["reason"]
    assert "learning rate of qlora-r8, 0.001" in least["reason"]
    least = picks(q=EDGE, l={"peak_memory_gb": 1.01})["least memory"]
    assert (least["verdict"], least["candidates"]) == ("no clear winner", "lora-r8, qlora-r8")
    assert "which of them is better is not settled" in least["reason"]
    assert picks(l={"peak_memory_gb": 1.01})["least memory"]["method"] == "lora-r8", "both are tuned"
    same = {"peak_memory_gb": 1.0}
    assert picks(f=same, l=same, q={**EDGE, **same})["least memory"]["candidates"] == "full, qlora-r8", (
        "LoRA is worse than full"
    )
    leads = picks(f={**EDGE, **same}, l=same, q=same)["least memory"]
    assert pick_answer(leads) == "no clear winner yet (full leads)"
    assert leads["reason"].startswith("full (1.00 GB) and lora-r8 (1.00 GB) and qlora-r8 (1.00 GB) need the same")


def test_an_arm_at_the_edge_that_costs_more_is_no_candidate_for_the_value_but_keeps_it_open() -> None:
    value = picks(f={**EDGE, "eval_bits_per_byte": 0.9}, l={"eval_bits_per_byte": 0.8})["best value"]
    assert pick_answer(value) == "no clear winner yet (lora-r8 leads)"
    assert "the learning rate of full" in value["reason"]


def test_one_row_alone_is_picked_whatever_its_rate() -> None:
    rows, qualities = grid(f=EDGE)
    assert {one["verdict"] for one in make_picks(rows[:1], qualities)} == {"the only one"}


def test_shared_rates_are_said_once_in_every_pick_that_speaks_of_quality() -> None:
    shared = dict.fromkeys("flq", SHARED)
    by_name = picks(**shared)
    assert [one["reason"].count(ONE) for one in by_name.values()] == [1, 1, 1]
    assert by_name["best quality"]["verdict"] == "clear", "shared rates are a caveat, not an edge"
    same = {**SHARED, "eval_bits_per_byte": 0.85, "peak_memory_gb": 1.0}
    assert ONE not in picks(**{**shared, "l": same, "q": same})["least memory"]["reason"], (
        "a tie says nothing of quality"
    )


def test_a_row_at_the_edge_is_not_dominated_and_dominates_by_cost_alone() -> None:
    def front(full: Row, lora: Row, memory: float = 2.0) -> list[bool]:
        same = {"peak_memory_gb": 2.0, "train_seconds": 50.0}
        rows, qualities = grid(f={**full, **same, "peak_memory_gb": memory}, l={**lora, **same})
        mark_pareto(rows[:2], qualities)
        return [one["is_pareto"] for one in rows[:2]]

    assert front(TUNED, TUNED) == [True, False]
    assert front(TUNED, EDGE) == [True, True], "it may be better than it looks"
    assert front(EDGE, TUNED) == [True, True], "no difference to an edge is clear"
    assert front(EDGE, TUNED, memory=1.0) == [True, False], "a better rate costs nothing more"


# a whole lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Every method searches for its rate."""
    return planted.lake(tmp_path, methods=dict.fromkeys(METHODS, SEARCHED))


def plant(lake: Lake, **changed: Row) -> None:
    for method in METHODS:
        rate = {"learning_rate": 3e-4, "learning_rate_at_edge": False, **changed.get(method[0], {})}
        lake.cell(method, bits=BITS[method], peak_memory_gb=COSTS[method], train_seconds=25 * COSTS[method], **rate)


FOUND_TUNED: Row = {"learning_rate": 3e-4, "learning_rate_at_edge": False}
FOUND_EDGE: Row = {"learning_rate": 1e-3, "learning_rate_at_edge": True}


def test_one_seed_at_the_edge_is_enough(lake: Lake) -> None:
    both = lake.configured(profiles={"local": {"seeds": [1, 2]}})
    for seed, lora in ((1, FOUND_TUNED), (2, FOUND_EDGE)):
        both.cell("full", bits=0.8, seed=seed, **FOUND_TUNED)
        both.cell("lora-r8", bits=0.9, seed=seed, **lora)
    result = comparison(both.resolved())
    shown = {one["method"]: one for one in result.rows}
    assert [shown["lora-r8"][name] for name in ("rates", "learning_rate", "learning_rate_at_edge")] == [
        "edge",
        1e-3,
        True,
    ]
    assert "the learning rate of lora-r8, 0.001" in make_picks(result.rows, result.qualities)[0]["reason"]


def advice(lake: Lake) -> dict[str, str]:
    return {one["method"]: one["advice"] for one in comparison(lake.resolved()).rows}


def test_advice_against_full_says_at_which_rates(lake: Lake) -> None:
    lake.cell("base", bits=1.0)
    plant(lake)
    result = comparison(lake.resolved())
    assert {one["method"]: one["rates"] for one in result.rows} == {"base": None, **dict.fromkeys(METHODS, "tuned")}
    assert "0.050 above full, with 50 % of its memory" in advice(lake)["lora-r8"]
    plant(lake, l=FOUND_EDGE)
    line = advice(lake)["lora-r8"]
    assert (
        "0.050 above full so far, with 50 % of its memory and 2.00 times its speed; which of the two is better is not"
        in line
    )
    assert "learning rate of lora-r8, 0.001, lies at the edge" in line
    plant(lake, f=FOUND_EDGE)
    assert "learning rate of full, 0.001, lies at the edge" in advice(lake)["qlora-r8"]
    shared = lake.configured(methods={"full": {"learning_rate": 1e-4}})
    plant(shared)
    assert f"0.050 above full (full trained {ONE}), with" in advice(shared)["lora-r8"]


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        pytest.param(FOUND_TUNED, "tuning did not help: 0.900", id="tuned"),
        pytest.param(
            FOUND_EDGE, "tuning did not help at 0.001, a learning rate at the edge of those tried: 0.900", id="edge"
        ),
        pytest.param({"learning_rate": 1e-3}, f"tuning did not help {ONE}: 0.900", id="one rate, which is no search"),
    ],
)
def test_tuning_that_did_not_help_says_at_which_rate(lake: Lake, rate: Row, message: str) -> None:
    lake.cell("base", bits=0.8)
    lake.cell("full", bits=0.9, **rate)
    assert advice(lake)["full"].startswith(message)
    result = comparison(lake.resolved())
    best, *_ = make_picks(result.rows, result.qualities)
    assert best["reason"].endswith(
        "worse than the untouched model" + message.removeprefix("tuning did not help").split(":")[0]
    )


def test_the_table_shows_how_and_says_once_what_it_means(lake: Lake) -> None:
    lake.cell("full", **FOUND_TUNED)
    lake.cell("lora-r8", **FOUND_EDGE)
    lake.cell("qlora-r8", learning_rate=1e-3)
    table = comparison(lake.resolved()).rows
    shown = render(table, "text")
    assert [line.split()[8] for line in shown.splitlines()[3:6]] == ["tuned", "edge", "shared"]
    assert shown.count("rates shared: the learning rate was given") == shown.count("rates edge: the best learning") == 1
    assert rates.notes([one for one in table if one["method"] == "full"]) == []
    older = [{name: value for name, value in one.items() if name != "rates"} for one in table]
    assert "rates" not in render(older, "text").splitlines()[0], "an older publication has no such column"


def test_captions_say_at_which_rates(lake: Lake) -> None:
    assert figures.of_rates([arm(method, "tuned") for method in METHODS], method_name) == ""
    plant(lake, l=FOUND_EDGE, q={"learning_rate": 2e-4, "learning_rate_at_edge": None})
    rows = comparison(lake.resolved()).rows
    for figure in (figure for group in figures.of_cells(lake.project, rows) for figure in group.figures):
        if figure.key.startswith("trade-off") or figure.key.startswith("curves"):
            assert (
                f"Learning rates: qlora-r8 trained {ONE}; the learning rate of lora-r8, 0.001, lies at" in figure.says
            )
