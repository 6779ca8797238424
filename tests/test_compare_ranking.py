"""Intervals, the Pareto front and the picks, on planted cells with known answers and against
independent computations."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.compare import quality
from pipelines.compare.quality import Qualities, Quality, intervals
from pipelines.compare.ranking import make_picks, mark_pareto
from pipelines.compare.table import Row, comparison
from pipelines.evaluate.statistics import expanded_tail, t_quantile
from tests.fakes import planted
from tests.fakes.planted import Lake, losses, row


def measured(*values: float, size: int = 100) -> Quality:
    """A cell with these bits per byte on its records."""
    nats = np.array([values]) * size * math.log(2)
    return Quality(tuple(f"e{n}" for n in range(len(values))), nats, np.full(len(values), float(size)))


def known(values: list[Row]) -> Quality:
    nats = np.array([[one["scored_nats"] for one in values]])
    return Quality(tuple(one["example_id"] for one in values), nats, np.array([float(one["bytes"]) for one in values]))


# intervals


def test_the_interval_is_that_of_a_loop_over_resamples() -> None:
    """Resampled, summed and sorted one by one: bits per byte of records of unequal size, and of a
    paired difference."""
    luck = random.Random(3)
    sizes = np.array([luck.randint(40, 400) for _ in range(9)], dtype=float)
    one, other = ([luck.uniform(0.5, 1.5) * size for size in sizes] for _ in range(2))
    draws = np.random.default_rng(quality.SEED).integers(0, 9, (quality.RESAMPLES, 9))
    for nats in (one, [a - b for a, b in zip(one, other, strict=True)]):
        resampled = []
        for draw in draws:
            resampled.append(sum(nats[i] for i in draw) / (math.log(2) * sum(sizes[i] for i in draw)))
        resampled.sort()
        place = expanded_tail(0.025, 9) * (len(resampled) - 1)
        below = math.floor(place)
        low = resampled[below] + (place - below) * (resampled[below + 1] - resampled[below])
        (interval,) = intervals([np.array([nats])], sizes)
        assert interval is not None
        assert interval.value == pytest.approx(sum(nats) / (math.log(2) * sizes.sum()))
        assert interval.low == pytest.approx(low)
        assert low < interval.value < interval.high


def test_small_samples_get_wider_intervals_by_the_tables_of_t() -> None:
    assert [t_quantile(0.975, n) for n in (4, 9, 30)] == pytest.approx([2.776, 2.262, 2.042], abs=0.002)
    # Φ(-√(10/9) × 2.262)
    assert expanded_tail(0.025, 10) == pytest.approx(0.00855, abs=1e-4)
    assert expanded_tail(0.025, 100_000) == pytest.approx(0.025, abs=1e-5)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Ten records, many times: 95 % of the intervals contain the mean that the records were drawn
    around."""
    luck, held = np.random.default_rng(5), 0
    nats = [luck.normal(1.0, 0.3, (1, 10)) * math.log(2) for _ in range(400)]
    for interval in intervals(nats, np.ones(10)):
        assert interval is not None
        held += interval.low <= 1.0 <= interval.high
    assert 0.92 <= held / 400 <= 0.98


def test_many_records_are_resampled_in_groups_with_the_same_spread() -> None:
    values = np.random.default_rng(6).normal(1.0, 0.3, (1, 3000)) * math.log(2)
    (interval,) = intervals([values], np.ones(3000))
    assert interval is not None
    assert (interval.high - interval.low) / (2 * 1.96 * 0.3 / math.sqrt(3000)) == pytest.approx(1, abs=0.15)


def test_too_few_records_have_no_interval() -> None:
    assert measured(1.0, 1.1, 0.9, 1.0).interval() is None
    assert measured(1.0, 1.1, 0.9, 1.0, 1.0).interval() is not None


