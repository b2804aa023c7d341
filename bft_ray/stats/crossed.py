"""Seeds and items, crossed: what each brings to the error of a mean difference.

With d_si the score of one arm minus that of another on item i, seed s, S seeds and n items, the two-way analysis of variance
takes each one's share (an item that an arm is good at, it is good at under every seed). With r = MS_rest / (S n) the part
that is neither:

    gain        D = mean over s of mean over i of d_si
    its error   se^2 = v_S + v_I        v_S seeds and chance,   v_I the draw of the items
                v_S = max(2 MS / S, r)      MS: mean square of arms x seeds, of the run means of all arms
                v_I = max(0, V - r)         V: variance of the mean over items of d_.i, of groups where items share them

Seeds are blocks and the variance is pooled over arms, on (arms - 1)(S - 1) degrees of freedom (Dunnett 1955; Scheffe 1959,
section 4.2): a few seeds of one arm cannot tell its variance. That r bounds v_S from below keeps a spread of 0 by
coincidence (sparse right and wrong) from being believed. Items are many: their variance is each arm's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from bft_ray.stats.errors import Groups, freedom_of, mean_covariance
from bft_ray.stats.skewness import CLEAR, COUNTS, needed_items, skewness, without_noise

_LOUD = 0.05  # level of the F test that an arm's runs vary more than the others'


@dataclass(frozen=True)
class Parts:
    """The parts of the error of one difference [S, n]; see the head of the file.

    Args:
        gain: D.
        own: v_S of its own runs.
        pooled: v_S.
        rest, item_variance: r, V.
        skew: of its items (`bft_ray.stats.skewness`).
        num_items: n.
        freedom_item, freedom_rest: of V and r as estimates, with the kurtosis of what they are made of:
            2 / (2 / f + kurtosis / n).
    """

    gain: float
    own: float
    pooled: float
    rest: float
    item_variance: float
    skew: float
    num_items: int
    freedom_item: float
    freedom_rest: float

    @property
    def item(self) -> float:
        """v_I: the variance that the draw of the items brings."""
        return max(0.0, self.item_variance - self.rest)

    @property
    def se(self) -> float:
        """Standard error of the gain."""
        return math.sqrt(self.pooled + self.item)

    @property
    def own_se(self) -> float:
        """Standard error of the gain, by the arm's own runs alone."""
        return math.sqrt(self.own + self.item)

    @property
    def third(self) -> float:
        """Third cumulant of the gain: that of the mean over items (the noise in it, r of V, is symmetric and adds none)."""
        return self.skew / math.sqrt(self.num_items) * self.item_variance**1.5

    @property
    def bend(self) -> float:
        """a: how far the items' skewness bends T."""
        return self.third / self.se**3 if self.se > 0 else 0.0

    @property
    def is_skewed(self) -> bool:
        """Whether the gain rests on too few items to judge it by; see `bft_ray.stats.skewness`."""
        if self.bend >= -COUNTS or self.gain >= CLEAR * self.se:
            return False
        return self.num_items < float(needed_items(without_noise(self.skew, self.item_variance, self.item)))

    @property
    def own_bend(self) -> float:
        """a, by the arm's own runs alone."""
        return self.third / self.own_se**3 if self.own_se > 0 else 0.0


