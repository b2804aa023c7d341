"""One comparison, paired by item: its difference, an interval, a test, and what it could have shown.

Numbers: Student's t on the differences d_i (of linearised scores where the metric is no mean), with se and its degrees of
freedom from `bft_ray.stats.errors`, and skewness taken out of it (Hall 1992, `bft_ray.stats.skewness`): all D - T se with
|g(T)| <= t, and never narrower than D +- t se.

Right or wrong (0 and 1): McNemar's exact test on the discordant items, b lost and c gained,

    p = min(1, 2 P( Binomial(b + c, 1/2) >= max(b, c) ))

and Tango's score interval of the difference of two paired shares (Statistics in Medicine 17, 1998), which holds its level
where t does not: for few discordant items, and for none. The two could disagree about 0 at the border; so where the
exact test shows no difference, the interval is widened to hold 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from bft_ray.stats.errors import Groups, freedom_of, mean_error
from bft_ray.stats.power import LEVEL, critical_value, detectable, detectable_binary
from bft_ray.stats.skewness import careful, held, reaches, skewness


@dataclass(frozen=True)
class Difference:
    """A mean paired difference.

    Args:
        value: it.
        low, high: its interval; not a number where there is none (a single item, numbers without spread).
        p: two-sided, of no difference; 1 where there is no spread to judge by.
        detectable: smallest true difference that 8 of 10 such comparisons show (`bft_ray.stats.power`); not a
            number where nothing can be said.
    """

    value: float
    low: float
    high: float
    p: float
    detectable: float

    @property
    def is_positive(self) -> bool:
        """Whether it lies above 0 beyond noise."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether it lies below 0 beyond noise."""
        return self.high < 0


def paired_difference(
    first: np.ndarray, second: np.ndarray, level: float = LEVEL, groups: Groups | None = None
) -> Difference:
    """first - second, each [n] of the same items: exact where both are 0 or 1 and items are independent, else t.

    Args:
        level: two-sided.
        groups: which items share what; None: they are independent.
    """
    is_binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    if is_binary and groups is None:
        return paired_binary(int((first > second).sum()), int((first < second).sum()), len(first), level)
    return paired_t(first - second, level, groups)


def paired_t(differences: np.ndarray, level: float = LEVEL, groups: Groups | None = None) -> Difference:
    """Student's t on differences [n]; see the head of the file."""
    value = float(differences.mean())
    se = mean_error(differences, groups) if len(differences) > 1 else 0.0
    if se == 0:
        return Difference(value, math.nan, math.nan, 1.0, math.nan)
    freedom = freedom_of(len(differences), groups)
    a = float(skewness(differences[None])[0]) / math.sqrt(len(differences))
    down, up = reaches(critical_value(freedom, level), a)
    t = max(0.0, careful(abs(value) / se, held(a if value > 0 else -a)))  # below 0 the correction says: no difference
    least = detectable(se, freedom, critical=down if value > 0 else up)  # to the side that was seen
    return Difference(value, value - down * se, value + up * se, float(2 * stats.t.sf(t, freedom)), least)


def paired_binary(num_first: int, num_second: int, num_items: int, level: float = LEVEL) -> Difference:
    """McNemar's exact test with Tango's interval: items that only the first, and only the second, got right."""
    value = (num_first - num_second) / num_items
    if num_items < 2:
        return Difference(value, math.nan, math.nan, 1.0, math.nan)
    p = mcnemar(num_first, num_second)
    low, high = tango(num_first, num_second, num_items, level)
    if p > level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(value, low, high, p, detectable_binary(num_items, num_first + num_second, level))


def mcnemar(num_first: int, num_second: int) -> float:
    """Exact two-sided p of McNemar's test."""
    return min(1.0, 2 * float(stats.binom.sf(max(num_first, num_second) - 1, num_first + num_second, 0.5)))


def tango(num_first: int, num_second: int, num_items: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of the difference of two paired shares: all delta with |T(delta)| <= z,

        T = (b - c - n delta) / sqrt( n (2 q + delta (1 - delta)) ),   q = (sqrt(B^2 - 4 A C) - B) / (2 A)
        A = 2 n,  B = -b - c + (2 n - b + c) delta,  C = -c delta (1 - delta)

    with b items that only the first got right, c only the second, and q the likeliest share of the latter given delta.
    """
    b, c, n, z = num_first, num_second, num_items, float(stats.norm.isf(level / 2))

    def excess(delta: float, bound: float) -> float:
        slope = -b - c + (2 * n - b + c) * delta
        root = math.sqrt(max(0.0, slope**2 + 8 * n * c * delta * (1 - delta)))
        variance = n * ((root - slope) / (2 * n) + delta * (1 - delta))
        return b - c - n * delta - bound * math.sqrt(max(0.0, variance))

    value, near = (b - c) / n, 1e-9  # at the value itself T is 0 / 0 where no item, or every one, is discordant
    low = -1.0 if value <= -1 else float(optimize.brentq(excess, -1.0, value - near, args=(z,)))
    high = 1.0 if value >= 1 else float(optimize.brentq(excess, value + near, 1.0, args=(-z,)))
    return low, high


def mean_bounds(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper bound of a mean, each one-sided at 5 %: mean -+ t(0.95, n - 1) s / sqrt(n)."""
    found = np.asarray(values, dtype=np.float64)
    reach = float(stats.t.isf(LEVEL, len(found) - 1)) * mean_error(found)
    return float(found.mean()) - reach, float(found.mean()) + reach


def holm(p: list[float]) -> list[float]:
    """p adjusted for all of them together, in their order (Holm 1979): max over i <= k of (m - i + 1) p_(i)."""
    order, adjusted, largest = sorted(range(len(p)), key=lambda place: p[place]), list(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted
