"""Columns for the metrics and benchmarks of the settings: their names, their places, and the
refused names."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.configured import (
    BENCHMARKS,
    METRICS,
    answers_for,
    benchmark_columns,
    comparison_for,
    comparison_of,
    metric_columns,
    shares_of,
)
from pipelines.compare.columns.evaluation import EVALUATION_ANSWERS
from pipelines.compare.show import as_csv, as_json, render, wide
from pipelines.lake.paths import DataRoot
from pipelines.lake.schema import flag
from pipelines.lake.warehouse import arrow_table, connect, publish
from pipelines.settings.column_names import BENCHMARK_ENDINGS, FIXED, METRIC_ENDINGS, column_name, require_columns
from tests.fakes import planted


def named(metrics: tuple[str, ...] = (), benchmarks: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(metric_names=metrics, benchmark_names=benchmarks)


def test_nothing_named_adds_nothing() -> None:
    assert comparison_for(named()) == COMPARISON
    assert comparison_of(COMPARISON.by_name) == COMPARISON


def test_the_columns_of_each_stand_behind_all_fixed_ones() -> None:
    table = comparison_for(named(("exact_match", "has-number"), ("gsm8k",)))
    fixed = len(COMPARISON.columns)
    assert table.columns[:fixed] == COMPARISON.columns
    assert [column.name for column in table.columns[fixed:]] == [
        *(f"metric_exact_match{end}" for end in METRIC_ENDINGS),
        *(f"metric_has_number{end}" for end in METRIC_ENDINGS),
        *(f"benchmark_gsm8k{end}" for end in BENCHMARK_ENDINGS),
    ]
    assert {column.type for column in table.columns[fixed:]} == {"DOUBLE"}
    assert [column.name for column in answers_for(named(("has-number",))).columns][-1] == "metric_has_number"


def test_endings_and_columns_agree() -> None:
    """The settings refuse clashes by these endings; a column with an unknown ending could clash
    unseen."""
    assert tuple(one.name.removeprefix("metric_x") for one in metric_columns("x")) == METRIC_ENDINGS
    assert tuple(one.name.removeprefix("benchmark_x") for one in benchmark_columns("x")) == BENCHMARK_ENDINGS


def test_the_fixed_columns_that_a_name_might_meet_are_known() -> None:
    fixed = [column.name for column in COMPARISON.columns if column.name.startswith(("metric_", "benchmark_"))]
    assert sorted(fixed) == sorted(FIXED), "name it in column_names.FIXED, too"
    assert [column.name for column in EVALUATION_ANSWERS.columns if column.name.startswith("metric_")] == []


@pytest.mark.parametrize("name", ["seconds", "Seconds", "accuracy", "accuracy-low"])
def test_a_name_of_a_fixed_column_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"got the name '{name}', whose column benchmark_\w+ is there for all benchmarks"
    ):
        require_columns("benchmark", [name], BENCHMARK_ENDINGS)


def test_each_says_in_one_sentence_what_it_is() -> None:
    columns = comparison_for(named(("a" * 60,), ("b" * 60,))).columns[len(COMPARISON.columns) :]
    assert len({column.meaning for column in columns}) == len(columns)
    for column in columns:
        assert column.meaning.endswith(".") and ". " not in column.meaning, column
        assert column.group and column.source and column.unit and column.digits and len(column.heading) <= 32, column


def test_a_table_holds_no_name_twice() -> None:
    with pytest.raises(ValueError, match="has a column 'Chrf' already"):
        COMPARISON.with_columns(flag("Chrf", "Whether it is."))


# names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ('a"b; drop', "expected a letter or digit of ASCII first"),
        ("", "expected a letter or digit"),
        ("_x", "expected a letter or digit"),
        ("정확도", "expected a letter or digit"),
        ("a\nb", "expected a letter or digit"),
        ("a\n", "expected a letter or digit"),
        ("x" * 300, "of 300 characters; a metric names a column: expected at most 60"),
    ],
)
def test_a_name_that_makes_no_column_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        require_columns("metric", [name], METRIC_ENDINGS)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (("has-number", "has_number"), "metric_has_number"),
        (("a.b", "a-b"), "metric_a_b"),
        (("x", "X"), "metric_x"),
        (("x", "x"), "metric_x"),
        (("x", "x_low"), "metric_x_low"),
        (("x_base", "x"), "metric_x_base"),
    ],
)
def test_two_names_of_one_column_are_refused(names: tuple[str, ...], column: str) -> None:
    with pytest.raises(ValueError, match=rf"both make the column {column};"):
        require_columns("metric", names, METRIC_ENDINGS)


def test_a_benchmark_has_more_columns_to_clash_with() -> None:
    require_columns("metric", ["x", "x_vs_base"], METRIC_ENDINGS)
    with pytest.raises(ValueError, match="both make the column benchmark_x_vs_base;"):
        require_columns("benchmark", ["x", "x_vs_base"], BENCHMARK_ENDINGS)


def test_a_metric_and_a_benchmark_may_share_a_name() -> None:
    names = [column.name for column in comparison_for(named(("x",), ("x",))).columns]
    assert len(set(names)) == len(names)
    assert column_name("benchmark", "Kobest.HellaSwag") == "benchmark_kobest_hellaswag"


# readers


def _row(names: Any, **values: Any) -> dict[str, Any]:
    return comparison_for(names).empty() | {k: v for k, v in planted.row().items() if v is not None} | values


def test_published_typed_and_read_back(tmp_path: Path) -> None:
    names = named(("is_low", "has"), ("x",))
    table = comparison_for(names)
    rows = [_row(names, metric_has=0.5, metric_is_low_high=1, benchmark_x_vs_base=-0.25), _row(names)]
    publish(DataRoot(tmp_path), {"comparison": arrow_table(rows, table)})
    with connect(DataRoot(tmp_path)) as db:
        columns = db.execute(
            "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = 'comparison' ORDER BY column_index"
        ).fetchall()
        values = db.execute("SELECT metric_has, metric_is_low_high, benchmark_x_vs_base FROM comparison").fetchall()
    added = table.columns[len(COMPARISON.columns) :]
    assert columns[-len(added) :] == [(one.name, "DOUBLE", one.description) for one in added]
    assert values == [(0.5, 1.0, -0.25), (None, None, None)]
    assert isinstance(values[0][1], float)


def test_a_reader_knows_a_column_by_the_published_names() -> None:
    table = comparison_for(named(("is-high", "other"), ("gsm8k",)))
    known = comparison_of(table.by_name)
    assert list(known.by_name) == list(table.by_name)
    assert known["metric_is_high"].meaning == "Share of the answers that pass the metric is_high."
    assert known["benchmark_gsm8k_vs_base_low"] == table["benchmark_gsm8k_vs_base_low"]


def test_a_column_of_nobody_is_left_out() -> None:
    assert comparison_of(
        ["model", "metricx", "newer", "metric_", "benchmark"]
    ).by_name.keys() == COMPARISON.by_name.keys() | {"metric_"}


def test_a_share_is_told_from_what_stands_beside_it() -> None:
    published = [
        *COMPARISON.by_name,
        "metric_low",
        "metric_low_low",
        "metric_low_high",
        "metric_x",
        "benchmark_y",
        "benchmark_y_base",
    ]
    assert [column.name for column in shares_of(published, METRICS)] == ["metric_low", "metric_x"]
    assert [column.name for column in shares_of(published, BENCHMARKS)] == ["benchmark_y"], "of code with fewer columns"


def test_every_form_of_the_table_shows_them() -> None:
    names = named(("has-number",), ("gsm8k",))
    rows = [_row(names, metric_has_number=0.51239, benchmark_gsm8k=0.25)]
    shown = wide(rows, "text")
    assert "metrics of one's own task  metric_has_number " in shown
    (line,) = [line for line in shown.splitlines() if " metric_has_number " in line]
    assert line.split()[-1] == "0.512" and "share, 0 to 1" in line
    assert "benchmark_gsm8k_vs_base_high" in shown
    headings, _, values, *_ = render(rows, "text").splitlines()
    assert headings.split()[-2:] == ["has_number", "gsm8k"] and values.split()[-2:] == ["0.512", "0.250"]
    assert json.loads(as_json(rows))[0]["metric_has_number"] == 0.51239
    (read,) = csv.DictReader(io.StringIO(as_csv(rows)))
    assert read["benchmark_gsm8k"] == "0.25" and read["metric_has_number_base"] == ""
