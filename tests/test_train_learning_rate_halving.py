"""Successive halving over learning rates.

Within its cap it finds the best of a list, or says that it cannot; it goes beyond the ends of the
list.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import rates as benchmark
from pipelines.settings.learning_rates import beyond, grid_of
from pipelines.settings.methods import Traits
from pipelines.train.trainer.halving import FEWEST_STEPS, Trial, chosen, halve, middle, rate_share, rounds

LORA = grid_of(Traits("lora", {"peft_type": "LORA"}))
Loss = Callable[[float, int], float | None]


def valley(best: float) -> Loss:
    """Losses that fall towards `best` from both sides, and with more steps."""
    return lambda rate, steps: 1 + abs(math.log(rate / best)) + 1 / steps


def searched(budget: int, measure: Loss, rates: list[float] = LORA) -> list[Trial]:
    return halve(rates, budget, measure)


@pytest.mark.parametrize("best", LORA)
def test_with_steps_enough_it_finds_whichever_is_the_best(best: float) -> None:
    trials = searched(200, valley(best))
    assert chosen(trials).rate == best
    assert len({trial.steps for trial in trials}) > 1, "a second round with more steps"
    longest = [trial.rate for trial in trials if trial.steps == max(one.steps for one in trials)]
    assert best in longest and len(longest) == 2


@pytest.mark.parametrize("best", [1e-6, 2e-5, 1e-3, 2e-2, 1.0])
@pytest.mark.parametrize("rates", [LORA, LORA[:3], grid_of(Traits("adapter", {"peft_type": "VERA"}))])
def test_never_more_steps_than_the_cap_and_never_a_trial_of_too_few(best: float, rates: list[float]) -> None:
    for budget in range(400):
        trials = searched(budget, valley(best), rates)
        assert sum(trial.steps for trial in trials) <= budget
        assert all(trial.steps >= FEWEST_STEPS for trial in trials)
        assert bool(trials) is (budget >= 3 * FEWEST_STEPS)
        assert len({(trial.rate, trial.steps) for trial in trials}) == len(trials), "none is computed twice"


def test_a_small_cap_tries_the_default_and_two_larger_rates() -> None:
    assert [trial.rate for trial in searched(9, valley(6.3e-4))] == [2e-4, 6.3e-4, 2e-3]
    assert rounds(7, 8) == [] and rounds(7, 9) == [3] and rounds(7, 10**6) == [7, 4, 2]
    assert rounds(7, 25) == [4, 2] and rounds(7, 21) == [3, 2]
    assert middle(LORA, 5) == LORA[1:6] and middle(LORA, 6) == LORA[1:] and middle(LORA, 7) == LORA


@pytest.mark.parametrize(("best", "more"), [(6.3e-5, [6.3e-5, 2e-5]), (2e-5, [6.3e-5, 2e-5]), (2e-2, [2e-2, 6.3e-2])])
def test_where_the_best_lies_at_an_end_the_next_rates_are_tried(best: float, more: list[float]) -> None:
    trials = searched(25, valley(best))
    assert [trial.rate for trial in trials] == [2e-4, 6.3e-4, 2e-3, 6.3e-3, *more]
    assert chosen(trials).rate == best


def test_the_two_best_have_what_is_left() -> None:
    def measure(rate: float, steps: int) -> float:
        return abs(math.log(rate / (1.8e-3 if steps < 6 else 6.3e-4)))

    trials = searched(25, measure)
    assert [(trial.rate, trial.steps) for trial in trials[4:]] == [(2e-3, 6), (6.3e-4, 6)]
    assert chosen(trials).rate == 6.3e-4, "the longer trial decides"


def test_past_the_end_of_the_list_lie_rates_that_it_does_not_name() -> None:
    trials = searched(200, valley(0.2))
    assert max(trial.rate for trial in trials) == pytest.approx(0.2, rel=0.02) and len(LORA) == 7
    assert beyond([1.0, 10.0], above=True) == 100 and beyond([1.0, 10.0], above=False) == pytest.approx(0.1)


def test_rates_that_diverge_drop_out() -> None:
    def measure(rate: float, steps: int) -> float | None:
        return None if rate > 1e-3 or (rate > 3e-4 and steps > 10) else 1 / rate

    assert chosen(searched(200, measure)).rate == 2e-4
    assert chosen([Trial(1.0, 2.0, 3), Trial(2.0, 1.0, 3), Trial(2.0, None, 6)]).rate == 2.0
    everything = searched(60, lambda _rate, _steps: None)
    assert everything and chosen(everything).loss is None


def test_the_lists_rise_by_even_factors_and_hold_what_short_runs_want() -> None:
    full, vera = grid_of(Traits("full")), grid_of(Traits("adapter", {"peft_type": "VERA"}))
    ia3, lora = grid_of(Traits("adapter", {"peft_type": "IA3"})), grid_of(Traits("adapter", {"peft_type": "LORA"}))
    assert full[0] < 2e-5 < 1e-4 < full[-1] and LORA[0] < 2e-4 < 1e-3 < LORA[-1] and lora == LORA
    assert len(full) == 7 and 5e-3 in ia3
    for rates, factor in ((full, 10**0.5), (LORA, 10**0.5), (ia3, 10**0.5), (vera, 10)):
        assert all(high / low == pytest.approx(factor, rel=0.05) for low, high in pairwise(rates))
    assert vera[-1] / vera[0] > 0.99 * full[-1] / full[0]


def test_a_trial_warms_up_and_stays_at_its_rate() -> None:
    shares = [rate_share(step, total=4, warmup_share=0.1) for step in range(4)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert [rate_share(step, total=40, warmup_share=0.1) for step in (0, 3, 4, 39)] == pytest.approx([0.2, 0.8, 1, 1])


def test_the_benchmark_says_whether_auto_is_within_a_percent_of_the_sweep() -> None:
    def run(rate: float, loss: float | None, **measured: float) -> benchmark.Run:
        attempt: Any = SimpleNamespace(status="ok", result=SimpleNamespace(measured=measured))
        return benchmark.Run(rate, loss, attempt)

    sweep = [run(1e-4, 1.5), run(1e-3, 1.0), run(1e-2, None)]
    near = benchmark._verdict("lora-r8", sweep, run(3e-4, 1.01, search_seconds=2.0, train_seconds=8.0))
    assert (near["best_learning_rate"], near["within_1_percent"], near["search_share_of_training_time"]) == (
        1e-3,
        True,
        0.25,
    )
    assert benchmark._verdict("lora-r8", sweep, run(3e-4, 1.011))["within_1_percent"] is False
    assert benchmark._verdict("lora-r8", sweep, run(3e-4, None))["within_1_percent"] is False
    with pytest.raises(RuntimeError, match="no rate of the sweep"):
        benchmark._verdict("lora-r8", [run(1e-2, None)], run(3e-4, 1.0))


def test_of_losses_that_are_all_but_equal_the_smaller_rate_is_chosen() -> None:
    trials = [Trial(1e-4, 1.02, 6), Trial(1e-3, 1.004, 6), Trial(1e-2, 1.0, 6), Trial(1e-5, 1.0, 3)]
    assert chosen(trials).rate == 1e-3
    assert chosen(trials, near=0.0).rate == 1e-2
