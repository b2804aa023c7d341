"""What the gains of several arms can do by chance, all together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from bft_ray.stats.claim import Claims, how_often
from bft_ray.stats.comparison import Comparison
from bft_ray.stats.crossed import Crossed, Parts
from bft_ray.stats.errors import Groups
from bft_ray.stats.skewness import careful, reaches


@dataclass(frozen=True)
class Noise:
    """What the gains of K arms can do by chance.

    Args:
        crossed: their differences from the reference arm.
        null: draws of g* [B, K].
        own_null: the same for each arm by its own runs alone.
        seed: of the draws.
    """

    crossed: Crossed
    null: np.ndarray
    own_null: np.ndarray
    seed: int

    @classmethod
    def of(
        cls,
        arms: Sequence[np.ndarray],
        groups: Groups | None,
        draws: int,
        seed: int,
        others: Sequence[np.ndarray] = (),
    ) -> Noise:
        """The noise of arms [S, n], the reference arm first; `others` only add their runs to the pooled variance."""
        crossed = Crossed.of(arms, others, groups)
        parts, num_arms = crossed.parts, len(crossed.parts)
        h, freedom, own_freedom = crossed.item_freedom, crossed.square[1], crossed.num_seeds - 1
        pooled, own, items = (np.array([getattr(part, which) for part in parts]) for which in ("pooled", "own", "item"))
        random = np.random.default_rng(seed)
        z_s = (random.normal(size=(draws, num_arms)) + random.normal(size=(draws, 1))) / math.sqrt(2)
        z_i = random.normal(size=(draws, num_arms)) @ _root(crossed.covariance).T * np.sqrt(items)
        u_s = random.chisquare(freedom, size=(draws, 1)) / freedom
        u_own = random.chisquare(own_freedom, size=(draws, num_arms)) / own_freedom
        u_i = random.chisquare(h, size=(draws, num_arms)) / h
        null = (np.sqrt(pooled) * z_s / np.sqrt(u_s) + z_i / np.sqrt(u_i)) / np.sqrt(pooled + items)
        alone = (np.sqrt(own) * z_s + z_i) / np.sqrt(own * u_own + items * u_i)
        return cls(crossed, null, alone, seed)

    @property
    def parts(self) -> tuple[Parts, ...]:
        """The parts of the error of each arm's gain."""
        return self.crossed.parts

    def adjusted(self) -> np.ndarray:
        """p [K]: the larger of that of all arms together, step-down, and that of each arm's own runs."""
        p = step_down(np.array([careful(part.gain / part.se, part.bend) for part in self.parts]), self.null)
        alone = np.array([careful(part.gain / part.own_se, part.own_bend) for part in self.parts])
        return np.maximum(p, np.minimum(1.0, 2 * (self.own_null >= alone).mean(0)))

    def any_better(self, alpha: float) -> bool:
        """Whether any arm is better than the reference arm; see `Comparison.is_better`."""
        return any(
            part.gain > 0 and p <= alpha and not part.is_skewed
            for part, p in zip(self.parts, self.adjusted(), strict=True)
        )

    def comparisons(self, names: Sequence[str], against: str, alpha: float, in_full: bool = True) -> list[Comparison]:
        """Each, at the error alpha of all together; `in_full`: and what it could have shown."""
        p, claims = self.adjusted(), Claims.of(self.crossed, len(self.null), self.seed) if in_full else None
        two_sided = _quantile(np.abs(self.null).max(1), alpha)
        one_sided = _quantile(self.null.max(1), alpha)
        found = []
        for place, (name, part) in enumerate(zip(names, self.parts, strict=True)):
            own = self.own_null[:, place]
            low, high = _ends(part, two_sided, _quantile(np.abs(own), alpha / 2))
            claim = claims.detectable(place, one_sided, alpha / 2) if claims else math.nan
            half = (high - low) / 2
            half_seeds = half * math.sqrt(part.pooled / 2 + part.item) / part.se * self._sooner(part)
            half_items = half * math.sqrt(part.pooled + part.item / 2) / part.se
            found.append(
                Comparison(
                    name=name,
                    against=against,
                    gain=part.gain,
                    low=low,
                    high=high,
                    se=part.se,
                    seed_share=part.pooled / part.se**2,
                    detectable=claim,
                    p=float(p[place]),
                    alpha=alpha,
                    is_skewed=part.is_skewed,
                    half_seeds=half_seeds,
                    half_items=half_items,
                    shows_in=how_often(self.crossed.num_seeds, part.num_items),
                )
            )
        return found

    def _sooner(self, part: Parts) -> float:
        """By what a critical value shrinks with twice the seeds, as t does in proportion."""
        seeds = self.crossed.num_seeds
        freedom = self.crossed.square[1]
        now, then = (
            part.se**4 / (part.pooled**2 / degrees + part.item**2 / self.crossed.item_freedom)  # Satterthwaite 1946
            for degrees in (freedom, freedom * (2 * seeds - 1) / (seeds - 1))
        )
        return float(special.stdtrit(then, 0.975) / special.stdtrit(now, 0.975))

    def best(self, names: Sequence[str]) -> dict[str, float]:
        """Share of draws from N(gains, their covariance) in which an arm has the largest; the first has gain 0."""
        gains, seeds, items = (np.array([getattr(p, name) for p in self.parts]) for name in ("gain", "pooled", "item"))
        shared = 0.5 * (1 + np.eye(len(gains))) * np.sqrt(np.outer(seeds, seeds))
        covariance = shared + np.sqrt(np.outer(items, items)) * _correlation(self.crossed.covariance)
        normal = np.random.default_rng([self.seed, len(gains)]).normal(size=self.null.shape)
        drawn = gains + normal @ _root(covariance, scaled=False).T
        whole = np.concatenate([np.zeros((len(drawn), 1)), drawn], axis=1)
        counts = np.bincount(whole.argmax(1), minlength=len(names)) / len(drawn)
        return dict(zip(names, counts.tolist(), strict=True))


def _quantile(draws: np.ndarray, alpha: float) -> float:
    return float(np.quantile(draws, 1 - alpha, method="higher"))


def _ends(part: Parts, critical: float, own_critical: float) -> tuple[float, float]:
    """Of the interval."""

    down, up = reaches(critical, part.bend)
    own_down, own_up = reaches(own_critical, part.own_bend)
    return (
        part.gain - max(down * part.se, own_down * part.own_se),
        part.gain + max(up * part.se, own_up * part.own_se),
    )


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
