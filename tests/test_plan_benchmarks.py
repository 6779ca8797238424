"""Predicted minutes of benchmarks."""

from dataclasses import replace
from typing import Any

import pytest

from pipelines.plan.plan import tokens_of
from pipelines.plan.seconds import BenchmarkWork, Past, Rate, Work, forecast
from pipelines.settings.evaluation import Benchmark

RECIPE: dict[str, Any] = {"kind": "full", "quantization": None, "gradient_checkpointing": False}
WORK = Work("m", "full", RECIPE, 100, 6000, 50)
ROW = Past(
    WORK,
    "card",
    steps=60,
    rest=10,
    evaluated=5,
    benchmarks={"known": (8.0, 40, None), "limited": (8.0, 40, 40), "short": (8.0, 40, 50)},
)


def seconds(*benchmarks: BenchmarkWork, past: Any = (ROW,), rate: Rate | None = None) -> tuple[float, str]:
    estimate = forecast(replace(WORK, benchmarks=benchmarks), past, "card", rate)
    assert estimate is not None
    return estimate.seconds, estimate.source


def test_a_benchmark_takes_what_it_took_and_an_unknown_one_goes_by_flops() -> None:
    assert seconds() == (75.0, "measured")
    assert seconds(BenchmarkWork("known", None, 1e9)) == (83.0, "measured")
    assert seconds(BenchmarkWork("known", 10, 1e9)) == (77.0, "measured"), "a quarter of its questions"
    assert seconds(BenchmarkWork("known", 400, 1e9)) == (83.0, "measured"), "there are no more"
    assert seconds(BenchmarkWork("short", 400, 1e9)) == (83.0, "measured"), "there are no more: 50 were asked for"
    assert seconds(BenchmarkWork("limited", 80, 1e9)) == (91.0, "measured"), "twice as many as were asked for then"
    assert seconds(BenchmarkWork("limited", None, 300.0)) == (78.0, "measured; guessed: limited"), (
        "how many there are is not known"
    )
    # The row's steps did 100 FLOP/s.
    assert seconds(BenchmarkWork("new", None, 300.0)) == (78.0, "measured; guessed: new")
    without, source = seconds(past=(), rate=Rate(10.0, "stated"))
    assert seconds(BenchmarkWork("new", None, 300.0), past=(), rate=Rate(10.0, "stated")) == (without + 30.0, source)


def test_tokens_of_a_set_come_from_its_texts_and_those_of_the_harness_are_usual_ones() -> None:
    whole, half = tokens_of(Benchmark(task="basics_en")), tokens_of(Benchmark(task="basics_en", limit=33))
    assert 1000 < whole < 2500 and half == pytest.approx(whole / 2, rel=0.1)
    assert tokens_of(Benchmark(task="basics_en", shots=5)) > 2 * whole
    assert tokens_of(Benchmark(task="gsm8k", limit=10)) == 4000 and tokens_of(Benchmark(task="gsm8k")) == 400_000