def test_seeds_widen_an_interval_when_they_disagree() -> None:
    sizes, luck = np.ones(50), np.random.default_rng(7)
    each = luck.normal(1.0, 0.05, 50)
    agree, apart = (intervals([np.stack([each - d, each + d])], sizes)[0] for d in (0.0, 0.1))
    assert agree is not None
    assert apart is not None
    assert apart.value == pytest.approx(agree.value)
    assert apart.high - apart.low > 3 * (agree.high - agree.low)


def test_pairing_sees_what_two_intervals_would_hide() -> None:
    """Hard records make both intervals wide; the difference, the same on every record, is
    certain."""
    one, other = (known(losses(bits, noise=0.001, own=str(bits))) for bits in (0.90, 0.91))
    apart = Qualities({("a", "x"): one, ("a", "y"): other})
    difference = apart.difference({"model": "a", "method": "x"}, {"model": "a", "method": "y"})
    (mine, theirs) = (one.interval(), other.interval())
    assert mine is not None
    assert theirs is not None
    assert difference is not None
    assert mine.high > theirs.low
    assert difference.below


# Pareto


def place(bits: float | None, memory: float | None = 2.0, seconds: float | None = 10.0, **values: Any) -> Row:
    same = {"data_fingerprint": "d", "eval_set": "e", "noise": 0.005}
    numbers = {"eval_bits_per_byte": bits, "peak_memory_gb": memory, "train_seconds": seconds}
    return row(**{**same, **numbers, **values})


@pytest.mark.parametrize(
    ("places", "pareto"),
    [
        pytest.param([place(0.8), place(0.9)], [True, False], id="better in one, equal in the others"),
        pytest.param([place(0.8, 3.0), place(0.9, 2.0)], [True, True], id="a trade"),
        pytest.param([place(0.8), place(0.8)], [True, True], id="identical models"),
        pytest.param([place(0.8), place(0.8), place(0.8, 1.9)], [False, False, True], id="two identical, one better"),
        pytest.param([place(0.8, 1, 1), place(0.9, 2, 2), place(1.0, 3, 3)], [True, False, False], id="a chain"),
        pytest.param(
            [place(0.8, 3, 1), place(0.9, 1, 3), place(0.95, 2, 2)], [True, True, True], id="a knee on its own"
        ),
        pytest.param([place(0.8), place(0.801, noise=0.1)], [True, True], id="lower within the interval beats nobody"),
        pytest.param([place(0.8, 2.0), place(0.79, 3.0, noise=0.1)], [True, False], id="dearer, better within noise"),
        pytest.param([place(0.8, 2.0), place(0.801, 1.99, 9.9, noise=0.1)], [True, True], id="all within noise"),
        pytest.param([place(0.8, 2.0), place(0.81, 1.0, noise=0.1)], [False, True], id="half the memory, as good"),
        pytest.param([place(0.8), place(None)], [True, None], id="not measured"),
        pytest.param([place(0.8), place(0.7, None), place(0.9)], [True, None, False], id="memory not measured"),
        pytest.param([place(0.8), place(0.7, status="killed")], [True, None], id="not ok"),
        pytest.param([place(0.8), place(0.9, device="T4")], [True, True], id="another device"),
        pytest.param([place(0.8), place(0.9, memory_budget_gb=3.0)], [True, True], id="another budget"),
        pytest.param([place(0.8), place(0.9, data_fingerprint="x")], [True, True], id="other data"),
        pytest.param([place(0.8), place(0.9, model="other")], [True, False], id="another model, the same records"),
        pytest.param([place(0.8)], [True], id="alone"),
        pytest.param([], [], id="none"),
    ],
)
def test_pareto(places: list[Row], pareto: list[bool | None]) -> None:
    planted_rows = [{**one, "method": f"m{number}"} for number, one in enumerate(places)]
    qualities = {
        (one["model"], one["method"]): known(losses(bits, noise=one.pop("noise"), own=one["method"]))
        for one in planted_rows
        if (bits := one["eval_bits_per_byte"]) is not None
    }
    mark_pareto(planted_rows, Qualities(qualities))
    assert [one["is_pareto"] for one in planted_rows] == pareto


