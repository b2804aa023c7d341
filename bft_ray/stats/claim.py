"""The smallest detectable gain of a confirmation: `bft_ray.stats.power`, for a test that asks twice and may refuse.

A new study of the same kind, with a true gain of x, shows it where x exceeds

    needed = max(c(a') se', c_own(a'_own) se'_own) - (D' - x)

with c_own Student's t on the degrees of freedom that se'_own has (Satterthwaite 1946),
and, where its items are too few for their skewness, also CLEAR se'. The marks are of the new study, and c(a) is
the T of which skewness leaves the critical value (`bft_ray.stats.skewness`). The claim is k s, s the standard error that this
study estimates and

    P( k s' / sigma > needed / sigma ) = 0.8

over new studies and over s' of studies that might have made the claim. Drawn are, with V, r and the variances of the runs (of a
loud arm its own, `bft_ray.stats.crossed.run_variances`) taken as true,

    seeds   own = (var_k + var_0) / S chi2_{S-1},  pooled from own and the other contrasts, neither below r
    items   V, r from chi2 whose freedom has the items' kurtosis in it, both from one draw: few items make both
    D' - x  sqrt(own) z_s + sqrt(v_I) (z_i + b (z_i^2 - 1) / 6),  V times exp(b z_i - b^2 / 2),  b = skewness / sqrt(n)

the last because bad items that are not there make a mean larger and its error smaller. No such claim is exact: a variance on
2 degrees of freedom may be of a loud arm or of a quiet one. docs/statistics.md says how far off claims are, and `how_often`
puts it into the sentence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from bft_ray.stats.crossed import Crossed, Parts, run_variances
from bft_ray.stats.power import POWER
from bft_ray.stats.skewness import CLEAR, COUNTS, needed_items, skewness_error, unbend, without_noise

#: a claim of fewer seeds or items was seen up to 11 points off, otherwise 5 (docs/statistics.md)
_SEEDS, _ITEMS = 5, 100


def how_often(num_seeds: int, num_items: int) -> str:
    """In how many of new studies a true gain of the claimed size shows, as exactly as simulations bear out."""
    return "about 8 of 10" if num_seeds >= _SEEDS and num_items >= _ITEMS else "7 to 9 of 10"


@dataclass(frozen=True)
class Claims:
    """What K gains a study could have shown.

    Args:
        crossed: its differences.
        variances, freedoms: of the runs [arms] (`run_variances`).
        draws: of new studies.
        seed: of the draws.
    """

    crossed: Crossed
    variances: np.ndarray
    freedoms: np.ndarray
    draws: int
    seed: int

    @classmethod
    def of(cls, crossed: Crossed, draws: int, seed: int) -> Claims:
        """The claims of a study, whose runs tell the variances."""
        return cls(crossed, *run_variances(crossed.runs), draws, seed)

    def detectable(self, place: int, critical: float, own_tail: float) -> float:
        """The claim for arm `place` of the K, in the metric's unit; see the head of the file. Not a number where
        skewness counts: a study that shows it lacks the worst items, and a new one may have them.

        Args:
            critical: one-sided, of the test of all arms.
            own_tail: one-sided level of the test by the arm's own runs.
        """
        part, num_seeds = self.crossed.parts[place], self.crossed.num_seeds
        if part.bend < -COUNTS:
            return math.nan
        both, degrees = self.variances[[0, place + 1]], self.freedoms[[0, place + 1]]
        own = max(float(both.sum()) / num_seeds, part.rest)
        if not own + part.item:  # all scores are the same: no study of this kind says anything
            return math.nan
        random = np.random.default_rng([self.seed, place])
        z_s, z_i, z_new, z_off, z_told, z_tail = random.normal(size=(6, self.draws))
        u_own = random.chisquare(num_seeds - 1, self.draws) / (num_seeds - 1)
        b = float(np.clip(part.skew / math.sqrt(part.num_items), -1, 1))

        variance, rest = _items(part, z_new, b, z_i)
        item = np.maximum(0.0, variance - rest)
        error = np.sqrt(np.maximum(self._pooled(own, u_own, random), rest) + item)
        own_new = np.maximum(own * u_own, rest)
        own_error = np.sqrt(own_new + item)
        marks = self.own_critical(own_tail, own_new / own_error**2)
        off = skewness_error(self.crossed.differences[place].mean(0)) / math.sqrt(part.num_items)
        bend = b + off * z_off
        third = bend * variance**1.5
        needed = np.maximum(_reach(critical, third / error**3) * error, _reach(marks, third / own_error**3) * own_error)
        few = part.num_items < needed_items(without_noise(bend * math.sqrt(part.num_items), variance, item))
        needed = np.where(few & (third / error**3 < -COUNTS), np.maximum(needed, CLEAR * error), needed)
        needed -= math.sqrt(own) * z_s + math.sqrt(part.item) * (z_i + b / 6 * (z_i**2 - 1))

        is_pooled = (degrees == degrees[0]).all() and degrees[0] > num_seeds - 1
        known = (both**2 / degrees).sum()  # 0 where no run differs from another one
        freedom = degrees[0] if is_pooled or not known else both.sum() ** 2 / known
        variance, rest = _items(part, z_told, b, z_tail)
        u = random.chisquare(freedom, self.draws) / freedom
        told = np.sqrt(np.maximum(own * u, rest) + np.maximum(0.0, variance - rest))
        scale = math.sqrt(own + part.item)
        return float(np.quantile(needed / told, POWER, method="higher")) * scale

    def own_critical(self, tail: float, share: np.ndarray) -> np.ndarray:
        """Critical values of the test by the arm's own runs, for shares of these in its variance (Satterthwaite 1946)."""
        shares = np.linspace(0, 1, 21)
        freedom = 1 / (shares**2 / (self.crossed.num_seeds - 1) + (1 - shares) ** 2 / self.crossed.item_freedom)
        return np.interp(share, shares, -special.stdtrit(freedom, tail))

    def _pooled(self, own: float, u_own: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """2 MS / S of new studies: of this contrast, and of all the others."""
        num_seeds = self.crossed.num_seeds
        contrasts = round(self.crossed.square[1] / (num_seeds - 1))
        rest = max(0.0, contrasts * 2 * float(self.variances.mean()) / num_seeds - own)
        if contrasts < 2:
            return own * u_own
        degrees = (contrasts - 1) * (num_seeds - 1)
        return (own * u_own + rest * random.chisquare(degrees, self.draws) / degrees) / contrasts


def _items(part: Parts, normal: np.ndarray, b: float, z_i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V and r of new studies, with means z_i."""
    variance = part.item_variance * _chi2(part.freedom_item, normal) * np.exp(b * z_i - b * b / 2)
    return variance, part.rest * _chi2(part.freedom_rest, normal)


def _chi2(freedom: float, normal: np.ndarray) -> np.ndarray:
    """chi2_f / f at the quantiles of normal draws (Wilson and Hilferty 1931)."""
    part = 2 / (9 * freedom)
    return np.maximum(1e-3, 1 - part + math.sqrt(part) * normal) ** 3


def _reach(critical: np.ndarray | float, a: np.ndarray) -> np.ndarray:
    """T that it takes, with what skewness may take back."""
    return np.maximum(critical, unbend(critical, a))
