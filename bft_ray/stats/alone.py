"""One comparison for itself, from its own differences alone."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from bft_ray.stats.comparison import Comparison, moves, spreadless
from bft_ray.stats.crossed import error_parts
from bft_ray.stats.power import detectable


def compare_alone(name: str, against: str, difference: np.ndarray, level: float) -> Comparison:
    """One comparison for itself, from its own differences [S, n] alone (S of 1: of these items, not of other seeds), at the
    two-sided `level`:

        D +- t* se,   t* = (v_S t(S - 1) + v_I t(n - 1)) / se^2

    t* is Cochran's (1964), never below its level.
    """
    num_seeds, num_items = difference.shape
    if not moves(difference):
        return spreadless(name, against, difference, level / 2)
    own, rest = error_parts(difference) if num_seeds > 1 else (0.0, 0.0)
    pooled = max(own, rest)
    item = max(0.0, float(difference.mean(0).var(ddof=1)) / num_items - rest)
    se, gain = math.sqrt(pooled + item), float(difference.mean())

    def critical(tail: float) -> float:
        by_item = float(stats.t.isf(tail, num_items - 1))
        by_seed = float(stats.t.isf(tail, num_seeds - 1)) if num_seeds > 1 else 0.0
        return (pooled * by_seed + item * by_item) / se**2

    freedom = se**4 / ((pooled**2 / (num_seeds - 1) if num_seeds > 1 else 0.0) + item**2 / (num_items - 1))
    at = critical(level / 2)
    p = level / 2 if gain > at * se else 1.0  # a bound: all that is asked of it
    least = detectable(se, freedom, critical=at)
    return Comparison(name, against, gain, gain - at * se, gain + at * se, se, pooled / se**2, least, p, level / 2)
