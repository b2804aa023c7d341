"""How the skewness of few items bends Student's t (Hall 1992, Journal of the Royal Statistical Society B 54)."""

from __future__ import annotations

import math

import numpy as np


def least_skewness(values: np.ndarray, freedom: float) -> float:
    """The skewness of values [n] (Fisher's G1) less its standard error sqrt(6 / (freedom + 1)): what it may be at the worst for
    a claim that their mean is above 0. A sample that lacks the few bad items seems less skewed than it is.
    """
    spread = float(values.std())
    if len(values) < 3 or not spread > 0:
        return 0.0
    count = len(values)
    found = float(((values - values.mean()) ** 3).mean()) / spread**3 * math.sqrt(count * (count - 1)) / (count - 2)
    return found - math.sqrt(6 / (freedom + 1))


def bend(t: float, a: float) -> float:
    return t + a * (t * t / 3 + 1 / 6) + a * a * t**3 / 27


def careful(t: float, a: float) -> float:
    """The smaller of T and g(T): an estimated skewness may take a claim back, and may not make one."""
    return min(t, bend(t, a))


def unbend(g: float, a: float) -> float:
    """The t of which `_bend` is g."""
    if abs(a) < 1e-6:
        return g
    return 3 / a * (float(np.cbrt(1 + a * (g - a / 6))) - 1)
