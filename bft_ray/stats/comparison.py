"""One arm compared with another."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """One arm against another, in the metric's unit; above 0 is better.

    Args:
        name, against: the arms.
        gain: mean difference.
        low, high: its two-sided interval; holds for all comparisons of the study together.
        se: standard error; 0 where items and seeds all differ alike: then there is no test.
        seed_share: share of se^2 that seeds bring; the rest is the draw of the items.
        detectable: smallest true gain that `shows_in` such studies (`bft_ray.stats.claim`); not a number where nothing can be said.
        shows_in: about 8 of 10; 7 to 9 of 10 where few seeds or items leave the claim less exact.
        p: of no gain, one-sided, adjusted for all comparisons.
        alpha: error of all comparisons together.
        is_skewed: whether the gain rests on so few items, for their skewness, that it cannot be judged: the default stays then.
        half_seeds, half_items: half width of the interval at twice the seeds, and at twice the items.
    """

    name: str
    against: str
    gain: float
    low: float
    high: float
    se: float
    seed_share: float
    detectable: float
    p: float = 1.0
    alpha: float = 0.05
    is_skewed: bool = False
    half_seeds: float = math.nan
    half_items: float = math.nan
    shows_in: str = "about 8 of 10"

    @property
    def has_spread(self) -> bool:
        """Whether there is noise to judge the gain by."""
        return self.se > 0

    @property
    def is_better(self) -> bool:
        """Whether the gain lies beyond noise."""
        return self.has_spread and self.gain > 0 and self.p <= self.alpha and not self.is_skewed

    @property
    def is_worse(self) -> bool:
        """Whether the loss lies beyond noise."""
        return self.has_spread and self.high < 0

    def as_json(self) -> dict[str, Any]:
        """Its fields, without those that are not a number."""
        return {name: value for name, value in asdict(self).items() if value == value}


def spreadless(name: str, against: str, difference: np.ndarray, alpha: float) -> Comparison:
    """The comparison of differences [S, n] without a spread: there is no interval and no test."""
    gain = float(difference.mean())
    return Comparison(name, against, gain, gain, gain, 0.0, 0.0, math.nan, alpha=alpha)


def moves(difference: np.ndarray) -> bool:
    """Whether differences [S, n] have a spread beyond rounding, over more than one item: of one, its draw is not known."""
    spread = float(np.ptp(difference)) > 1e-9 * max(1.0, float(np.abs(difference).max()))
    return spread and difference.shape[-1] > 1
