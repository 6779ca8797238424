"""What training runs add to an interval, against simulated truth; their part in verdicts; and the
effect of a seed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.coverage import SHAPES, Case, covered
from pipelines.compare.covers import covers, note
from pipelines.compare.quality import Interval, Qualities, Quality, intervals
from pipelines.compare.ranking import make_picks
from pipelines.compare.report import Content, write_report
from pipelines.compare.seeds import (
    PACKAGED_QUANTIZED_SPREAD,
    PACKAGED_SPREAD,
    Component,
    Sources,
    Spread,
    assumed_spreads,
    component,
    pooled,
    records_variance,
    widening,
)
from pipelines.compare.show import render
from pipelines.compare.table import Row, comparison
from pipelines.evaluate.cell import evaluate
from pipelines.lake.files import read_jsonl
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from pipelines.train.trainer import batches
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.tiny import save_tiny

BITS = math.log(2)

# coverage of intervals


def off(repeats: int) -> float:
    """Three standard errors of a share of 95 % over this many repeats."""
    return 3 * math.sqrt(0.95 * 0.05 / repeats)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1]], ids=lambda shape: shape.name)
def test_intervals_over_three_runs_hold_the_truth_as_often_as_they_say(shape: Any) -> None:
    held = {}
    for number, spread in enumerate((0.0, 0.5, 1.0, 3.0)):
        samples = Case(shape, 10, 3, spread).intervals(300, np.random.default_rng(number))
        assert len(samples) == 300
        held[spread] = covered(samples)
        assert 0.93 - off(300) <= held[spread] <= 0.97 + off(300), held
    assert 0.93 - off(1200) <= sum(held.values()) / 4 <= 0.97 + off(1200), held


def test_one_run_alone_says_nothing_of_the_method_unless_the_spread_is_known() -> None:
    alone, known = (
        Case(SHAPES[0], 10, 1, 3.0, known).intervals(300, np.random.default_rng(1)) for known in (False, True)
    )
    assert covered(alone) < 0.6
    assert 0.93 - off(300) <= covered(known) <= 0.97 + off(300)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [one for one in SHAPES if one.name != "very skewed"], ids=lambda shape: shape.name)
@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("records", [10, 40, 200])
def test_intervals_hold_the_truth_at_every_spread(shape: Any, runs: int, records: int) -> None:
    for number, spread in enumerate((0.0, 0.5, 1.0, 3.0)):
        held = covered(Case(shape, records, runs, spread).intervals(800, np.random.default_rng(number)))
        assert 0.93 - off(800) <= held <= 0.97 + off(800), (spread, held)


# one run, several runs


def cell(nats_per_byte: Any, *, seeds: tuple[int, ...] = (), trained: bool = True) -> Quality:
    """A cell with these nats per byte, shape (runs, records), on records of unequal size."""
    nats = np.atleast_2d(np.asarray(nats_per_byte, dtype=float))
    sizes = np.linspace(40, 400, nats.shape[1])
    return Quality(tuple(f"e{number:02}" for number in range(nats.shape[1])), nats * sizes, sizes, seeds, trained)


def of(*known: Quality, **more: Any) -> tuple[Qualities, list[Row]]:
    names = [f"m{number}" for number in range(len(known))]
    rows = [planted.row(method=name, seeds_ok=len(one.nats)) for name, one in zip(names, known, strict=True)]
    return Qualities({("tiny", name): one for name, one in zip(names, known, strict=True)}, **more), rows


def luck(*shape: int, spread: float = 0.1, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, spread, shape)


def ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    assert interval.low <= interval.value <= interval.high
    return interval.low, interval.high


def width(interval: Interval | None) -> float:
    low, high = ends(interval)
    return high - low


def test_runs_that_agree_leave_the_interval_of_one() -> None:
    once = cell(luck(12))
    thrice = cell(np.repeat(luck(1, 12), 3, axis=0))
    assert ends(once.interval()) == pytest.approx(ends(thrice.interval()))
    one, three = (of(qualities, cell(luck(12, seed=4)))[0] for qualities in (once, thrice))
    rows = [planted.row(method=name) for name in ("m0", "m1")]
    assert ends(one.difference(*rows)) == pytest.approx(ends(three.difference(*rows)))


def test_one_run_has_the_interval_that_it_always_had() -> None:
    """The value from before several runs were more than resampled; published numbers rest on it."""
    interval = cell(luck(12)).interval()
    assert interval is not None
    assert (interval.value, interval.low, interval.high) == pytest.approx(ONE_RUN, rel=1e-12)


ONE_RUN = (1.4422965529764395, 1.3055819665374813, 1.627520614059904)


def test_three_runs_far_apart_have_the_interval_of_t_over_runs() -> None:
    """Where the choice of records adds nothing, the interval is that of three numbers: t with 2
    degrees of freedom."""
    runs = np.array([0.9, 1.0, 1.2])
    (interval,) = intervals([np.outer(runs, np.full(8, 100.0))], np.full(8, 100.0))
    half = 4.302653 * runs.std(ddof=1) / math.sqrt(3) / BITS
    assert interval is not None
    assert (interval.value - interval.low, interval.high - interval.value) == pytest.approx((half, half), rel=1e-3)


def test_components_are_those_of_the_two_way_layout() -> None:
    """Equal sizes, so that the table of residuals gives the mean squares."""
    nats = luck(4, 9) + luck(4, 1, spread=0.3, seed=5)
    rows, columns, mean = nats.mean(axis=1), nats.mean(axis=0), nats.mean()
    between = 9 * ((rows - mean) ** 2).sum() / 3
    within = ((nats - rows[:, None] - columns + mean) ** 2).sum() / 24
    spread = component(nats * 100, np.full(9, 100.0))
    assert spread is not None
    assert spread.variance == pytest.approx((between - within) / 36 / BITS**2)
    assert (spread.mean_square, spread.degrees) == (pytest.approx(between / 36 / BITS**2), 3)
    assert component(nats[:1] * 100, np.full(9, 100.0)) is None
    assert records_variance(nats[0] * 100, np.full(9, 100.0)) == pytest.approx(nats[0].var(ddof=1) / 9 / BITS**2)


def test_runs_that_differ_by_less_than_single_records_explain_add_nothing() -> None:
    nats = luck(3, 40)
    # Every run gets the same mean.
    nats += 1 - nats.mean(axis=1, keepdims=True)
    spread = component(nats, np.ones(40))
    assert spread is not None
    assert spread.variance == 0
    assert widening(40, 1e-4, [spread]).added == 0


def test_equal_seeds_are_compared_seed_by_seed() -> None:
    """The effect of the data's order on both cancels out, which it cannot for different seeds."""
    order = np.array([[0.0], [0.05], [-0.05]])
    each, other = luck(12, spread=0.01) + order, luck(12, spread=0.01, seed=4) + order
    alike, rows = of(cell(each, seeds=(1, 2, 3)), cell(other, seeds=(1, 2, 3)))
    apart, _ = of(cell(each, seeds=(1, 2, 3)), cell(other, seeds=(1, 2, 4)))
    assert 5 * width(alike.difference(*rows)) < width(apart.difference(*rows))
    uneven, _ = of(cell(each, seeds=(1, 2, 3)), cell(other[:2], seeds=(1, 2)))
    assert width(uneven.difference(*rows)) > width(alike.difference(*rows))


