"""How far runs differ, over items and seeds at once, for all comparisons of a study together.

Every arm (a candidate or a baseline) is run with the same S seeds and measured on the same n items. With d_si the
score of arm k minus that of the default, on item i, seed s:

    gain        D = mean over s of mean over i of d_si
    its error   se^2 = v_S + v_I        v_S seeds and chance,   v_I the draw of the items

Seeds and items are crossed (an item that an arm is good at, it is good at under every seed): the two-way analysis of
variance takes each one's share. With r = MS_rest / (S n) the part that is neither:

    v_S = max(2 MS / S, r)      MS: mean square of arms x seeds, of the run means of all arms, (arms - 1)(S - 1) degrees
    v_I = max(0, V - r)         V: variance of the mean over items of d_.i, of groups where items share them

Seeds are blocks and the variance is pooled over arms (Dunnett 1955; Scheffe 1959, section 4.2): a few seeds of one arm
cannot tell its variance. That r bounds v_S from below keeps a spread of 0 by coincidence (sparse right and wrong) from being
believed. Items are many: their variance is each arm's own.

The test is Dunnett's t, one-sided, with skewness taken out of it (Hall 1992, Journal of the Royal Statistical Society B
54): with a the third cumulant of the items' mean over se^3,

    T = D / se,     g(T) = ((1 + a T / 3)^3 - 1) / a + a / 6
    null            g* = (sqrt(v_S) z_S + sqrt(v_I) z_I) / sqrt(v_S chi2_f / f + v_I chi2_h / h)

a is taken at its worst for a claim (less one standard error, `least_skewness`), and may take one back, never make one: the
smaller of T and g(T) counts. Where even then the items are too few for their skewness (a < -0.2) nothing is called better.

z_S correlates 1/2 between arms (they share the default), z_I as the items do; f and h are the degrees of freedom; drawn
B times, seeded. Adjusted p go step-down (Dunnett and Tamhane 1991; Westfall and Young 1993): the largest T is held against
the largest of all g*, the next against that of those left. Where no two arms differ, one is called better in at most
alpha of all studies; and the error is controlled in the strong sense.

Pooling is wrong for an arm whose runs vary more than the others'. So each must pass a second test, by its own runs
alone: paired t over its seeds and items, two-sided at alpha, for itself (p is the larger of the two). Both have to agree: the
first holds the family under equal variances, the second where one arm, or the default, varies three times as much.

Intervals are two-sided at 1 - alpha for all arms together: D with g(T) = +- c, c the quantile of max |g*|; and never narrower
than the arm's own paired t interval at 1 - alpha / 2. What these settings do is measured by `jobs.bench_statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bft_ray.errors import BadInput
from bft_ray.stats.errors import Groups, freedom_of, mean_covariance
from bft_ray.stats.power import POWER, detectable

DRAWS = 10_000
SKEWED = 0.2  # |third cumulant of the mean| / se^3 from which the items are too few to judge by
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """One arm against another, in the metric's unit; above 0 is better.

    Args:
        name, against: the arms.
        gain: mean difference.
        low, high: its two-sided interval; holds for all comparisons of the study together.
        se: standard error; 0 where items and seeds all differ alike, which nothing can be told from.
        seed_share: share of se^2 that seeds bring; the rest is the draw of the items.
        detectable: smallest true gain that 8 of 10 such studies show (`bft_ray.stats.power`); not a number where nothing
            can be shown.
        p: of no gain, one-sided, adjusted for all comparisons.
        alpha: error of all comparisons together.
        skewness: third cumulant of the mean over se^3 at its worst: how far the few worst items count (below 0).
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
    skewness: float = 0.0
    half_seeds: float = math.nan
    half_items: float = math.nan

    @property
    def has_spread(self) -> bool:
        """Whether there is noise to judge the gain by."""
        return self.se > 0

    @property
    def is_skewed(self) -> bool:
        """Whether a gain rests on so few items that it cannot be judged: the default stays then."""
        return self.skewness < -SKEWED

    @property
    def is_better(self) -> bool:
        """Whether the gain lies beyond noise."""
        return self.has_spread and self.gain > 0 and self.p <= self.alpha and not self.is_skewed

    @property
    def is_worse(self) -> bool:
        """Whether the loss lies beyond noise."""
        return self.has_spread and self.high < 0


@dataclass(frozen=True)
class _Parts:
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


@dataclass(frozen=True)
class Family:
    """Comparisons that stand together.

    Args:
        comparisons: by arm.
        best: arm (the default too) -> probability that it has the best true mean, as far as noise lets one tell.
    """

    comparisons: dict[str, Comparison]
    best: dict[str, float]


def compare_with(
    scores: Mapping[str, np.ndarray],
    default: str,
    alpha: float,
    draws: int = DRAWS,
    seed: int = 0,
    groups: Groups | None = None,
) -> Family:
    """Every arm against the default.

    Args:
        scores: arm -> [S, n], rows in one order of seeds and columns in one order of items; above is better.
        alpha: error of all comparisons together.
        draws: B.
        seed: of the draws.
        groups: which items share what.

    Raises:
        BadInput: fewer than 2 seeds or items, or arrays of different shapes.
    """
    names = sorted(name for name in scores if name != default)
    shapes = {array.shape for array in scores.values()}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise BadInput("scores", sorted(shapes), "of one shape [seeds, items]")
    if min(next(iter(shapes))) < 2:
        raise BadInput("scores", next(iter(shapes)), "of at least 2 seeds and 2 items: else there is no spread")
    differences = {name: scores[name] - scores[default] for name in names}
    moving = [name for name in names if _moves(differences[name])]
    found = {name: _spreadless(name, default, differences[name], alpha) for name in names if name not in moving}
    best = {default: 1.0} | dict.fromkeys(names, 0.0)
    if moving:
        family = _Noise.of([scores[default], *(scores[name] for name in moving)], groups, draws, seed)
        found |= {c.name: c for c in family.comparisons(moving, default, alpha)}
        best |= family.best([default, *moving])
    return Family({name: found[name] for name in names}, best)


