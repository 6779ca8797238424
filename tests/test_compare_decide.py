"""The method to use within limits of memory, time and lost quality, and the cell to run next where
no measured one is sure."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.compare.decide import Decision, Limits, decide
from pipelines.compare.table import Row, comparison
from tests.fakes import planted
from tests.fakes.planted import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """base 1.0; full 0.80 with 4 GB and 10 minutes; LoRA 0.81 with half of both; QLoRA 0.9 with 1
    GB."""
    made = planted.lake(tmp_path)
    made.cell("base", bits=1.0)
    made.cell("full", bits=0.80, peak_memory_gb=4.0, train_seconds=600.0)
    made.cell("lora-r8", bits=0.81, peak_memory_gb=2.0, train_seconds=300.0)
    made.cell("qlora-r8", bits=0.9, peak_memory_gb=1.0, train_seconds=360.0)
    return made


def ask(lake: Lake, predicted: dict[str, float] | None = None, changed: Row | None = None, **limits: Any) -> Decision:
    """The decision; `changed` overrides columns of every row."""
    result = comparison(lake.resolved())
    for row in result.rows:
        row |= changed or {}
        row["estimated_memory_gb"] = (predicted or {}).get(row["method"])
    return decide(result, Limits(**limits))


def answer(lake: Lake, **limits: Any) -> tuple[str, str | None]:
    decision = ask(lake, **limits)
    return decision.verdict, decision.method


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"memory_gb": 16, "minutes": 60, "max_loss": 0.02}, ("use", "lora-r8")),
        ({"memory_gb": 16, "minutes": 60, "max_loss": 0.0}, ("use", "full")),
        ({"memory_gb": 1.5, "minutes": 60, "max_loss": 0.2}, ("use", "qlora-r8")),
        ({}, ("use", "qlora-r8")),
        ({"memory_gb": 1.5, "minutes": 60, "max_loss": 0.02}, ("nothing fits", None)),
        ({"minutes": 1}, ("nothing fits", None)),
    ],
)
def test_the_cheapest_cell_that_is_sure_to_stay_within_all_limits(lake: Lake, limits: Row, expected: Any) -> None:
    assert answer(lake, **limits) == expected


def test_the_answer_has_its_interval_and_what_each_limit_left(lake: Lake) -> None:
    decision = ask(lake, memory_gb=16, minutes=60, max_loss=0.02)
    assert decision.loss is not None
    assert (decision.loss.value, decision.loss.low > 0, decision.loss.high < 0.02) == (pytest.approx(0.01), True, True)
    assert decision.reasons[0].startswith("0.8100 bits per byte, +0.0100 (95 % interval +0.00")
    assert decision.reasons[1:] == ("2.00 GB at its peak of 16", "5.0 minutes of 60")


def test_a_cell_with_smaller_micro_batches_is_no_cheaper_but_may_be_all_that_fits(lake: Lake) -> None:
    lake.cell("full", bits=0.80, peak_memory_gb=0.8, train_seconds=60.0, micro_batch_tokens=256)
    decision = ask(lake, memory_gb=16)
    assert (decision.method, decision.reasons[-1]) == (
        "qlora-r8",
        "1 more cell is within the limits, but with other micro_batch_tokens than 2048, so that costs are not compared",
    )
    assert ask(lake, memory_gb=0.9).method == "full"


def test_what_fails_is_told_of_every_cell(lake: Lake) -> None:
    assert ask(lake, memory_gb=1.5, minutes=60, max_loss=0.02).reasons[:2] == (
        "tiny × full: 4.00 GB of 1.5",
        "tiny × lora-r8: 2.00 GB of 1.5",
    )


def test_where_records_cannot_tell_it_says_how_many_would(lake: Lake) -> None:
    lake.cell("full", bits=0.80, peak_memory_gb=4.0)
    lake.cell("lora-r8", bits=0.81, peak_memory_gb=2.0, noise=0.05)
    decision = ask(lake, memory_gb=3, max_loss=0.02)
    assert (decision.verdict, decision.method) == ("run next", "lora-r8")
    assert "not sure against 0.02" in decision.reasons[0]
    assert decision.loss is not None
    needed = 12 * ((decision.loss.high - decision.loss.value) / (0.02 - decision.loss.value)) ** 2
    assert f"from 12 to about {round(needed + 0.5)}" in decision.reasons[1]


def test_the_largest_cell_predicted_to_fit_is_run_next(tmp_path: Path) -> None:
    lake = planted.lake(tmp_path)
    predicted = {"full": 20.0, "lora-r8": 9.0, "qlora-r8": 5.0}
    decision = ask(lake, predicted, memory_gb=16, minutes=60, max_loss=0.02)
    assert (decision.verdict, decision.method) == ("run next", "lora-r8")
    assert "missing, 9.00 GB predicted of 16 (the largest of 2 that may fit)" in decision.reasons[0]
    lake.trained("lora-r8", "out_of_memory")
    assert ask(lake, predicted, memory_gb=16).method == "qlora-r8"
    assert ask(lake, predicted, memory_gb=4).verdict == "nothing fits"


def test_a_stale_cell_is_no_answer_but_may_be_run_next(lake: Lake) -> None:
    changed = lake.configured(methods={"lora-r8": {"rank": 16}})
    decision = ask(changed, memory_gb=3, minutes=60, max_loss=0.02)
    assert (decision.verdict, decision.method) == ("run next", "lora-r8")
    assert "measured before recipe changed, 2.00 GB measured of 3" in decision.reasons[0]


# grounds of a verdict


def test_a_verdict_says_how_many_runs_and_whose_rates_it_rests_on(lake: Lake) -> None:
    reason = ask(lake, memory_gb=3, max_loss=0.02).reasons[0]
    assert reason.endswith("; one training run each, at one shared learning rate")
    assert ask(lake, max_loss=0.0).reasons[0].endswith("; one training run, at one shared learning rate")
    tuned = {"learning_rate_source": "search", "learning_rate_at_edge": False}
    assert ask(lake, changed=tuned, memory_gb=3, max_loss=0.02).reasons[0].endswith("; one training run each")


@pytest.mark.parametrize("method", ["full", "lora-r8"])
def test_no_cell_is_sure_where_a_rate_lies_at_the_edge_of_those_tried(lake: Lake, method: str) -> None:
    """The rate of the best or of the chosen cell; without a limit of loss, quality decides
    nothing."""
    measured: Row = {"full": {"bits": 0.8, "peak_memory_gb": 4.0}, "lora-r8": {"bits": 0.81, "peak_memory_gb": 2.0}}
    lake.cell(method, **measured[method], train_seconds=600.0, learning_rate=2e-3, learning_rate_at_edge=True)
    decision = ask(lake, memory_gb=3, max_loss=0.02)
    assert (decision.verdict, decision.method) == ("run next", method)
    assert decision.reasons[0].startswith("its learning rate, 0.002, lies at the edge of those tried")
    assert f"`featherweight train tiny {method}`" in decision.reasons[1]
    assert answer(lake, memory_gb=3) == ("use", "qlora-r8")


def test_an_edge_of_a_cell_that_is_clearly_worse_does_not_matter(lake: Lake) -> None:
    lake.cell("qlora-r8", bits=0.9, peak_memory_gb=1.0, learning_rate=2e-3, learning_rate_at_edge=True)
    assert answer(lake, memory_gb=3, max_loss=0.02) == ("use", "lora-r8")


def test_a_time_that_others_disturbed_decides_no_cost(lake: Lake) -> None:
    """QLoRA is cheapest by memory × time; without its time, LoRA is the cheapest timed one."""
    lake.cell("qlora-r8", bits=0.9, peak_memory_gb=1.0, train_seconds=360.0, other_cpu_pct=70.0)
    decision = ask(lake, memory_gb=3)
    assert (decision.verdict, decision.method) == ("use", "lora-r8")
    assert decision.reasons[-1] == (
        "1 more cell is within the limits, but timed beside other programs, so that costs are not compared"
    )
    alone = ask(lake, memory_gb=1.5, minutes=60)
    assert alone.method == "qlora-r8", "within the limit of time all the same"
    assert alone.reasons[-1].startswith("other programs ran beside it")


def test_a_time_over_the_limit_that_others_disturbed_is_measured_again(lake: Lake) -> None:
    lake.cell("qlora-r8", bits=0.9, peak_memory_gb=1.0, train_seconds=600.0, other_cpu_pct=70.0)
    decision = ask(lake, memory_gb=1.5, minutes=8)
    assert (decision.verdict, decision.method) == ("run next", "qlora-r8")
    assert "took 10.0 minutes beside other programs" in decision.reasons[0]
    assert "`featherweight train tiny qlora-r8 --force`" in decision.reasons[1]
    lake.cell("qlora-r8", bits=0.9, peak_memory_gb=1.0, train_seconds=600.0, other_cpu_pct=1.0)
    assert ask(lake, memory_gb=1.5, minutes=8).verdict == "nothing fits"


def test_more_runs_are_next_where_runs_differ_more_than_records(lake: Lake) -> None:
    """The advice names the minutes of three more runs of LoRA and of full, each with training and
    evaluation."""
    for seed, bits in ((2, 0.813), (3, 0.807)):
        lake.cell("lora-r8", bits=bits, seed=seed, noise=0.001)
    parts: Row = {"noise": 0.001, "load_seconds": 0.0}
    lake.cell("full", bits=0.80, peak_memory_gb=4.0, train_seconds=600.0, **parts)
    lake.cell("lora-r8", bits=0.81, peak_memory_gb=2.0, train_seconds=300.0, **parts)
    decision = ask(lake, memory_gb=3, max_loss=0.02)
    assert (decision.verdict, decision.method) == ("run next", "lora-r8")
    assert (
        "one training run each, widened by the spread between training runs seen in lora-r8: 0.003"
        in decision.reasons[0]
    )
    assert decision.reasons[1].startswith(
        "the training runs differ more than the choice of records does: 4 runs of lora-r8 and full"
    )
    assert "about 45 more minutes" in decision.reasons[1]


def test_three_runs_settle_what_one_could_not(tmp_path: Path) -> None:
    made = planted.lake(tmp_path, profiles={"local": {"seeds": [1, 2, 3]}})
    for seed, off in ((1, 0.0), (2, 0.002), (3, -0.002)):
        made.cell("base", bits=1.0, seed=seed)
        made.cell("full", bits=0.80 - off, peak_memory_gb=4.0, seed=seed, noise=0.001)
        made.cell("lora-r8", bits=0.81 + off, peak_memory_gb=2.0, seed=seed, noise=0.001)
    decision = ask(made, memory_gb=3, max_loss=0.03)
    assert (decision.verdict, decision.method) == ("use", "lora-r8")
    assert decision.reasons[0].endswith("; three training runs each, at one shared learning rate")
    assert decision.loss is not None
    assert decision.loss.high - decision.loss.low == pytest.approx(2 * 4.303 * 0.004 / 3**0.5, rel=0.1)


def test_where_the_spread_is_not_known_runs_that_would_tell_are_named_too(lake: Lake) -> None:
    lake.cell("full", bits=0.80, peak_memory_gb=4.0)
    lake.cell("lora-r8", bits=0.81, peak_memory_gb=2.0, noise=0.05)
    reasons = ask(lake, memory_gb=3, max_loss=0.02).reasons
    assert reasons[1].startswith("raise max_eval_examples from 12 to about ")
    assert reasons[2].startswith(
        "how far its training runs lie apart is not known: 3 runs of lora-r8 and full would tell"
    )


def test_the_command_and_its_exit_codes(lake: Lake, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(lake.data.root))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(lake.data.root / "experiments.yaml"))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    assert main(["decide", "--memory", "16", "--minutes", "60", "--max-loss", "0.02"]) == 0
    assert capsys.readouterr().out.startswith("use tiny × lora-r8\n  0.8100 bits per byte")
    assert main(["decide", "--minutes", "1"]) == 3
    assert capsys.readouterr().out.startswith("no configured cell stays within these limits\n")
    with pytest.raises(SystemExit) as ended:
        main(["decide", "--memory", "-1"])
    assert ended.value.code == 2