@dataclass(frozen=True)
class Crossed:
    """Differences of K arms from one, all on the same seeds and items.

    Args:
        differences: [K, S, n].
        runs: run means [arms, S] of all that are pooled: that one first, then the K, then others.
        groups: which items share what.
    """

    differences: np.ndarray
    runs: np.ndarray
    groups: Groups | None

    @classmethod
    def of(cls, arms: Sequence[np.ndarray], others: Sequence[np.ndarray], groups: Groups | None) -> Crossed:
        """The differences of arms [S, n], the reference arm first; `others` only add their runs to the pooled variance."""
        runs = np.stack([arm.mean(1) for arm in (*arms, *others)])
        return cls(np.stack([arm - arms[0] for arm in arms[1:]]), runs, groups)

    @property
    def num_seeds(self) -> int:
        """S, the number of seeds."""
        return int(self.differences.shape[1])

    @cached_property
    def item_freedom(self) -> float:
        """h: degrees of freedom of V."""
        return freedom_of(self.differences.shape[2], self.groups)

    @cached_property
    def covariance(self) -> np.ndarray:
        """Covariance [K, K] of the means over items of d_.i; V on its diagonal."""
        return mean_covariance(self.differences.mean(1), self.groups)

    @cached_property
    def square(self) -> tuple[float, float]:
        """MS and its degrees of freedom."""
        return pooled_square(self.runs)

    @cached_property
    def parts(self) -> tuple[Parts, ...]:
        """The parts of the error of each difference."""
        num_arms, num_seeds, num_items = self.differences.shape
        by_item, by_seed = self.differences.mean(1), self.differences.mean(2)
        means = by_seed.mean(1)
        rest = self.differences - by_seed[:, :, None] - by_item[:, None, :] + means[:, None, None]
        mean_rest = (rest**2).sum((1, 2)) / ((num_seeds - 1) * (num_items - 1)) / (num_seeds * num_items)
        own = by_seed.var(1, ddof=1) / num_seeds
        freedom_item = _freedom(self.item_freedom, by_item - means[:, None])
        freedom_rest = _freedom((num_seeds - 1) * (num_items - 1), rest.reshape(num_arms, -1))
        pooled, skew = 2 * self.square[0] / num_seeds, skewness(by_item)
        return tuple(
            Parts(
                gain=float(means[k]),
                own=max(float(own[k]), float(mean_rest[k])),
                pooled=max(pooled, float(mean_rest[k])),
                rest=float(mean_rest[k]),
                item_variance=max(0.0, float(self.covariance[k, k])),
                skew=float(skew[k]),
                num_items=num_items,
                freedom_item=float(freedom_item[k]),
                freedom_rest=float(freedom_rest[k]),
            )
            for k in range(num_arms)
        )


def error_parts(difference: np.ndarray) -> tuple[float, float]:
    """Variance that its own seeds bring to the mean of crossed differences [S, n], and r (see the head of the file)."""
    num_seeds, num_items = difference.shape
    by_seed, by_item = difference.mean(1), difference.mean(0)
    rest = difference - by_seed[:, None] - by_item[None, :] + difference.mean()
    v_rest = float((rest**2).sum()) / ((num_seeds - 1) * (num_items - 1)) / (num_seeds * num_items)
    return float(by_seed.var(ddof=1)) / num_seeds, v_rest


def pooled_square(runs: np.ndarray) -> tuple[float, float]:
    """Mean square of arms x seeds of run means [arms, S], and its degrees of freedom. Arms whose runs are another's count
    once: they would pretend to a smaller spread.
    """
    runs = np.unique(np.round(runs, 12), axis=0)
    rest = runs - runs.mean(1, keepdims=True) - runs.mean(0) + runs.mean()
    freedom = float(max(1, len(runs) - 1) * (runs.shape[1] - 1))
    return float((rest**2).sum()) / freedom, freedom


def run_variances(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances [arms] of the runs [arms, S] of each, seeds as blocks, and their degrees of freedom.

    Those that vary alike have the pooled one. An arm is loud, and has its own, where its runs less the mean of the
    others' vary more than these do, by F on S - 1 and (arms - 2)(S - 1) degrees at 5 %.
    """
    num_arms, num_seeds = runs.shape
    pooled, freedom = pooled_square(runs)
    variances, freedoms = np.full(num_arms, pooled), np.full(num_arms, freedom)
    if num_arms < 3:
        return variances, freedoms
    loud = np.zeros(num_arms, dtype=bool)
    for arm in range(num_arms):
        others = np.delete(runs, arm, 0)
        square, degrees = pooled_square(others)
        own = float((runs[arm] - others.mean(0)).var(ddof=1)) - square / (num_arms - 1)
        ratio = (own + square / (num_arms - 1)) / (1 + 1 / (num_arms - 1)) / square if square > 0 else 0.0
        if special.fdtrc(num_seeds - 1, degrees, ratio) < _LOUD:
            loud[arm], variances[arm], freedoms[arm] = True, own, num_seeds - 1
    if loud.any() and (~loud).sum() > 1:
        variances[~loud], freedoms[~loud] = pooled_square(runs[~loud])
    return variances, freedoms


def _freedom(freedom: float, centred: np.ndarray) -> np.ndarray:
    """Of a variance on so many degrees, of values [K, n] whose kurtosis counts; at least 1."""
    square = (centred**2).mean(1)
    fourth = np.divide(
        (centred * centred * centred * centred).mean(1), square**2, out=np.full(len(square), 3.0), where=square > 0
    )
    return np.maximum(1.0, 2 / (2 / freedom + np.maximum(0.0, fourth - 3) / centred.shape[1]))
