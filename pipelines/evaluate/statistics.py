"""Statistics for the tables: intervals of shares and of paired differences, and detectable
differences."""

from collections.abc import Sequence
from math import comb, exp, expm1, inf, log, pi, sqrt
from statistics import NormalDist

import numpy as np

Z95 = 1.959964
Z80 = 0.841621
T95_OF_ONE = 12.706205


def wilson(hits: int, total: int) -> tuple[float, float] | None:
    """95 % interval of a share; None without observations.

    Wilson's score interval (Wilson 1927, Journal of the American Statistical Association 22:209).
    It has a width even if all or none are hits.
    """
    if not total:
        return None
    share, z2 = hits / total, Z95**2
    middle = share + z2 / (2 * total)
    spread = Z95 * sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    scale = 1 + z2 / total
    return max(0.0, min(share, (middle - spread) / scale)), min(1.0, max(share, (middle + spread) / scale))


def win_rate_interval(
    wins: float, losses: float, ties: float, *, correction: float = 0.0
) -> tuple[float, float] | None:
    """95 % interval of the mean of paired scores, 1 for a win, 0 for a loss and ½ for a tie; None
    under two pairs.

    Tango's score interval of the difference of paired proportions, (wins - losses) / pairs
    (Tango 1998, Statistics in Medicine 17:891-908), mapped to 0..1. Without ties it is Wilson's.
    It has a width even if all pairs ended alike. Many ties make it narrower, since they show that
    the difference is small. `correction` is a continuity correction in pairs, subtracted from each
    tested difference. Without it, a few pairs that are nearly all won or lost have low coverage.
    """
    if wins + losses + ties < 2:
        return None
    low = -_most_difference(losses, wins, ties, correction)
    high = _most_difference(wins, losses, ties, correction)
    return (1 + low) / 2, (1 + high) / 2


def _most_difference(wins: float, losses: float, ties: float, correction: float) -> float:
    """The largest difference that Tango's score test does not reject.

    Found by bisection between the observed difference and 1.
    """
    total = wins + losses + ties
    low, high = (wins - losses) / total, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # The maximum-likelihood share of losses under this difference.
        b = -wins - losses + (2 * total - wins + losses) * middle
        share = (sqrt(b * b + 8 * total * losses * middle * (1 - middle)) - b) / (4 * total)
        variance = total * (2 * share + middle * (1 - middle))
        if max(0.0, total * middle - wins + losses - correction) ** 2 > Z95**2 * variance:
            high = middle
        else:
            low = middle
    return high


def smallest_difference(values: Sequence[float]) -> float | None:
    """The smallest mean difference that a sample of this size and spread detects with 80 % power at
    the 5 % level; None under two values.

    (z₀.₉₇₅ + z₀.₈) · s / √n, for a paired comparison (Cohen 1988, chapter 2). A sample without
    spread gets the spread of coin tosses.
    """
    if len(values) < 2:
        return None
    spread = float(np.std(np.asarray(values, dtype=float), ddof=1)) or 0.5
    return (Z95 + Z80) * spread / sqrt(len(values))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of wins against losses without ties, if both are equally likely.

    This is the exact binomial test.
    """
    decided, rarer = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(decided, count) for count in range(rarer + 1)) / 2**decided)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that this share of the sample does not exceed (linear interpolation); None without
    values."""
    return float(np.percentile(values, 100 * share)) if len(values) else None


def t_quantile(share: float, degrees: int) -> float:
    """Student's t at `share` (0.5..1), by the series of Abramowitz & Stegun 26.7.5.

    Accurate to 1 % from 4 degrees of freedom on.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def student_t(degrees: float) -> float:
    """The two-sided 95 % quantile of Student's t at any `degrees` of at least 1, integer or not.

    Hill 1970, Communications of the ACM 13:617 (algorithm 396): within 0.1 % from 2 degrees on.
    Between 1 and 2 it is interpolated and up to 3 % too high. `t_quantile` needs 4 degrees.
    It stays, because published intervals depend on its exact digits.

    Raises:
        ValueError: fewer than 1 degree.
    """
    if not degrees >= 1:
        raise ValueError(f"Student's t at {degrees} degrees of freedom; expected 1 or more")
    if degrees == inf:
        return Z95
    if degrees < 2:
        share = 2 * (1 - 1 / degrees)
        return exp((1 - share) * log(T95_OF_ONE) + share * log(student_t(2)))
    a, p, z = 1 / (degrees - 0.5), 0.05, -Z95
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * sqrt(a * pi / 2) * degrees
    y = (d * p) ** (2 / degrees)
    if y > 0.05 + a:
        if degrees < 5:
            c += 0.3 * (degrees - 4.5) * (z + 0.6)
        c += (((0.05 * d * z - 5) * z - 7) * z - 2) * z + b
        y = (((((0.4 * z * z + 6.3) * z * z + 36) * z * z + 94.5) / c - z * z - 3) / b + 1) * z
        y = expm1(a * y * y)
    else:
        tail = 1 / (((degrees + 6) / (degrees * y) - 0.089 * d - 0.822) * (degrees + 2) * 3) + 0.5 / (degrees + 4)
        y = (tail * y - 1) * (degrees + 1) / (degrees + 2) + 1 / y
    return sqrt(degrees * y)


def expanded_tail(tail: float, size: int) -> float:
    """The tail of the bootstrap means for a percentile interval with `tail` on each side, for a
    sample of `size`.

    Percentile intervals of small samples are too narrow: they use z where t belongs, and divide the
    spread by n instead of n - 1. Φ(-√(n/(n-1)) · t₍ₙ₋₁₎) corrects both (the expanded percentile
    interval; Hesterberg 2015, The American Statistician 69:4).
    """
    return NormalDist().cdf(-sqrt(size / (size - 1)) * t_quantile(1 - tail, size - 1))
