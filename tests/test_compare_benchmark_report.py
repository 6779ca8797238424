"""The report's section on benchmarks, from published rows."""

from types import SimpleNamespace
from typing import Any

from pipelines.compare import benchmark_report
from pipelines.compare.columns.configured import comparison_for


def row(names: Any, method: str, **values: Any) -> dict[str, Any]:
    return {**comparison_for(names).empty(), "model": "m", "method": method, "status": "ok", **values}


def shares(task: str, share: float, change: tuple[float, float, float] | None = None) -> dict[str, float]:
    own = f"benchmark_{task}"
    row = {own: share, f"{own}_low": share - 0.1, f"{own}_high": share + 0.1, f"{own}_base": 0.6}
    ends = dict(zip(("", "_low", "_high"), change, strict=True)) if change else {}
    return row | {f"{own}_vs_base{end}": value for end, value in ends.items()}


def test_each_share_stands_beside_the_untouched_models_with_a_verdict_on_the_difference() -> None:
    names = SimpleNamespace(metric_names=(), benchmark_names=("basics_en", "gsm8k"))
    rows = [
        row(names, "base", **shares("basics_en", 0.6)),
        row(
            names,
            "full",
            **shares("basics_en", 0.4, (-0.2, -0.31, -0.05)),
            status_detail="benchmark gsm8k unavailable: <b>&",
        ),
        row(names, "lora", **shares("basics_en", 0.62, (0.02, -0.03, 0.08))),
        row(names, "tuned", **shares("basics_en", 0.8, (0.2, 0.05, 0.31))),
        row(names, "away", status="missing", status_detail="no benchmark at all"),
    ]
    page = benchmark_report.section(rows)
    assert page is not None
    for words in (
        "40 % (30 to 50)",
        "-20.0 (-31.0 to -5.0)",
        "+2.0 (-3.0 to +8.0)",
        "not told apart",
        "worse",
        "better",
    ):
        assert words in page, words
    assert (
        page.count("% of the questions") == 1
        and "gsm8k unavailable: &lt;b&gt;&amp;" in page
        and "no benchmark" not in page
    )
    assert page.count("away") == 0, "nothing was measured of it"
    assert [one["benchmark"] for one in benchmark_report.long_form(rows)] == ["basics_en"] * 4


def test_where_nothing_was_asked_there_is_no_part() -> None:
    names = SimpleNamespace(metric_names=("exact_match",), benchmark_names=("gsm8k",))
    assert benchmark_report.section([]) is None
    assert benchmark_report.section([row(names, "base", metric_exact_match=0.5)]) is None
