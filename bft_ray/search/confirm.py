"""How far runs differ, over items and seeds at once, with intervals that hold for all comparisons together.

Every arm (a candidate or a baseline) is run with the same S seeds and measured on the same n items. With d_si the
score of an arm minus that of the default, on item i, seed s:

    gain        D = mean over s of mean over i of d_si
    its error   se^2 = v_S + v_I        v_S = var_s(d_s.) / S,   v_I = max(0, var_i(d_.i) / n - var(rest) / (S n))

Seeds and items are crossed (an item that an arm is good at, it is good at under every seed), so neither is resampled
within the other: the two-way analysis of variance takes each one's share. v_S holds what seeds and chance bring, v_I
what the draw of the items adds.

    interval    D +- t* se,   t* = (v_S t(1 - p/2, S - 1) + v_I t(1 - p/2, n - 1)) / (v_S + v_I)

t* is Cochran's (1964; Cochran and Cox, Experimental Designs): never below its level, while Satterthwaite's degrees of
freedom err twice as often as they should where three seeds and the items matter alike. Percentiles of a bootstrap are
no ends for so few seeds: over five they are too narrow by sqrt(4/5), and by normal for t quantiles (Hesterberg 2015).

The level p of one of K comparisons comes from the largest deviation of all in a bootstrap (max-T, Westfall and Young
1993; Romano and Wolf 2005): seeds and items are drawn with replacement, independently of each other and alike for all
arms (the pigeonhole bootstrap, Owen 2007), B = 10,000 times;

    c = (1 - alpha) quantile of max_k |D*_k - D_k| / sd(D*_k)     p = alpha / K + u (2 Phi(-c) - alpha / K)

The bootstrap knows how the arms move together: they share the default's noise, and near settings make near runs. It
knows so from the items; a few seeds cannot tell. So it is believed as far as the noise comes from the items, u = the
least share of v_I in se^2 over all arms, and the rest is Bonferroni's alpha / K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bft_ray.errors import BadInput

DRAWS = 10_000
_POWER = 0.8
_BLOCK = 2**22  # drawn items held at once


@dataclass(frozen=True)
class Comparison:
    """One arm against another, in the metric's unit; above 0 is better.

    Args:
        name, against: the arms.
        gain: mean difference.
        low, high: its interval; holds for all comparisons of the study together.
        se: standard error.
        seed_share: share of se^2 that seeds bring; the rest is the draw of the items.
        detectable: the true gain that such a study shows in 8 of 10 repetitions, (t*(1 - p/2) + t*(0.8)) se
            (Bloom 1995).
    """

    name: str
    against: str
    gain: float
    low: float
    high: float
    se: float
    seed_share: float
    detectable: float

    @property
    def is_better(self) -> bool:
        """Whether the gain lies beyond noise."""
        return self.low > 0

    @property
    def is_worse(self) -> bool:
        """Whether the loss lies beyond noise."""
        return self.high < 0


def compare_with(
    scores: Mapping[str, np.ndarray], default: str, alpha: float, draws: int = DRAWS, seed: int = 0
) -> tuple[dict[str, Comparison], float]:
    """Every arm against the default.

    Args:
        scores: arm -> [S, n], rows in one order of seeds and columns in one order of items; above is better.
        alpha: error of all comparisons together.
        draws: resamples B.
        seed: of the draws.

    Returns:
        Comparisons by arm, and the level p of each single one.

    Raises:
        BadInput: fewer than 2 seeds or items, or arrays of different shapes.
    """
    names = sorted(name for name in scores if name != default)
    shapes = {array.shape for array in scores.values()}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise BadInput("scores", sorted(shapes), "of one shape [seeds, items]")
    if min(next(iter(shapes))) < 2:
        raise BadInput("scores", next(iter(shapes)), "of at least 2 seeds and 2 items: else there is no spread")
    if not names:
        return {}, alpha
    differences = np.stack([scores[name] - scores[default] for name in names])
    level = simultaneous_level(differences, alpha, draws, seed)
    return {
        name: compare_pair(name, default, difference, level)
        for name, difference in zip(names, differences, strict=True)
    }, level


def compare_pair(name: str, against: str, difference: np.ndarray, level: float) -> Comparison:
    """One comparison from its differences [S, n], with an interval of two-sided level `level`."""
    gain = float(difference.mean())
    v_seed, v_item = error_parts(difference)
    se = math.sqrt(v_seed + v_item)
    share = v_seed / (v_seed + v_item) if se > 0 else 0.0

    def reach(tail: float) -> float:
        t_seed, t_item = (float(stats.t.isf(tail, size - 1)) for size in difference.shape)
        return (share * t_seed + (1 - share) * t_item) * se

    half = reach(level / 2)
    return Comparison(name, against, gain, gain - half, gain + half, se, share, half + reach(1 - _POWER))


def error_parts(difference: np.ndarray) -> tuple[float, float]:
    """v_S and v_I of crossed differences [S, n]; see the head of the file."""
    num_seeds, num_items = difference.shape
    by_seed, by_item = difference.mean(1), difference.mean(0)
    rest = difference - by_seed[:, None] - by_item[None, :] + difference.mean()
    v_seed = float(by_seed.var(ddof=1)) / num_seeds
    v_rest = float((rest**2).sum()) / ((num_seeds - 1) * (num_items - 1)) / (num_seeds * num_items)
    v_item = max(0.0, float(by_item.var(ddof=1)) / num_items - v_rest)
    if v_seed + v_item <= (1e-12 * float(np.abs(difference).max())) ** 2:  # rounding
        return 0.0, 0.0
    return v_seed, v_item


def simultaneous_level(differences: np.ndarray, alpha: float, draws: int = DRAWS, seed: int = 0) -> float:
    """Level p of each comparison at which all K together err with probability alpha; see the head of the file.

    Args:
        differences: [K, S, n].
    """
    num_arms = len(differences)
    parts = [error_parts(difference) for difference in differences]
    trust = min((v_item / (v_seed + v_item) for v_seed, v_item in parts if v_seed + v_item > 0), default=0.0)
    if trust == 0.0:
        return alpha / num_arms
    deviations = resampled_means(differences, draws, seed) - differences.mean((1, 2))  # [B, K]
    spread = deviations.std(0)
    moves = spread > 1e-12 * np.abs(differences).max(initial=0.0)
    largest = np.abs(deviations[:, moves] / spread[moves]).max(1)
    critical = float(np.quantile(largest, 1 - alpha, method="higher"))
    together = min(max(2 * float(stats.norm.sf(critical)), alpha / num_arms), alpha)
    return alpha / num_arms + trust * (together - alpha / num_arms)


def resampled_means(differences: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Means [B, K] of differences [K, S, n] over seeds and items, each drawn with replacement, alike for all arms."""
    num_arms, num_seeds, num_items = differences.shape
    random = np.random.default_rng(seed)
    at_once = max(1, _BLOCK // num_items)
    means = []
    for start in range(0, draws, at_once):
        block = min(at_once, draws - start)
        items = _counts(random, block, num_items) @ differences.reshape(-1, num_items).T / num_items  # [b, K S]
        seeds = _counts(random, block, num_seeds) / num_seeds  # [b, S]
        means.append(np.einsum("bks,bs->bk", items.reshape(block, num_arms, num_seeds), seeds))
    return np.concatenate(means)


def _counts(random: np.random.Generator, block: int, size: int) -> np.ndarray:
    """How often each resample of `size` things holds each of them: [block, size]."""
    drawn = random.integers(size, size=(block, size)) + size * np.arange(block)[:, None]
    return np.bincount(drawn.ravel(), minlength=block * size).reshape(block, size).astype(np.float64)


def as_arrays(scores: Mapping[str, Mapping[int, Mapping[str, float]]], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Arm -> seed -> item -> score, as arm -> [S, n], seeds and items sorted; all must have the same items."""
    items = sorted(next(iter(next(iter(scores.values())).values())))
    return {
        name: np.array([[scores[name][seed][item] for item in items] for seed in sorted(seeds)])
        for name in sorted(scores)
    }
