"""Verdicts know how learning rates were chosen: nobody wins against an arm at the edge, and shared rates are said once."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.compare import figures, rates
from pipelines.compare.ranking import make_picks
from pipelines.compare.rates import method_name, rates_of, still_open, trained_at, weakest
from pipelines.compare.show import pick_answer, render
from pipelines.compare.table import Row, comparison
from tests import planted
from tests.planted import Lake, row

SEARCHED = {"learning_rate": [1e-4, 3e-4, 1e-3]}
ONE = "at one shared learning rate"
TUNED: Row = {"learning_rate": 3e-4, "learning_rate_at_edge": False}
EDGE: Row = {"learning_rate": 1e-3, "learning_rate_at_edge": True}
METHODS = ("full", "lora-r8", "qlora-r8")


def arm(method: str, how: str | None, rate: float = 2e-4, **values: Any) -> Row:
    """A row whose rate was `tuned`, is at the `edge`, or was given at a level of experiments.yaml."""
    source = "search" if how in ("tuned", "edge") else how
    edge = {"tuned": False, "edge": True}.get(how or "")
    adapter = {"rank": None if method == "full" else 8}
    found = {"method": method, "learning_rate": rate, "learning_rate_source": source, "learning_rate_at_edge": edge}
    return row(**{**found, **adapter, **values})


# what a row is


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


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Every method searches for its rate."""
    return planted.lake(tmp_path, methods=dict.fromkeys(METHODS, SEARCHED))


def grid(lake: Lake, **how: Row) -> None:
    """full 0.8 bits per byte, LoRA 0.85 with half the memory and time, QLoRA 0.9 with a quarter; tuned unless `how` says more."""
    for method, bits, costs in zip(METHODS, (0.8, 0.85, 0.9), (4.0, 2.0, 1.0), strict=True):
        numbers = {"peak_memory_gb": costs, "train_seconds": 25 * costs, **TUNED, **how.get(method[0], {})}
        lake.cell(method, **{"bits": bits, **numbers})


def picks(lake: Lake) -> dict[str, Row]:
    found = comparison(lake.resolved())
    return {one["pick"]: one for one in make_picks(found.rows, found.qualities)}


def who(lake: Lake) -> dict[str, str]:
    return {name: one["method"] or one["verdict"] for name, one in picks(lake).items()}


def test_tuned_arms_are_picked_among_without_a_word_on_rates(lake: Lake) -> None:
    grid(lake)
    assert who(lake) == {"best quality": "full", "best value": "full", "least memory": "qlora-r8"}
    assert not [one for one in picks(lake).values() if "learning rate" in one["reason"]]
    assert {one["rates"] for one in comparison(lake.resolved()).rows} == {None, "tuned"}


@pytest.mark.parametrize("loser", ["l", "q"])
def test_nobody_wins_in_quality_or_value_against_an_arm_at_the_edge(lake: Lake, loser: str) -> None:
    grid(lake, **{loser: EDGE})
    name = next(method for method in METHODS if method.startswith(loser))
    found = picks(lake)
    assert who(lake) == {"best quality": "no clear winner", "best value": "no clear winner", "least memory": "qlora-r8"}
    for pick in ("best quality", "best value"):
        assert found[pick]["candidates"] == f"full, {name}"
        assert (
            f"the learning rate of {name}, 0.001, lies at the edge of those tried: widen its list, or set learning_rate: auto"
            in found[pick]["reason"]
        )
        assert [found[pick][column] for column in ("model", "method", "run_id", "eval_bits_per_byte")] == [None] * 4


def test_the_leader_itself_at_the_edge_leads_and_has_not_won(lake: Lake) -> None:
    grid(lake, f=EDGE)
    found = picks(lake)["best quality"]
    assert pick_answer(found) == "no clear winner yet (full leads)"
    assert found["reason"].startswith(
        "full is lowest with 0.8000 bits per byte; not settled: the learning rate of full"
    )


def test_least_memory_hangs_on_an_edge_only_where_quality_breaks_a_tie(lake: Lake) -> None:
    grid(lake, q=EDGE)
    least = picks(lake)["least memory"]
    assert least["method"] == "qlora-r8"
    assert "its quality is worse than that of full so far: +0.1000" in least["reason"]
    assert "learning rate of qlora-r8, 0.001" in least["reason"]
    grid(lake, q=EDGE, l={"peak_memory_gb": 1.01})
    least = picks(lake)["least memory"]
    assert (least["verdict"], least["candidates"]) == ("no clear winner", "lora-r8, qlora-r8")
    assert "which of them is better is not settled" in least["reason"]
    grid(lake, l={"peak_memory_gb": 1.01})
    assert picks(lake)["least memory"]["method"] == "lora-r8", "both are tuned"


def test_an_arm_at_the_edge_that_costs_more_is_no_candidate_for_the_value_but_keeps_it_open(lake: Lake) -> None:
    grid(lake, f={**EDGE, "bits": 0.9}, l={"bits": 0.8})
    value = picks(lake)["best value"]
    assert pick_answer(value) == "no clear winner yet (lora-r8 leads)"
    assert "the learning rate of full" in value["reason"]


def test_one_row_alone_is_picked_whatever_its_rate(lake: Lake) -> None:
    lake.cell("full", **EDGE)
    assert {one["verdict"] for one in picks(lake).values()} == {"the only one"}


