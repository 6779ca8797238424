"""How fast each method reaches the same loss, by hand-made curves."""

from pathlib import Path

import pytest

from pipelines.compare.table import Row, comparison_rows
from pipelines.compare.targets import common_target, reach
from tests.fakes import planted
from tests.fakes.planted import Lake


def curve(*points: tuple[int, float, float | None]) -> list[Row]:
    return [
        {"examples": e, "elapsed_seconds": s, "eval_loss": loss, "step": i} for i, (e, s, loss) in enumerate(points)
    ]


FAST = curve((0, 0.0, 3.0), (4, 5.0, None), (8, 10.0, 2.0), (16, 20.0, 1.0))
SLOW = curve((0, 0.0, 3.0), (8, 40.0, 2.5), (16, 80.0, 1.5))
WORSE = curve((0, 0.0, 3.0), (16, 10.0, 3.5))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = planted.lake(tmp_path)
    made.cell("base")
    for method, points in (("full", FAST), ("lora-r8", SLOW), ("qlora-r8", WORSE)):
        made.cell(method, curve=points)
    return made


def targets_of(lake: Lake) -> dict[str, tuple[float | None, ...]]:
    names = ("target_loss", "examples_to_target", "seconds_to_target")
    return {row["method"]: tuple(row[name] for name in names) for row in comparison_rows(lake.resolved())}


def test_the_target_is_the_worst_final_loss_of_those_that_learned(lake: Lake) -> None:
    assert targets_of(lake) == {
        "base": (None, None, None),
        "full": (1.5, 12, 15.0),
        "lora-r8": (1.5, 16, 80.0),
        "qlora-r8": (1.5, None, None),
    }


def test_a_configured_target_goes_before_it(lake: Lake) -> None:
    configured = lake.configured(profiles={"local": {"training": {"target_loss": 2.75}}})
    assert targets_of(configured)["full"] == (2.75, 2, 2.5) and targets_of(configured)["lora-r8"] == (2.75, 4, 20.0)
    never = lake.configured(profiles={"local": {"training": {"target_loss": 0.5}}})
    assert targets_of(never)["full"] == (0.5, None, None)


def test_rows_of_other_data_have_a_target_of_their_own(lake: Lake) -> None:
    lake.cell("lora-r8", curve=SLOW, prints={"data": "other"})
    assert targets_of(lake)["full"] == (1.0, 16, 20.0) and targets_of(lake)["lora-r8"] == (1.5, 16, 80.0)


def test_of_several_seeds_the_mean_where_all_reached_it(lake: Lake) -> None:
    lake.cell("full", curve=curve((0, 0.0, 3.0), (16, 30.0, 0.0)), seed=2)
    lake.cell("lora-r8", curve=SLOW, seed=2)
    two = lake.configured(profiles={"local": {"seeds": [1, 2]}})
    assert targets_of(two)["full"] == (1.5, 10, 15.0)


def test_a_curve_that_starts_at_the_target_took_nothing() -> None:
    assert reach([(0, 0.0, 1.0), (8, 4.0, 0.5)], 1.0) == (0, 0.0)
    assert common_target([[(0, 0.0, 1.0), (8, 4.0, 1.0)]]) is None
