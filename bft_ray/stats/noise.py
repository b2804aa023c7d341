"""What the gains of several arms can do by chance, all together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bft_ray.stats.comparison import SKEWED, Comparison
from bft_ray.stats.crossed import Parts, error_parts, pooled_square
from bft_ray.stats.errors import Groups, freedom_of, mean_covariance
from bft_ray.stats.power import POWER
from bft_ray.stats.skewness import careful, least_skewness, unbend


@dataclass(frozen=True)
class Noise:
    """What the gains of K arms can do by chance.

    Args:
        parts: of each.
        num_seeds, num_items: S, n.
        pooled_freedom, item_freedom: f, h.
        null: draws of g* [B, K].
        own_null: the same for each arm by its own runs alone.
        covariance: of the gains [K, K].
        draws_normal: standard normal draws [B, K].
        off, off_own: draws [B, K] of how far off se is, pooled and of an arm's own runs, if all vary alike.
    """

    parts: tuple[Parts, ...]
    num_seeds: int
    num_items: int
    pooled_freedom: float
    item_freedom: float
    null: np.ndarray
    own_null: np.ndarray
    covariance: np.ndarray
    draws_normal: np.ndarray
    off: np.ndarray
    off_own: np.ndarray

    @classmethod
    def of(
        cls,
        arms: Sequence[np.ndarray],
        groups: Groups | None,
        draws: int,
        seed: int,
        others: Sequence[np.ndarray] = (),
    ) -> Noise:
        """Of arms [S, n], that which all are held against first; `others` only lend their runs to the pool."""
        differences = np.stack([arm - arms[0] for arm in arms[1:]])
        num_arms, num_seeds, num_items = differences.shape
        by_item = differences.mean(1)
        covariance, h = mean_covariance(by_item, groups), freedom_of(num_items, groups)
        mean_square, freedom = pooled_square(np.stack([arm.mean(1) for arm in (*arms, *others)]))
        parts = []
        for difference, of_items, variance in zip(differences, by_item, np.diag(covariance), strict=True):
            own, rest = error_parts(difference)
            item = max(0.0, float(variance) - rest)
            skewed = least_skewness(of_items, h) / math.sqrt(num_items) * item**1.5
            parts.append(
                Parts(float(difference.mean()), max(own, rest), max(2 * mean_square / num_seeds, rest), item, skewed)
            )
        random = np.random.default_rng(seed)
        seeds, items = (np.sqrt([getattr(part, which) for part in parts]) for which in ("pooled", "item"))
        own_seeds = np.sqrt([part.own for part in parts])
        z_s = (random.normal(size=(draws, num_arms)) + random.normal(size=(draws, 1))) / math.sqrt(2)
        z_i = random.normal(size=(draws, num_arms)) @ _root(covariance).T
        u_s = random.chisquare(freedom, size=(draws, 1)) / freedom
        u_own = random.chisquare(num_seeds - 1, size=(draws, num_arms)) / (num_seeds - 1)
        u_i = random.chisquare(h, size=(draws, num_arms)) / h
        null = (seeds * z_s + items * z_i) / np.sqrt(seeds**2 * u_s + items**2 * u_i)
        alone = (own_seeds * z_s + items * z_i) / np.sqrt(own_seeds**2 * u_own + items**2 * u_i)
        square, normal = seeds**2 + items**2, random.normal(size=(draws, num_arms))
        off = np.sqrt((seeds**2 * u_s + items**2 * u_i) / square)
        off_own = np.sqrt((seeds**2 * u_own + items**2 * u_i) / square)
        correlation = 0.5 * (1 + np.eye(num_arms))
        whole = correlation * np.outer(seeds, seeds) + np.outer(items, items) * _correlation(covariance)
        return cls(tuple(parts), num_seeds, num_items, freedom, h, null, alone, whole, normal, off, off_own)

    def adjusted(self) -> np.ndarray:
        """p [K]: the larger of that of all arms together, step-down, and that of each arm's own runs."""
        p = step_down(np.array([careful(part.gain / part.se, part.bend) for part in self.parts]), self.null)
        alone = np.array([careful(part.gain / part.own_se, part.own_bend) for part in self.parts])
        return np.maximum(p, np.minimum(1.0, 2 * (self.own_null >= alone).mean(0)))

    def any_better(self, alpha: float) -> bool:
        """Whether any arm is better than the one that all are held against; see `Comparison.is_better`."""
        return any(
            part.gain > 0 and p <= alpha and part.bend >= -SKEWED
            for part, p in zip(self.parts, self.adjusted(), strict=True)
        )

    def comparisons(self, names: Sequence[str], against: str, alpha: float) -> list[Comparison]:
        """Each, at the error alpha of all together."""
        p = self.adjusted()
        largest = np.abs(self.null).max(1)
        critical = float(np.quantile(largest, 1 - alpha, method="higher"))
        one_sided = float(np.quantile(self.null.max(1), 1 - alpha, method="higher"))
        return [
            self._one(place, name, against, alpha, float(p[place]), critical, one_sided)
            for place, name in enumerate(names)
        ]

    def _one(
        self, place: int, name: str, against: str, alpha: float, p: float, critical: float, one_sided: float
    ) -> Comparison:
        part = self.parts[place]
        own_critical = float(np.quantile(np.abs(self.own_null[:, place]), 1 - alpha / 2, method="higher"))
        ends = []
        for sign in (1, -1):
            reach = max(
                max(critical, sign * unbend(sign * critical, part.bend)) * part.se,
                max(own_critical, sign * unbend(sign * own_critical, part.own_bend)) * part.own_se,
            )
            ends.append(part.gain - sign * reach)
        half = (ends[1] - ends[0]) / 2
        item, pooled = part.item, part.pooled
        return Comparison(
            name,
            against,
            part.gain,
            ends[0],
            ends[1],
            part.se,
            pooled / part.se**2,
            self._detectable(place, alpha, one_sided),
            p,
            alpha,
            part.bend,
            half * math.sqrt(pooled / 2 + item) / part.se * self._sooner(part),
            half * math.sqrt(pooled + item / 2) / part.se,
        )

    def _detectable(self, place: int, alpha: float, critical: float) -> float:
        """As `bft_ray.stats.power` defines it, for a test that asks twice: the 0.8 quantile of the k at which a drawn new
        study passes both tests, Z + k u > max(c u', c_own u'_own), in units of se.
        """
        if self.parts[place].bend < -SKEWED:  # no gain would be shown
            return math.nan
        own = float(np.quantile(self.own_null[:, place], 1 - alpha / 2, method="higher"))
        needed = np.maximum(critical * self.off[:, place], own * self.off_own[:, place]) - self.draws_normal[:, place]
        told = np.roll(self.off[:, place], len(self.off) // 2)  # of the study that tells it: another one
        return float(np.quantile(needed / told, POWER)) * self.parts[place].se

    def _sooner(self, part: Parts) -> float:
        """By what a critical value shrinks with twice the seeds, as t does in proportion."""
        seeds = 2 * self.num_seeds - 1
        more = self.pooled_freedom * seeds / (self.num_seeds - 1)
        now, then = self._freedom(part), self._freedom(part, more)
        return float(stats.t.isf(0.025, then) / stats.t.isf(0.025, now))

    def _freedom(self, part: Parts, pooled: float | None = None) -> float:
        """Degrees of freedom of se (Satterthwaite 1946)."""
        seeds = self.pooled_freedom if pooled is None else pooled
        return part.se**4 / (part.pooled**2 / seeds + part.item**2 / self.item_freedom)

    def best(self, names: Sequence[str]) -> dict[str, float]:
        """Share of draws from N(gains, their covariance) in which an arm has the largest; the first has gain 0."""
        gains = np.array([part.gain for part in self.parts])
        drawn = gains + self.draws_normal @ _root(self.covariance, scaled=False).T
        whole = np.concatenate([np.zeros((len(drawn), 1)), drawn], axis=1)
        counts = np.bincount(whole.argmax(1), minlength=len(names)) / len(drawn)
        return dict(zip(names, counts.tolist(), strict=True))


def step_down(statistics: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Adjusted p [K] of statistics [K] by draws under the null [B, K]: the larger ones first, each against the largest
    of those left (Westfall and Young 1993, algorithm 4.1).
    """
    order = np.argsort(-statistics, kind="stable")
    left = np.maximum.accumulate(null[:, order[::-1]], axis=1)[:, ::-1]  # [B, K]: the largest of those from a rank on
    own = (1 + (left >= statistics[order]).sum(0)) / (1 + len(null))
    p = np.empty(len(statistics))
    p[order] = np.maximum.accumulate(own)
    return p


def _correlation(covariance: np.ndarray) -> np.ndarray:
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    product = np.outer(deviation, deviation)
    return np.divide(covariance, product, out=np.eye(len(covariance)), where=product > 0)


def _root(covariance: np.ndarray, scaled: bool = True) -> np.ndarray:
    """A with A A^T the matrix, of unit diagonal where `scaled`; what is below 0 (of shared groups) is left out."""
    values, vectors = np.linalg.eigh(_correlation(covariance) if scaled else covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    if not scaled:
        return root
    length = np.linalg.norm(root, axis=1, keepdims=True)
    return np.divide(root, length, out=np.zeros_like(root), where=length > 0)
