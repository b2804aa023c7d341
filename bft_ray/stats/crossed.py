"""Seeds and items, crossed: what each brings to the error of a mean difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def error_parts(difference: np.ndarray) -> tuple[float, float]:
    """Of crossed differences [S, n]: variance of the mean that its own seeds bring, and r (see the head of the file)."""
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


@dataclass(frozen=True)
class Parts:
    """Of one difference [S, n] (see the head of the file)."""

    gain: float
    own: float  # v_S of its own runs
    pooled: float  # v_S
    item: float  # v_I
    skew: float  # third cumulant of the items' mean

    @property
    def se(self) -> float:
        return math.sqrt(self.pooled + self.item)

    @property
    def own_se(self) -> float:
        return math.sqrt(self.own + self.item)

    @property
    def own_bend(self) -> float:
        return self.skew / self.own_se**3 if self.own_se > 0 else 0.0

    @property
    def bend(self) -> float:
        """a: how far the items' skewness bends T."""
        return self.skew / self.se**3 if self.se > 0 else 0.0