def test_the_untouched_model_has_no_runs() -> None:
    """This holds however often it is evaluated; a cell's own runs still count against it."""
    base = cell(np.repeat(luck(1, 12), 3, axis=0), seeds=(1, 2, 3), trained=False)
    tuned = cell(luck(12, seed=4) + np.array([[0.0], [0.2], [-0.2]]), seeds=(1, 2, 3))
    known, rows = of(tuned, base)
    once, _ = of(tuned, cell(luck(12), trained=False))
    assert known.spread(rows[1]) is None
    assert ends(known.difference(*rows)) == pytest.approx(ends(once.difference(*rows)))
    assert width(known.difference(*rows)) > 0.4


# a spread known beforehand


def test_one_run_borrows_the_spread_of_the_models_other_cells() -> None:
    once, other = cell(luck(12)), cell(luck(12, seed=4))
    several = cell(luck(12, seed=5) + np.array([[0.0], [0.1], [-0.1]]), seeds=(1, 2, 3))
    known, rows = of(once, other, several)
    spread = known.spread(rows[0])
    assert spread is not None
    assert (spread.value, spread.degrees, spread.source) == (pytest.approx(0.1 / BITS), 2, "m2")
    measured, method = known.difference(rows[0], rows[1]), known.method_difference(rows[0], rows[1])
    assert measured == of(once, other)[0].difference(rows[0], rows[1]), "the measurements are unchanged"
    assert width(method) > 2 * width(measured)
    assert width(method) > 2 * 1.96 * math.sqrt(2) * 0.1 / BITS, "both borrow"
    assert known.method_difference(rows[0], rows[0]) == Interval(0.0, 0.0, 0.0)
    assert known.basis(rows[:2]) == (
        "one training run each, widened by the spread between training runs seen in m2: 0.1443"
    )
    assert known.basis(rows[2:]) == "three training runs"


