"""A speed measured beside other programs is marked wherever it is shown, and decides nothing."""

import json
from pathlib import Path

import pytest

from pipelines.compare import disturbed
from pipelines.compare.history import history_rows
from pipelines.compare.plots import night_by_night, rank_sweep
from pipelines.compare.ranking import has_valid_speed, make_picks, mark_pareto
from pipelines.compare.report import Content, write_report
from pipelines.compare.show import full_name, pick_answer, render, wide
from pipelines.compare.table import Row, comparison
from pipelines.compare.trade_off import trade_off
from pipelines.runs.cells import all_attempts
from tests.fakes import planted
from tests.fakes.planted import Lake, row
from tests.test_compare_rates import grid

BUSY: Row = {"other_cpu_pct": 70.4}
QUIET: Row = {"other_cpu_pct": 2.0}
SAID = "other programs used 70 % of the processors while full was measured"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """full (4 GB, 100 s) and LoRA (2 GB, 50 s) of equal quality, measured on a quiet machine."""
    made = planted.lake(tmp_path, profiles={"local": {"price_per_hour": 36.0}})
    for method in ("full", "lora-r8"):
        measure(made, method, QUIET)
    return made


def measure(lake: Lake, method: str, beside: Row, **values: float) -> None:
    costs = {"full": (4.0, 100.0), "lora-r8": (2.0, 50.0)}[method]
    numbers = {"bits": 0.8, "peak_memory_gb": costs[0], "train_seconds": costs[1], **values}
    lake.cell(method, noise=0.05, **numbers, **beside)


def rows(lake: Lake) -> dict[str, Row]:
    return {row["method"]: row for row in comparison(lake.resolved()).rows}


# decisions


def test_no_ratio_of_speeds_rests_on_a_disturbed_one_and_memory_stands(lake: Lake) -> None:
    assert rows(lake)["lora-r8"]["speedup_vs_full"] == 2.0
    measure(lake, "full", BUSY)
    by_method = rows(lake)
    for method, memory in (("full", 1.0), ("lora-r8", 0.5)):
        shown = by_method[method]
        assert (shown["speedup_vs_full"], shown["memory_vs_full"]) == (None, memory)
        assert shown["ratios_because"] == f"speed disturbed: {SAID}"
        assert "times its speed" not in shown["advice"]
    measure(lake, "full", QUIET)
    measure(lake, "lora-r8", {"other_cpu_pct": 33.0})
    by_method = rows(lake)
    assert (by_method["full"]["speedup_vs_full"], by_method["lora-r8"]["speedup_vs_full"]) == (1.0, None)
    assert by_method["lora-r8"]["ratios_because"].endswith("used 33 % of the processors while lora-r8 was measured")
    disturbance = "other programs used 33 % of the processors while it was measured, so train it on a quiet machine"
    assert by_method["lora-r8"]["advice"].endswith(f"not measured on the same records; speed disturbed: {disturbance}")


def test_both_disturbed_are_both_named(lake: Lake) -> None:
    measure(lake, "full", BUSY)
    measure(lake, "lora-r8", {"other_cpu_pct": 33.0})
    assert rows(lake)["lora-r8"]["ratios_because"] == f"speed disturbed: {SAID}, 33 % while lora-r8 was measured"


# Other programs use 70 % of the processors.
DISTURBED: Row = {**BUSY, "speed_disturbed": True}
SAME: Row = {"eval_bits_per_byte": 0.8}


def value(**changed: Row) -> Row:
    """The best value among full (4 GB, 100 s), LoRA (2 GB, 50 s) and QLoRA (1 GB, 25 s)."""
    return make_picks(*grid(**changed))[1]


def test_no_best_value_rests_on_a_disturbed_speed() -> None:
    assert pick_answer(value(l=SAME, q=SAME)) == "tiny × qlora-r8"
    pick = value(f=DISTURBED, l=SAME, q=SAME)
    assert pick_answer(pick) == "no clear winner among qlora-r8, full"
    reason = f"qlora-r8 costs least so far with 1.00 GB for 25 s; {SAID}: train it on a quiet machine"
    assert pick["reason"].startswith(reason)
    pick = value(f=DISTURBED, l={**SAME, **DISTURBED}, q={**SAME, **DISTURBED})
    assert pick_answer(pick) == "no clear winner among full, lora-r8, qlora-r8"
    assert "costs" not in pick["reason"] and "train them on a quiet machine" in pick["reason"]


def test_least_memory_and_best_quality_do_not_rest_on_speed() -> None:
    quality, _, memory = make_picks(*grid(f=DISTURBED, l=DISTURBED, q=DISTURBED))
    assert (quality["method"], memory["method"]) == ("full", "qlora-r8")


def test_where_one_row_alone_is_as_good_its_speed_decides_nothing() -> None:
    pick = value(f=DISTURBED)
    assert (pick["method"], pick["verdict"], pick["speed_disturbed"]) == ("full", "clear", True)
    assert pick["reason"].startswith(
        "4.00 GB for 100 s (other programs used 70 % of the processors while it was measured); it has"
    )


def test_no_pareto_mark_rests_on_a_disturbed_speed() -> None:
    def front(**changed: Row) -> list[bool | None]:
        rows, qualities = grid(**changed)
        mark_pareto(rows, qualities)
        return [one["is_pareto"] for one in rows]

    assert front(l=SAME) == [False, True, True]
    assert front(l={**SAME, **DISTURBED}) == [True, None, True]
    assert front(f=DISTURBED, l=DISTURBED, q=DISTURBED) == [None, None, None]


