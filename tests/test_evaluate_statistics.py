"""The statistics against published values, and against their own definitions."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from pipelines.evaluate.statistics import (
    percentile,
    sign_test,
    smallest_difference,
    student_t,
    wilson,
    win_rate_interval,
)

# statsmodels 0.14: proportion_confint(hits, total, method="wilson")
WILSON = {
    (5, 10): (0.2365931, 0.7634069),
    (0, 10): (0.0, 0.2775328),
    (10, 10): (0.7224672, 1.0),
    (1, 1): (0.2065493, 1.0),
    (0, 1): (0.0, 0.7934507),
}
# R: binom.test(losses, wins + losses)$p.value
SIGN = {
    (0, 0): 1.0,
    (1, 0): 1.0,
    (5, 0): 0.0625,
    (6, 0): 0.03125,
    (10, 2): 0.03857422,
    (7, 7): 1.0,
    (20, 30): 0.2026388,
}


# R: qt(0.975, degrees)
T = {1: 12.706205, 2: 4.302653, 2.5: 3.574702, 3: 3.182446, 4: 2.776445, 7.5: 2.333039, 30: 2.042272, 1e6: 1.959966}


@pytest.mark.parametrize(("degrees", "expected"), T.items())
def test_students_t_is_that_of_the_tables_at_whole_degrees_and_between(degrees: float, expected: float) -> None:
    assert student_t(degrees) == pytest.approx(expected, rel=5e-4)


def test_students_t_is_never_too_low_below_two_degrees_and_is_refused_below_one() -> None:
    assert 6.0167 <= student_t(1.5) <= 1.03 * 6.0167
    assert student_t(math.inf) == pytest.approx(NormalDist().inv_cdf(0.975))
    for degrees in (0.5, 0, -1, math.nan):
        with pytest.raises(ValueError, match="expected 1 or more"):
            student_t(degrees)


@pytest.mark.parametrize(("counts", "expected"), WILSON.items())
def test_wilsons_interval_is_the_known_one(counts: tuple[int, int], expected: tuple[float, float]) -> None:
    assert wilson(*counts) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("total", [1, 7, 24, 1000])
def test_wilsons_ends_are_where_the_score_test_just_rejects(total: int) -> None:
    z = NormalDist().inv_cdf(0.975)
    for hits in {0, 1, total // 3, total - 1, total}:
        interval = wilson(hits, total)
        assert interval is not None
        low, high = interval
        assert 0 <= low <= hits / total <= high <= 1
        for end in (low, high):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(hits / total - end) / math.sqrt(end * (1 - end) / total) == pytest.approx(z, rel=1e-5)


def test_of_nothing_there_is_no_interval_and_no_percentile() -> None:
    assert wilson(0, 0) is None
    assert percentile([], 0.5) is None
    assert win_rate_interval(0, 0, 0) is win_rate_interval(1, 0, 0) is None
    assert smallest_difference([]) is smallest_difference([0.5]) is None


def test_percentiles_are_interpolated() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([7], 0.95) == 7
    assert percentile(list(range(101)), 0.95) == 95


def test_the_interval_of_a_win_rate_is_near_the_binomials_where_all_scores_are_wins_or_losses() -> None:
    n, wins = 40, 26
    share = wins / n
    mass = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    below = [sum(mass[: k + 1]) for k in range(n + 1)]
    low = next(k for k in range(n + 1) if below[k] >= 0.025) / n
    high = next(k for k in range(n + 1) if below[k] >= 0.975) / n
    interval = win_rate_interval(wins, n - wins, 0)
    assert interval == pytest.approx((low, high), abs=1 / n)
    assert interval == pytest.approx(wilson(wins, n)), "without ties it is Wilson's"


@pytest.mark.parametrize("counts", [(8, 0, 0), (0, 8, 0), (0, 0, 8), (1, 0, 7), (5, 2, 3), (0, 2, 0), (30, 4, 6)])
def test_a_win_rates_ends_are_where_the_score_test_just_rejects(counts: tuple[int, int, int]) -> None:
    """A grid search finds the likeliest three shares under each end, not the formula."""
    wins, losses, ties = counts
    total = wins + losses + ties
    interval = win_rate_interval(*counts)
    assert interval is not None
    low, high = interval
    assert 0 <= low <= (wins + ties / 2) / total <= high <= 1
    assert high - low > 0.1, "an interval is never a point"
    assert win_rate_interval(losses, wins, ties) == pytest.approx((1 - high, 1 - low))
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            z = (wins - losses - total * (2 * end - 1)) / math.sqrt(total * _likeliest_variance(counts, 2 * end - 1))
            assert abs(z) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-3)


def _likeliest_variance(counts: tuple[int, int, int], difference: float) -> float:
    """The variance of one score, 1, -1 or 0, under the shares that fit `counts` best with this
    `difference` of wins and losses."""
    least, most = max(0.0, -difference), (1 - difference) / 2
    shares = np.linspace(least, most, 20_001)[:-1]
    all_three = (shares + difference, shares, 1 - 2 * shares - difference)
    fit = sum(count * np.log(np.maximum(one, 1e-300)) for count, one in zip(counts, all_three, strict=True) if count)
    return float(2 * shares[np.argmax(fit)] + difference - difference**2)


def test_ties_make_an_interval_narrower_and_never_a_point() -> None:
    widths = [high - low for low, high in filter(None, (win_rate_interval(0, 0, n) for n in (2, 6, 30, 100)))]
    assert widths == sorted(widths, reverse=True) and 0 < widths[-1] < 0.05
    tied, even = win_rate_interval(2, 2, 26), win_rate_interval(15, 15, 0)
    assert tied and even and tied[1] - tied[0] < even[1] - even[0]


def test_the_smallest_difference_is_found_in_four_of_five_samples() -> None:
    """Simulated: a true difference of that size is significant in about 80 % of the samples."""
    rng = np.random.default_rng(3)
    n, spread = 60, 0.4
    sample = rng.normal(0, spread, n)
    # The sample has exactly this spread.
    sample = (sample - sample.mean()) / sample.std(ddof=1) * spread
    size = smallest_difference(list(sample))
    assert size is not None
    means = rng.normal(size, spread / math.sqrt(n), 20_000)
    share_detected = (abs(means) > NormalDist().inv_cdf(0.975) * spread / math.sqrt(n)).mean()
    assert share_detected == pytest.approx(0.8, abs=0.01)


def test_a_sample_without_spread_could_show_what_coin_tosses_could() -> None:
    assert smallest_difference([0.5] * 16) == smallest_difference([1.0] * 16) == pytest.approx(2.801585 * 0.5 / 4)


@pytest.mark.parametrize(("counts", "expected"), SIGN.items())
def test_the_sign_test_is_the_exact_binomial_one(counts: tuple[int, int], expected: float) -> None:
    assert sign_test(*counts) == pytest.approx(expected, rel=1e-5)
    assert sign_test(*counts[::-1]) == sign_test(*counts)
    assert sign_test(300, 300) == pytest.approx(1.0)