def test_a_spread_is_assumed_only_where_no_cell_of_the_model_shows_one() -> None:
    spread = Spread(0.5, 12, "earlier runs")
    assumed = {("tiny", "m0"): spread}
    once, several = cell(luck(12)), cell(luck(12, seed=5) + np.array([[0.0], [0.1], [-0.1]]), seeds=(1, 2, 3))
    alone, rows = of(once, cell(luck(12, seed=4)), assumed=assumed)
    assert alone.spread(rows[0]) == spread
    assert alone.spread(rows[1]) is None
    seen, rows = of(once, several, assumed=assumed)
    assert (model_spread := seen.spread(rows[0])) and model_spread.source == "m1"
    nothing, rows = of(once, cell(luck(12, seed=4)))
    assert nothing.spread(rows[0]) is None
    assert nothing.method_difference(*rows) == nothing.difference(*rows)
    assert nothing.basis(rows) == "one training run each"


def test_spreads_are_pooled_by_their_degrees_of_freedom() -> None:
    assert pooled([]) is None
    spread = pooled([Spread(0.1, 4, "a"), Spread(0.2, 1, "b"), Spread(0.2, 1, "c")])
    assert spread is not None
    assert (spread.value, spread.degrees, spread.source) == (pytest.approx(math.sqrt(0.12 / 6)), 6, "a, b and c")


def test_only_the_packaged_model_has_a_spread_beforehand(lake: Lake) -> None:
    assert assumed_spreads(lake.project.experiments, [("tiny", "full")]) == {}
    from pipelines.lake.paths import PROJECT
    from pipelines.settings import experiments

    shipped = experiments.load(PROJECT / "experiments.yaml")
    cells = [(model, method) for model in shipped.models for method in ("full", "lora-r8", "qlora-r8")]
    assert {cell: spread for cell, spread in assumed_spreads(shipped, cells).items() if cell[0] == MODEL} == {
        (MODEL, "full"): PACKAGED_SPREAD,
        (MODEL, "lora-r8"): PACKAGED_SPREAD,
        (MODEL, "qlora-r8"): PACKAGED_QUANTIZED_SPREAD,
    }
    assert (MODEL.replace("135m", "360m"), "full") not in assumed_spreads(shipped, cells)
    assert (f"{MODEL}-tour", "full") in assumed_spreads(shipped, [(f"{MODEL}-tour", "full")]), "the same weights"