def test_a_night_beside_other_programs_is_not_worse_in_time(lake: Lake) -> None:
    for _ in range(3):
        measure(lake, "lora-r8", QUIET)
    measure(lake, "lora-r8", BUSY, train_seconds=500.0, peak_memory_gb=9.0)
    assert worse(lake) == "9.00 GB, 2.00 in its 4 equal runs before"
    measure(lake, "lora-r8", QUIET, train_seconds=500.0)
    assert worse(lake) == "8.33 minutes, 0.83 in its 4 equal runs before"


def worse(lake: Lake) -> str:
    points = [one for one in history_rows(list(all_attempts(lake.data))) if one["method"] == "lora-r8"]
    assert [one["speed_disturbed"] for one in points[3:5]] == [False, True]
    return points[-1]["worse"] or ""


@pytest.mark.parametrize(
    ("device", "percent", "is_disturbed"),
    [("cpu: AMD EPYC, 2 cores", 12.0, True), ("NVIDIA T4", 12.0, False), ("NVIDIA T4", 60.0, True)],
)
def test_a_card_needs_few_processors(lake: Lake, device: str, percent: float, is_disturbed: bool) -> None:
    lake.cell("full", device=device, other_cpu_pct=percent)
    assert rows(lake)["full"]["speed_disturbed"] is is_disturbed


def test_a_row_of_older_code_stands() -> None:
    assert (
        has_valid_speed(row())
        and has_valid_speed(row(speed_disturbed=False))
        and not has_valid_speed(row(speed_disturbed=True))
    )


# places that show it


@pytest.fixture
def busy(lake: Lake) -> Lake:
    measure(lake, "full", BUSY)
    return lake


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_tables_mark_what_rests_on_it_and_say_why_once(busy: Lake, form: str) -> None:
    shown = render(list(rows(busy).values()), form).replace("\\", "")  # type: ignore[arg-type]
    assert shown.count(" 100 *") == 1 and shown.count(" 50 *") == 1 and "4.00 *" not in shown
    assert (
        shown.count("* speed disturbed: other programs used 70 % of the processors while tiny × full was measured") == 1
    )
    every = wide([rows(busy)["full"]], form).replace("\\", "")  # type: ignore[arg-type]
    assert all(f"{value} *" in every for value in ("100", "1.01")), "seconds and dollars"


def test_machines_read_plain_numbers(busy: Lake) -> None:
    table = list(rows(busy).values())
    (full,) = (one for one in json.loads(render(table, "json")) if one["method"] == "full")
    assert (full["train_seconds"], full["speed_disturbed"]) == (100.0, True)
    assert "*" not in render(table, "csv")


def test_the_report_marks_it_with_a_title(busy: Lake) -> None:
    result = comparison(busy.resolved())
    write_report(busy.project, Content(result.rows, make_picks(result.rows, result.qualities)))
    html = busy.data.report.read_text(encoding="utf-8")
    title = "other programs used 70 % of the processors while it was measured"
    assert f'data-value="100.0" title="{title}">100 *</td>' in html
    assert "while tiny × full was measured." in html
    assert f"(no ratio of speeds; speed disturbed: {SAID})" in html


def test_dagster_marks_it(busy: Lake) -> None:
    from assets.metadata import speed_note, table

    shown = str(table(list(rows(busy).values()), ["method", "train_seconds"]).value).replace("\\", "")
    assert "| full | 100 * |" in shown and "| lora-r8 | 50 |" in shown
    assert shown.endswith("while tiny × full was measured")
    assert "speed disturbed" not in str(table(list(rows(busy).values()), ["method", "peak_memory_gb"]).value)
    assert list(speed_note(BUSY, "cpu: x")) == ["speed disturbed"] and speed_note(QUIET, "cpu: x") == {} == speed_note(
        {}, None
    )


def test_pictures_show_no_disturbed_time() -> None:
    points = [
        row(
            method=f"lora-r{rank}",
            peak_memory_gb=2.0,
            train_seconds=60.0 * rank,
            eval_bits_per_byte=0.9,
            rank=rank,
            **how,
        )
        for rank, how in ((8, {}), (16, {}), (32, {"speed_disturbed": True, "other_cpu_pct": 50.0}))
    ]
    svg = (trade_off(points) or b"").decode()
    assert "lora-r32 *" in svg and "lora-r16 *" not in svg
    drawn = (rank_sweep({"lora": [(one["rank"], one) for one in points]}) or b"").decode()
    known = [{**one, "train_seconds": None} if one["speed_disturbed"] else one for one in points]
    assert drawn == (rank_sweep({"lora": [(one["rank"], one) for one in known]}) or b"").decode()


def test_a_picture_of_nights_leaves_their_minutes_out() -> None:
    nights = [
        {"model": "m", "method": "full", "seed": 1, "finished_at": f"2026-01-0{day}T00:00:00+00:00", "bits_per_byte": 0.9,
         "minutes": minutes, "speed_disturbed": minutes > 5, "other_cpu_pct": 1.0}
        for day, minutes in ((1, 1.0), (2, 9.0), (3, 1.1))
    ]  # fmt: skip
    without = [
        night | {"minutes": None, "speed_disturbed": False} if night["speed_disturbed"] else night for night in nights
    ]
    assert night_by_night(nights) == night_by_night(without)


def test_many_disturbed_rows_are_told_in_one_line() -> None:
    marked = [row(method=f"m{n}", train_seconds=1.0, speed_disturbed=True, other_cpu_pct=20.0 + n) for n in range(5)]
    assert disturbed.note(marked, full_name) == (
        "* speed disturbed: other programs used 20 % of the processors while tiny × m0 was measured, 21 % while tiny × m1 was "
        "measured, 22 % while tiny × m2 was measured, and much while 2 more were"
    )
    assert disturbed.note([row(speed_disturbed=True)], full_name) is None, "it is not shown at all"