def test_a_front_is_never_empty_and_all_off_it_are_beaten_by_one_that_costs_no_more() -> None:
    luck = random.Random(1)
    rows = [place(luck.uniform(0.8, 0.9), luck.uniform(1, 4), luck.uniform(10, 40), method=f"m{n}") for n in range(60)]
    qualities = Qualities({
        ("tiny", one["method"]): known(losses(one["eval_bits_per_byte"], noise=0.05, own=one["method"])) for one in rows
    })  # fmt: skip
    mark_pareto(rows, qualities)
    front = [one for one in rows if one["is_pareto"]]
    assert 0 < len(front) < 60
    for one in rows:
        beaten = [
            other["method"] for other in rows
            if other["peak_memory_gb"] <= one["peak_memory_gb"] and other["train_seconds"] <= one["train_seconds"]
            and (apart := qualities.difference(other, one)) and not apart.above
            and (apart.below or other["peak_memory_gb"] < 0.98 * one["peak_memory_gb"]
                 or other["train_seconds"] < 0.9 * one["train_seconds"])
        ]  # fmt: skip
        assert one["is_pareto"] is not bool(beaten)


# picks


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


def picks(lake: Lake) -> dict[str, Row]:
    result = comparison(lake.resolved())
    return {one["pick"]: one for one in make_picks(result.rows, result.qualities)}


def who(lake: Lake) -> dict[str, str]:
    return {name: one["method"] or one["verdict"] for name, one in picks(lake).items()}


def test_identical_models_have_no_winner(lake: Lake) -> None:
    for method in ("full", "lora-r8", "qlora-r8"):
        lake.cell(method, noise=0.0)
    assert set(who(lake).values()) == {"no clear winner"}
    pick = picks(lake)["best quality"]
    assert pick["candidates"] == "full, lora-r8, qlora-r8"
    assert "12 records do not tell it apart from lora-r8 +0.0000" in pick["reason"]


def test_a_better_model_wins_and_the_cheapest_of_equals_is_the_value(lake: Lake) -> None:
    lake.cell("base", bits=1.0)
    lake.cell("full", bits=0.800, peak_memory_gb=4.0, train_seconds=100.0)
    lake.cell("lora-r8", bits=0.801, peak_memory_gb=2.0, train_seconds=50.0)
    lake.cell("qlora-r8", bits=0.9, peak_memory_gb=1.0, train_seconds=60.0)
    assert who(lake) == {"best quality": "no clear winner", "best value": "lora-r8", "least memory": "qlora-r8"}
    lake.cell("full", bits=0.7, peak_memory_gb=4.0, train_seconds=100.0)
    assert who(lake) == {"best quality": "full", "best value": "full", "least memory": "qlora-r8"}
    by_name = picks(lake)
    assert by_name["best quality"]["reason"].startswith("0.7000 bits per byte; lora-r8, the next, has +0.1010 (95 %")
    assert by_name["least memory"]["reason"].startswith("1.00 GB at its peak; its quality is worse than that of full")
    assert by_name["best quality"]["delta_base"] == pytest.approx(-0.3)


def test_a_pick_that_is_no_better_than_the_untouched_model_says_so(lake: Lake) -> None:
    lake.cell("base", bits=0.8)
    lake.cell("full", bits=0.801, noise=0.05)
    lake.cell("lora-r8", bits=0.9, peak_memory_gb=1.0)
    by_name = picks(lake)
    assert by_name["best quality"]["reason"].endswith("it is not told apart from the untouched model")
    assert by_name["least memory"]["reason"].endswith("it is worse than the untouched model")


def test_equal_peaks_go_to_the_better_model_else_to_nobody(lake: Lake) -> None:
    lake.cell("full", bits=0.8, peak_memory_gb=2.02)
    lake.cell("lora-r8", bits=0.9, peak_memory_gb=2.0)
    assert who(lake)["least memory"] == "full"
    lake.cell("lora-r8", bits=0.8, peak_memory_gb=2.0)
    assert who(lake)["least memory"] == "no clear winner"