def compare_pair(
    name: str, against: str, scores: Mapping[str, np.ndarray], alpha: float, groups: Groups | None = None
) -> Comparison:
    """One arm against another, for itself, with the variance of the seeds pooled over all arms of `scores`."""
    difference = scores[name] - scores[against]
    if not _moves(difference):
        return _spreadless(name, against, difference, alpha)
    others = [array for other, array in scores.items() if other not in (name, against)]
    noise = _Noise.of([scores[against], scores[name]], groups, DRAWS, 0, others)
    return noise.comparisons([name], against, alpha)[0]


def not_told_from_best(
    scores: Mapping[str, np.ndarray], alpha: float, draws: int = DRAWS, groups: Groups | None = None
) -> set[str]:
    """Arms that no other one beats beyond noise: with probability 1 - alpha the best is among them (Hsu 1984)."""
    told = set()
    for name, own in scores.items():
        others = [array for array in scores.values() if _moves(array - own)]
        if others and _Noise.of([own, *others], groups, draws, 0).any_better(alpha):
            told.add(name)
    return set(scores) - told


@dataclass(frozen=True)
class _Noise:
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

    parts: tuple[_Parts, ...]
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
    ) -> _Noise:
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
                _Parts(float(difference.mean()), max(own, rest), max(2 * mean_square / num_seeds, rest), item, skewed)
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
        p = step_down(np.array([_careful(part.gain / part.se, part.bend) for part in self.parts]), self.null)
        alone = np.array([_careful(part.gain / part.own_se, part.own_bend) for part in self.parts])
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
                max(critical, sign * _unbend(sign * critical, part.bend)) * part.se,
                max(own_critical, sign * _unbend(sign * own_critical, part.own_bend)) * part.own_se,
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

    def _sooner(self, part: _Parts) -> float:
        """By what a critical value shrinks with twice the seeds, as t does in proportion."""
        seeds = 2 * self.num_seeds - 1
        more = self.pooled_freedom * seeds / (self.num_seeds - 1)
        now, then = self._freedom(part), self._freedom(part, more)
        return float(stats.t.isf(0.025, then) / stats.t.isf(0.025, now))

    def _freedom(self, part: _Parts, pooled: float | None = None) -> float:
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


def error_parts(difference: np.ndarray) -> tuple[float, float]:
    """Of crossed differences [S, n]: variance of the mean that its own seeds bring, and r (see the head of the file)."""
    num_seeds, num_items = difference.shape
    by_seed, by_item = difference.mean(1), difference.mean(0)
    rest = difference - by_seed[:, None] - by_item[None, :] + difference.mean()
    v_rest = float((rest**2).sum()) / ((num_seeds - 1) * (num_items - 1)) / (num_seeds * num_items)
    return float(by_seed.var(ddof=1)) / num_seeds, v_rest


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


def pooled_square(runs: np.ndarray) -> tuple[float, float]:
    """Mean square of arms x seeds of run means [arms, S], and its degrees of freedom. Arms whose runs are another's count
    once: they would pretend to a smaller spread.
    """
    runs = np.unique(np.round(runs, 12), axis=0)
    rest = runs - runs.mean(1, keepdims=True) - runs.mean(0) + runs.mean()
    freedom = float(max(1, len(runs) - 1) * (runs.shape[1] - 1))
    return float((rest**2).sum()) / freedom, freedom


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


def as_arrays(scores: Mapping[str, Mapping[int, Mapping[str, float]]], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Arm -> seed -> item -> score, as arm -> [S, n], seeds and items sorted; all must have the same items."""
    items = sorted(next(iter(next(iter(scores.values())).values())))
    return {
        name: np.array([[scores[name][seed][item] for item in items] for seed in sorted(seeds)])
        for name in sorted(scores)
    }


def compare_alone(name: str, against: str, difference: np.ndarray, level: float) -> Comparison:
    """One comparison for itself, from its own differences [S, n] alone (S of 1: of these items, not of other seeds), at the
    two-sided `level`:

        D +- t* se,   t* = (v_S t(S - 1) + v_I t(n - 1)) / se^2

    t* is Cochran's (1964), never below its level.
    """
    num_seeds, num_items = difference.shape
    if not _moves(difference):
        return _spreadless(name, against, difference, level / 2)
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


def _spreadless(name: str, against: str, difference: np.ndarray, alpha: float) -> Comparison:
    gain = float(difference.mean())
    return Comparison(name, against, gain, gain, gain, 0.0, 0.0, math.nan, alpha=alpha)


def _moves(difference: np.ndarray) -> bool:
    """Whether differences have a spread beyond rounding."""
    return float(np.ptp(difference)) > 1e-9 * max(1.0, float(np.abs(difference).max()))


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


def _bend(t: float, a: float) -> float:
    return t + a * (t * t / 3 + 1 / 6) + a * a * t**3 / 27


def _careful(t: float, a: float) -> float:
    """The smaller of T and g(T): an estimated skewness may take a claim back, and may not make one."""
    return min(t, _bend(t, a))


def _unbend(g: float, a: float) -> float:
    """The t of which `_bend` is g."""
    if abs(a) < 1e-6:
        return g
    return 3 / a * (float(np.cbrt(1 + a * (g - a / 6))) - 1)