def test_as_many_runs_are_proposed_as_bring_the_half_width_down() -> None:
    sources = Sources(count=40, records=1e-6, runs=2e-4, of_one_run=2e-4)
    needed = sources.runs_needed(0.015)
    assert needed is not None
    halves = {runs: sources._half_width(runs, 2e-4) for runs in (needed - 1, needed)}
    assert halves[needed] <= 0.015 < halves[needed - 1]
    assert sources.runs_needed(0.001) is None, "not by ten runs"
    assert Sources(40, 1e-6, 0.0, None).runs_needed(1.0) is None, "their spread is not known"
    assert sources.records_needed(0.03, 0.015) is None, "more records cannot remove the spread between runs"
    assert Sources(40, 1e-4, 0.0, 0.0).records_needed(0.02, 0.01) == 160


def test_a_component_without_any_variance_widens_nothing() -> None:
    assert widening(12, 0.0, [Component(0.0, 0.0, 2)]).of(0.3) == 0.3
    assert widening(12, 0.0, []).of(0.0) == 0.0


# the tables


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return planted.lake(tmp_path)


def with_runs(lake: Lake, *, spread: float = 0.02) -> Lake:
    """base, full and LoRA once, and two more runs of LoRA that the profile does not name."""
    lake.cell("base", bits=1.0)
    lake.cell("full", bits=0.80, peak_memory_gb=4.0, train_seconds=600.0)
    lake.cell("lora-r8", bits=0.81, peak_memory_gb=2.0, train_seconds=300.0)
    for seed, bits in ((2, 0.81 + spread), (3, 0.81 - spread)):
        lake.cell("lora-r8", bits=bits, seed=seed)
    return lake


def test_runs_of_seeds_that_the_profile_does_not_name_tell_the_spread(lake: Lake) -> None:
    before = {row["method"]: row for row in comparison(lake.resolved()).rows}
    result = comparison(with_runs(lake).resolved())
    rows = {row["method"]: row for row in result.rows}
    assert before["full"]["seed_spread_bits_per_byte"] is None
    assert rows["lora-r8"]["seeds_ok"] == 1
    assert rows["lora-r8"]["eval_bits_per_byte"] == pytest.approx(0.81)
    assert rows["full"]["seed_spread_bits_per_byte"] == pytest.approx(0.02, rel=0.05)
    assert {rows[name]["seed_spread_source"] for name in ("full", "lora-r8")} == {"lora-r8"}
    assert rows["base"]["seed_spread_source"] is None
    assert rows["lora-r8"]["delta_full_low"] > 0, "between these runs"
    difference = result.qualities.method_difference(rows["lora-r8"], rows["full"])
    assert difference is not None
    assert difference.low < 0 < difference.high, "but not between the methods"


def test_a_run_of_another_recipe_tells_nothing(lake: Lake) -> None:
    changed = with_runs(lake).configured(methods={"lora-r8": {"rank": 16}})
    assert {row["seed_spread_source"] for row in comparison(changed.resolved()).rows} == {None}


def test_picks_say_what_they_rest_on(lake: Lake) -> None:
    result = comparison(with_runs(lake).resolved())
    best, value, _ = make_picks(result.rows, result.qualities)
    assert (best["verdict"], best["candidates"]) == ("no clear winner", "full, lora-r8")
    widened = "(one training run each, widened by the spread between training runs seen in lora-r8: 0.0198)"
    assert best["reason"].count("training run ") == value["reason"].count("training run ") == 1
    assert widened in best["reason"]
    assert widened in value["reason"]


def test_table_and_report_say_once_what_intervals_cover(lake: Lake) -> None:
    rows = comparison(with_runs(lake).resolved()).rows
    caveat = "of one training run each: another seed may end elsewhere"
    for form in ("text", "markdown"):
        assert render(rows, form).count(caveat) == 1
    write_report(lake.project, Content(rows))
    assert lake.data.report.read_text(encoding="utf-8").count(caveat) == 1
    assert note([planted.row(trainable_params=5, seeds_ok=n) for n in (2, 3)]) == (
        "intervals are over the held-out records and the training runs, two to three training runs each"
    )
    assert note([planted.row(trainable_params=0)]) is None
    assert [covers(planted.row(seeds_ok=n)) for n in (1, 3, 12)] == [
        "one training run", "three training runs", "12 training runs",
    ]  # fmt: skip