def test_smaller_micro_batches_win_neither_memory_nor_value_and_push_nobody_off_the_front(lake: Lake) -> None:
    lake.cell("base", bits=1.0)
    lake.cell("full", bits=0.8, peak_memory_gb=1.0, train_seconds=10.0, micro_batch_tokens=256)
    lake.cell("lora-r8", bits=0.8, peak_memory_gb=2.0, train_seconds=50.0, micro_batch_tokens=2048)
    # A row of older code, whose recipe says 2048.
    lake.cell("qlora-r8", bits=0.9, peak_memory_gb=1.8, train_seconds=90.0)
    assert who(lake) == {"best quality": "no clear winner", "best value": "lora-r8", "least memory": "qlora-r8"}
    assert fronts(lake) == {"full": True, "lora-r8": True, "qlora-r8": True}
    by_name = picks(lake)
    assert [by_name[pick]["compared"] for pick in by_name] == [3, 2, 2]
    assert by_name["least memory"]["left_out"] == "1 measured with other micro_batch_tokens"
    lake.cell("full", bits=0.8, peak_memory_gb=1.0, train_seconds=10.0, micro_batch_tokens=2048)
    assert (who(lake)["best value"], who(lake)["least memory"]) == ("full", "full")
    assert fronts(lake) == {"full": True, "lora-r8": False, "qlora-r8": False}


def fronts(lake: Lake) -> dict[str, bool]:
    return {row["method"]: row["is_pareto"] for row in comparison(lake.resolved()).rows if row["method"] != "base"}


def test_an_out_of_memory_row_is_ranked_around(lake: Lake) -> None:
    lake.cell("base", bits=1.0)
    lake.trained("full", "out_of_memory", phase="train", peak_memory_gb=9.0)
    lake.cell("lora-r8", bits=0.8, train_seconds=10.0, peak_memory_gb=3.0)
    lake.cell("qlora-r8", bits=0.9, peak_memory_gb=1.0)
    assert who(lake) == {"best quality": "lora-r8", "best value": "lora-r8", "least memory": "qlora-r8"}
    assert picks(lake)["best quality"]["left_out"] == "1 out_of_memory"


def test_rows_of_other_data_are_left_out_and_said(lake: Lake) -> None:
    for method in ("base", "full"):
        lake.cell(method, bits=0.5)
    lake.examples(train=("a", "b", "c", "new"))
    for method, bits in (("lora-r8", 0.8), ("qlora-r8", 0.9)):
        lake.cell(method, bits=bits)
    assert who(lake)["best quality"] == "lora-r8"
    assert picks(lake)["best quality"]["left_out"] == "1 measured with other data"


def test_too_few_records_pick_nobody(lake: Lake) -> None:
    lake.cell("full", bits=0.5, records=4)
    lake.cell("lora-r8", bits=0.9, records=4)
    assert who(lake)["best quality"] == "no clear winner"
    assert "(too few records)" in picks(lake)["best quality"]["reason"]


def test_one_cell_alone_is_no_winner_and_none_is_nothing(lake: Lake) -> None:
    assert {one["verdict"] for one in picks(lake).values()} == {"nothing to pick"}
    lake.cell("full")
    by_name = picks(lake)
    assert {(one["verdict"], one["method"]) for one in by_name.values()} == {("the only one", "full")}


def test_two_seeds_that_disagree_name_no_winner_where_one_would(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path, profiles={"local": {"seeds": [1, 2]}})
    for seed, full, lora in ((1, 0.80, 0.90), (2, 0.90, 0.82)):
        lake.cell("full", bits=full, seed=seed)
        lake.cell("lora-r8", bits=lora, seed=seed)
    assert who(lake)["best quality"] == "no clear winner"