def test_one_seed_at_the_edge_is_enough(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path, methods=dict.fromkeys(METHODS, SEARCHED), profiles={"local": {"seeds": [1, 2]}})
    for seed, lora in ((1, TUNED), (2, EDGE)):
        lake.cell("full", bits=0.8, seed=seed, **TUNED)
        lake.cell("lora-r8", bits=0.9, seed=seed, **lora)
    shown = {one["method"]: one for one in comparison(lake.resolved()).rows}
    assert [shown["lora-r8"][name] for name in ("rates", "learning_rate", "learning_rate_at_edge")] == [
        "edge",
        1e-3,
        True,
    ]
    assert "the learning rate of lora-r8, 0.001" in picks(lake)["best quality"]["reason"]


def test_shared_rates_are_said_once_in_every_pick_that_speaks_of_quality(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path)
    for method, bits, memory in (("full", 0.8, 4.0), ("lora-r8", 0.85, 2.0), ("qlora-r8", 0.9, 1.0)):
        lake.cell(method, bits=bits, peak_memory_gb=memory)
    found = picks(lake)
    assert [one["reason"].count(ONE) for one in found.values()] == [1, 1, 1]
    assert found["best quality"]["verdict"] == "clear", "shared rates are a caveat, not an edge"
    lake.cell("lora-r8", bits=0.85, peak_memory_gb=1.0)
    lake.cell("qlora-r8", bits=0.85, peak_memory_gb=1.0)
    assert ONE not in picks(lake)["least memory"]["reason"], "a tie of peaks says nothing of quality"


# the front, advice, tables, figures


def test_a_row_at_the_edge_is_not_dominated_and_dominates_by_cost_alone(lake: Lake) -> None:
    def front() -> dict[str, bool]:
        return {one["method"]: one["is_pareto"] for one in comparison(lake.resolved()).rows if one["method"] != "base"}

    same = {"peak_memory_gb": 2.0, "train_seconds": 50.0}
    lake.cell("full", bits=0.8, **same, **TUNED)
    lake.cell("lora-r8", bits=0.9, **same, **TUNED)
    assert front() == {"full": True, "lora-r8": False, "qlora-r8": None}
    lake.cell("lora-r8", bits=0.9, **same, **EDGE)
    assert front() == {"full": True, "lora-r8": True, "qlora-r8": None}, "it may be better than it looks"
    lake.cell("full", bits=0.8, **same, **EDGE)
    lake.cell("lora-r8", bits=0.9, **same, **TUNED)
    assert front() == {"full": True, "lora-r8": True, "qlora-r8": None}, "no difference to an edge is clear"
    lake.cell("full", bits=0.8, peak_memory_gb=1.0, train_seconds=50.0, **EDGE)
    assert front() == {"full": True, "lora-r8": False, "qlora-r8": None}, "a better rate costs nothing more"


def advice(lake: Lake) -> dict[str, str]:
    return {one["method"]: one["advice"] for one in comparison(lake.resolved()).rows}


def test_advice_against_full_says_at_which_rates(lake: Lake) -> None:
    lake.cell("base", bits=1.0)
    grid(lake)
    assert "0.050 above full, with 50 % of its memory" in advice(lake)["lora-r8"]
    grid(lake, l=EDGE)
    said = advice(lake)["lora-r8"]
    assert (
        "0.050 above full so far, with 50 % of its memory and 2.00 times its speed; which of the two is better is not"
        in said
    )
    assert "learning rate of lora-r8, 0.001, lies at the edge" in said
    grid(lake, f=EDGE)
    assert "learning rate of full, 0.001, lies at the edge" in advice(lake)["qlora-r8"]
    shared = lake.configured(methods={"full": {"learning_rate": 1e-4}})
    grid(shared)
    assert f"0.050 above full (full trained {ONE}), with" in advice(shared)["lora-r8"]


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        pytest.param(TUNED, "tuning did not help: 0.900", id="tuned"),
        pytest.param(
            EDGE, "tuning did not help at 0.001, a learning rate at the edge of those tried: 0.900", id="edge"
        ),
        pytest.param({"learning_rate": 1e-3}, f"tuning did not help {ONE}: 0.900", id="one rate, which is no search"),
    ],
)
def test_tuning_that_did_not_help_says_at_which_rate(lake: Lake, rate: Row, said: str) -> None:
    lake.cell("base", bits=0.8)
    lake.cell("full", bits=0.9, **rate)
    assert advice(lake)["full"].startswith(said)
    assert (
        "worse than the untouched model" + said.removeprefix("tuning did not help").removesuffix(": 0.900")
    ) in picks(lake)["best quality"]["reason"]


def test_the_table_shows_how_and_says_once_what_it_means(lake: Lake) -> None:
    lake.cell("full", **TUNED)
    lake.cell("lora-r8", **EDGE)
    lake.cell("qlora-r8", learning_rate=1e-3)
    found = comparison(lake.resolved()).rows
    shown = render(found, "text")
    assert [line.split()[8] for line in shown.splitlines()[3:6]] == ["tuned", "edge", "shared"]
    assert shown.count("rates shared: the learning rate was given") == shown.count("rates edge: the best learning") == 1
    assert rates.notes([one for one in found if one["method"] == "full"]) == []
    older = [{name: value for name, value in one.items() if name != "rates"} for one in found]
    assert "rates" not in render(older, "text").splitlines()[0], "an older publication has no such column"


def test_captions_say_at_which_rates(lake: Lake) -> None:
    grid(lake)
    tuned = comparison(lake.resolved()).rows
    assert figures.of_rates([one for one in tuned if one["status"] == "ok"], method_name) == ""
    grid(lake, l=EDGE, q={"learning_rate": 2e-4, "learning_rate_at_edge": None})
    rows = comparison(lake.resolved()).rows
    for figure in figures.of_cells(lake.project, rows):
        if figure.key == "trade-off" or figure.key.startswith("curves"):
            assert (
                f"Learning rates: qlora-r8 trained {ONE}; the learning rate of lora-r8, 0.001, lies at" in figure.says
            )