# effects of a seed


def test_a_seed_decides_the_order_and_nothing_else_of_the_steps() -> None:
    examples: list[Any] = [f"e{number}" for number in range(20)]
    one, other, again = (batches.steps(examples, epochs=2, per_step=4, seed=seed) for seed in (1, 2, 1))
    assert one == again != other
    flat = [[name for step in steps for name in step] for steps in (one, other)]
    assert set(flat[0][:20]) == set(flat[1][:20]) == set(examples)
    assert flat[0][:20] != flat[0][20:]


def final_weights(project: TinyProject, method: str, seed: int) -> tuple[Attempt, dict[str, Any]]:
    from safetensors.torch import load_file

    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    attempt, _ = train(project.resolved(), CellKey(MODEL, method, seed), force=True, hooks=hooks)
    assert attempt.status == "ok", attempt.result.status_detail
    (file,) = attempt.model_folder.glob("*.safetensors")
    return attempt, load_file(file)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(bool((one[name] == other[name]).all()) for name in one)


def with_steps_of(project: TinyProject, count: int, **training: Any) -> TinyProject:
    settings = {"examples_per_step": count, "epochs": 1, "micro_batch_tokens": 4096, **training}
    project.change(profiles={"local": {"max_train_examples": 4, "training": settings}})
    return project


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    return clean_for(with_steps_of(project, 4))


@pytest.mark.slow
def test_a_seed_changes_the_order_of_the_data(cleaned: TinyProject) -> None:
    """With all examples in one step there is no order, and a model without dropout ends equal to
    the last bit."""
    assert same(final_weights(cleaned, "full", 1)[1], final_weights(cleaned, "full", 2)[1])
    ordered = with_steps_of(cleaned, 1)
    assert not same(final_weights(ordered, "full", 1)[1], final_weights(ordered, "full", 2)[1])


@pytest.mark.slow
def test_a_seed_changes_dropout(cleaned: TinyProject, tmp_path: Path) -> None:
    cleaned.change(models={MODEL: {"source": {"path": str(save_tiny(tmp_path / "gpt2", "gpt2"))}}})
    assert not same(final_weights(cleaned, "full", 1)[1], final_weights(cleaned, "full", 2)[1])


def test_a_seed_changes_the_first_weights_of_an_adapter(cleaned: TinyProject) -> None:
    """At a rate near zero an adapter is saved as it started; its A is random, its B is zero."""
    slow = with_steps_of(cleaned, 4, learning_rate=1e-30)
    one, first = final_weights(slow, "lora-r8", 1)
    other, second = final_weights(slow, "lora-r8", 2)
    drawn = [name for name in first if "lora_A" in name]
    assert drawn
    assert not any(bool((first[name] == second[name]).all()) for name in drawn)
    assert one.spec.fingerprints == other.spec.fingerprints
    assert one.result.measured["train_examples"] == other.result.measured["train_examples"] == 4


@pytest.mark.slow
def test_a_seed_changes_nothing_that_a_cell_is_measured_on(cleaned: TinyProject) -> None:
    (one, first), (other, _) = (final_weights(cleaned, "lora-r8", seed) for seed in (1, 2))
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    evaluations = [evaluate(cleaned.resolved(), attempt.key, hooks=hooks)[0] for attempt in (one, other)]
    assert len({evaluation.result.measured["eval_set"] for evaluation in evaluations}) == 1
    examples = [
        [row["example_id"] for row in read_jsonl(evaluation.folder / "losses.jsonl")] for evaluation in evaluations
    ]
    assert examples[0] == examples[1] != []
    assert same(first, final_weights(cleaned, "lora-r8", 1)[1]), "and the same seed gives equal bits"
