"""How far runs differ, over items and seeds at once, for all comparisons of a study together.

Every arm (a candidate or a baseline) is run with the same S seeds and measured on the same n items. With d_si the
score of arm k minus that of the default, on item i, seed s:

    gain        D = mean over s of mean over i of d_si
    its error   se^2 = v_S + v_I        v_S seeds and chance,   v_I the draw of the items    (`bft_ray.stats.crossed`)

The test is Dunnett's t, one-sided, with skewness taken out of it (`bft_ray.stats.skewness`):

    T = D / se,     g(T) = T + a (T^2 / 3 + 1 / 6) + a^2 T^3 / 27,      a the third cumulant of the items' mean over se^3
    null            g* = (sqrt(v_S / u_S) z_S + sqrt(v_I / u_I) z_I) / se,      u_S ~ chi2_f / f,  u_I ~ chi2_h / h

The null is that of Behrens and Fisher (Fisher 1935): with u in the variance of the sum instead, as in Welch's t, a v_I of few
groups that came out too small would pass for one that is known well. An estimated a may take a claim back, never make one: the
smaller of T and g(T) counts. Where the items are too few for their skewness only T > 10 is called better.

z_S correlates 1/2 between arms (they share the default), z_I as the items do; f and h are the degrees of freedom; drawn
B times, seeded. Adjusted p go step-down (Dunnett and Tamhane 1991; Westfall and Young 1993): the largest T is compared
with the largest of all g*, the next one with the largest of those left. Where no two arms differ, one is called better in at most
alpha of all studies; and the error is controlled in the strong sense.

Pooling is wrong for an arm whose runs vary more than the others'. So each must pass a second test, by its own runs
alone: paired t over its seeds and items, two-sided at alpha, for itself, u in the variance of the sum (p is the larger of the
two). Both have to agree: the first holds the family under equal variances, the second where one arm, or the default, varies
three times as much.

Intervals are two-sided at 1 - alpha for all arms together: D with g(T) = +- c, c the quantile of max |g*|; and never narrower
than the arm's own paired t interval at 1 - alpha / 2. How often all of it errs is measured (docs/statistics.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bft_ray.errors import BadInput
from bft_ray.stats.comparison import Comparison, moves, spreadless
from bft_ray.stats.errors import Groups
from bft_ray.stats.noise import Noise

DRAWS = 10_000


@dataclass(frozen=True)
class Family:
    """Simultaneous comparisons.

    Args:
        comparisons: by arm.
        best: arm (the default too) -> probability that it has the best true mean, given the noise;
            empty without `in_full`.
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
    in_full: bool = True,
) -> Family:
    """Every arm against the default.

    Args:
        scores: arm -> [S, n], rows in one order of seeds and columns in one order of items; above is better.
        alpha: error of all comparisons together.
        draws: B.
        seed: of the draws.
        groups: which items share what.
        in_full: tell what could have been shown and which arm may be the best, too: half of the work.

    Raises:
        BadInput: fewer than 2 seeds, or arrays of different shapes.
    """
    names = sorted(name for name in scores if name != default)
    shapes = {array.shape for array in scores.values()}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise BadInput("scores", sorted(shapes), "of one shape [seeds, items]")
    if next(iter(shapes))[0] < 2:
        raise BadInput("scores", next(iter(shapes)), "of at least 2 seeds: else there is no spread")
    differences = {name: scores[name] - scores[default] for name in names}
    moving = [name for name in names if moves(differences[name])]
    found = {name: spreadless(name, default, differences[name], alpha) for name in names if name not in moving}
    best = {default: 1.0} | dict.fromkeys(names, 0.0) if in_full else {}
    if moving:
        family = Noise.of([scores[default], *(scores[name] for name in moving)], groups, draws, seed)
        found |= {c.name: c for c in family.comparisons(moving, default, alpha, in_full)}
        best |= family.best([default, *moving]) if in_full else {}
    return Family({name: found[name] for name in names}, best)


def compare_pair(
    name: str, against: str, scores: Mapping[str, np.ndarray], alpha: float, groups: Groups | None = None
) -> Comparison:
    """One arm against another, for itself, with the variance of the seeds pooled over all arms of `scores`."""
    difference = scores[name] - scores[against]
    if not moves(difference):
        return spreadless(name, against, difference, alpha)
    others = [array for other, array in scores.items() if other not in (name, against)]
    noise = Noise.of([scores[against], scores[name]], groups, DRAWS, 0, others)
    return noise.comparisons([name], against, alpha)[0]


def not_told_from_best(
    scores: Mapping[str, np.ndarray], alpha: float, draws: int = DRAWS, groups: Groups | None = None
) -> set[str]:
    """Arms that no other one beats beyond noise: with probability 1 - alpha the best is among them (Hsu 1984)."""
    told = set()
    for name, own in scores.items():
        others = [array for array in scores.values() if moves(array - own)]
        if others and Noise.of([own, *others], groups, draws, 0).any_better(alpha):
            told.add(name)
    return set(scores) - told


def as_arrays(
    scores: Mapping[str, Mapping[int, Mapping[str, float]]], seeds: Sequence[int], items: Sequence[str]
) -> dict[str, np.ndarray]:
    """Arm -> seed -> item -> score, as arm -> [S, n], seeds sorted and items in their order; all must have these items."""
    return {
        name: np.array([[scores[name][seed][item] for item in items] for seed in sorted(seeds)])
        for name in sorted(scores)
    }
