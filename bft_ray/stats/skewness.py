"""Skewness of items: how large it may be, and how it bends Student's t.

The t of a mean over items with few very bad ones is too large too often: a sample that lacks them has both a mean that is
too good and an error that is too small. Hall (1992, Journal of the Royal Statistical Society B 54) takes that out: with a the
third cumulant of the mean over se^3,

    g(T) = T + a (T^2 / 3 + 1 / 6) + a^2 T^3 / 27 = ((1 + a T / 3)^3 - 1) / a + a / 6

The skewness that a sample shows is too small: G1 of n values is below sqrt(n), and of 120 from a lognormal of skewness 6 it
is 3 in the median. Two ways around that, both by lognormals, whose tail is longer than most and so on the safe side for others
(s: deviation of the logarithm; skewness (exp(s^2) + 2) sqrt(exp(s^2) - 1)):

    that of the lognormal of which n even quantiles, (i - 1/2) / n, have this G1
    that of the lognormal which has this L-skewness, l3 / l2 of order statistics, next to unbiased in small samples (Hosking
    1990, Journal of the Royal Statistical Society B 52):
    tau3(s) = 6 / sqrt(pi) / erf(s / 2)  integral from 0 to s / 2 of erf(x / sqrt(3)) exp(-x^2) dx

The first sees the tail and misses what the sample lacks, the second sees the bulk and is blurred by noise; the lower one
counts, which is the worse for a claim.

No correction helps where the items are too few to show what they are like. For the plain interval Cochran (1977, Sampling
Techniques, 2.15) asks for more than 25 skewness^2, and Sugden, Smith and Jones (2000, Journal of the Royal Statistical Society
B 62) for more than 28 + 25 skewness^2. With the correction fewer do, 12 + 11 skewness^2, by simulation (docs/statistics.md).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import integrate, special

COUNTS = 0.1  # -a from which on the skewness of the items counts
CLEAR = 10.0  # T from which on it does not: of c = 2.3 Hall's correction asks for 9.5 at most, whatever a is
_MOST = 0.4  # of |a|, in intervals
Values = np.ndarray | float
_LONGEST = 2.5  # s, of a skewness of 12,000
_BLOCKS = 20


def skewness(values: np.ndarray) -> np.ndarray:
    """[K], of rows [K, n]: see the head of the file; 0 for fewer than 3 values or rows without spread."""
    count = values.shape[-1]
    if count < 3:
        return np.zeros(len(values))
    pairs = (_moment(values), _of_moment(count)), (l_skewness(values), _of_l_skewness())
    return np.min([np.sign(seen) * np.interp(np.abs(seen), *known) for seen, known in pairs], axis=0)


def _moment(values: np.ndarray) -> np.ndarray:
    """G1 [K] of rows [K, n]."""
    count, spread = values.shape[-1], values.std(-1)
    centred = values - values.mean(-1, keepdims=True)
    third = (centred * centred * centred).mean(-1) * math.sqrt(count * (count - 1)) / (count - 2)
    return np.divide(third, spread**3, out=np.zeros(len(values)), where=spread > 0)


def skewness_error(values: np.ndarray) -> float:
    """Standard error of `skewness` of values [n], by leaving out every 20th (delete-a-group jackknife, Kott 2001)."""
    count = min(_BLOCKS, len(values))
    size = len(values) // count * count
    blocks = values[:size].reshape(-1, count).T  # [blocks, size of one]
    left = np.stack([np.delete(blocks, place, 0).ravel() for place in range(count)])
    return float(skewness(left).std()) * math.sqrt(count - 1)


def l_skewness(values: np.ndarray) -> np.ndarray:
    """[K] of rows [K, n], n > 2: l3 / l2 with b_r = mean of x_(i) (i choose r) / (n - 1 choose r), i from 0:

    l2 = 2 b_1 - b_0,   l3 = 6 b_2 - 6 b_1 + b_0
    """
    count = values.shape[-1]
    place = np.arange(count)
    first, second = place / (count - 1), place * (place - 1) / ((count - 1) * (count - 2))
    ordered = np.sort(values, -1)
    b0, b1, b2 = (ordered @ weight / count for weight in (np.ones(count), first, second))
    scale = 2 * b1 - b0
    return np.divide(6 * b2 - 6 * b1 + b0, scale, out=np.zeros(len(values)), where=scale > 0)


def without_noise(skew: Values, variance: Values, item: Values) -> np.ndarray:
    """Skewness of the items themselves: that of means of variance V, of which v_I are the items', times (V / v_I)^1.5, for
    noise is symmetric. Where noise is more than half of V, what is below it cannot be seen, and `skew` stays.
    """
    ratio = np.divide(variance, item, out=np.ones(np.shape(item)), where=np.greater(2 * item, variance))
    return skew * ratio * np.sqrt(ratio)


def needed_items(skew: np.ndarray) -> np.ndarray:
    """Items from which on a gain can be judged by them: 12 + 11 skew^2; any number does where skew is not below 0."""
    return np.where(skew < 0, 12 + 11 * skew**2, 0.0)


def _lognormal(s: np.ndarray) -> np.ndarray:
    power = np.exp(s**2)
    return (power + 2) * np.sqrt(power - 1)


@lru_cache(64)
def _of_moment(count: int) -> tuple[np.ndarray, np.ndarray]:
    """G1 of even quantiles, and skewness, for s from 0 on."""
    deviations = np.linspace(0.0, _LONGEST, 100)[1:]
    normal = special.ndtri((np.arange(count) + 0.5) / count)
    moments = _moment(np.exp(deviations[:, None] * normal))
    return np.append(0.0, moments), np.append(0.0, _lognormal(deviations))


@lru_cache(1)
def _of_l_skewness() -> tuple[np.ndarray, np.ndarray]:
    """L-skewness and skewness, for s from 0 on."""
    half = np.linspace(0, _LONGEST / 2, 500)
    integral = integrate.cumulative_simpson(special.erf(half / math.sqrt(3)) * np.exp(-(half**2)), x=half, initial=0)
    ratio = np.divide(integral, special.erf(half), out=np.zeros(len(half)), where=half > 0)
    return 6 / math.sqrt(math.pi) * ratio, _lognormal(2 * half)


def bend(t: float, a: float) -> float:
    """g(T); see the head of the file."""
    return t + a * (t * t / 3 + 1 / 6) + a * a * t**3 / 27


def careful(t: float, a: float) -> float:
    """The smaller of T and g(T): an estimated skewness may take a claim back, and may not make one."""
    return min(t, bend(t, a))


def unbend(g: Values, a: np.ndarray) -> np.ndarray:
    """The t of which `bend` is g."""
    near = np.abs(a) < 1e-6
    safe = np.where(near, 1.0, a)
    return np.where(near, g, 3 / safe * (np.cbrt(1 + safe * (g - safe / 6)) - 1))


def held(a: float) -> float:
    """a, between -0.4 and 0.4: beyond, the correction bends back."""
    return min(max(a, -_MOST), _MOST)


def reaches(critical: float, a: float) -> tuple[float, float]:
    """How many standard errors an interval reaches down and up: to the T of which `bend` is +- critical, and never less
    than without the correction.
    """
    down, up = (max(critical, sign * float(unbend(sign * critical, np.array(held(a))))) for sign in (1, -1))
    return down, up
