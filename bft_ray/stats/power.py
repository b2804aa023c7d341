"""The smallest detectable effect: one definition for the whole product.

A study that estimates an effect D with the standard error s on f degrees of freedom calls it beyond noise where
D / s > c. The effect that is called *detectable* is k s, with k such that a new study of the same kind, whose true effect
is k s, shows it in 8 of 10 repetitions:

    P( T' > c ) = 0.8,    T' = (Z + k u) / u',    u, u' ~ sqrt(chi2_f / f),  Z ~ N(0, 1), independent

Given u this is the noncentral t of f degrees and noncentrality k u (Johnson, Kotz and Balakrishnan 1995, "Continuous
univariate distributions 2", chapter 31). u is how far off s is as an estimate of the true error; the mean over it is what
makes the sentence "shows in 8 of 10 studies" true over studies. Without it, as in c + t_f(0.8) (Bloom 1995), the share is
6 to 7 of 10 where f is 2 to 4, because s is more often too small than too large. For large f, k = c + 0.84.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

#: share of the items on which exactly one of two models is right, where nothing was measured yet
DISCORDANT = 0.2
POWER = 0.8
LEVEL = 0.05  # two-sided, of one comparison
_NODES = 12  # Gauss-Legendre, over the quantiles of u: right to 1e-4
_NORMAL = 5_000.0  # degrees of freedom from which on t is normal


def detectable(se: float, freedom: float = math.inf, level: float = LEVEL, critical: float | None = None) -> float:
    """The smallest detectable effect, in the unit of `se`; see the head of the file.

    Args:
        se: standard error of the effect, as estimated.
        freedom: its degrees of freedom.
        level: two-sided, of the test.
        critical: c; null: the t quantile of `level`.

    Returns:
        Not a number for a standard error of 0: a study without spread tells nothing about what it could have seen.
    """
    if not se > 0:
        return math.nan
    return factor(critical_value(freedom, level) if critical is None else critical, freedom) * se


def critical_value(freedom: float, level: float = LEVEL) -> float:
    """Two-sided critical value of t."""
    return float(stats.t.isf(level / 2, freedom)) if freedom < _NORMAL else float(stats.norm.isf(level / 2))


def power_of(effect: float, critical: float, freedom: float) -> float:
    """P(T > c) for a true effect of `effect` estimated standard errors: the noncentral t, averaged over u."""
    if freedom >= _NORMAL:
        return float(stats.norm.sf(critical - effect))
    off, weights = _how_far_off(freedom)
    return float(weights @ (1 - np.nan_to_num(special.nctdtr(freedom, effect * off, critical), nan=0.0)))


@lru_cache(4096)
def _how_far_off(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """u at the nodes, and their weights."""
    places, weights = np.polynomial.legendre.leggauss(_NODES)
    return np.sqrt(special.chdtri(freedom, (1 - places) / 2) / freedom), weights / 2


@lru_cache(4096)
def factor(critical: float, freedom: float) -> float:
    """k: the detectable effect in standard errors."""
    if freedom >= _NORMAL:
        return critical + float(stats.norm.ppf(POWER))
    high = 2.0 * (critical + 1)
    while power_of(high, critical, freedom) < POWER:
        high *= 2
    return float(optimize.brentq(lambda k: power_of(k, critical, freedom) - POWER, 0.0, high, xtol=1e-4))


def smallest_share(num_items: int) -> float | None:
    """Smallest difference of a share between two models on the same independent items that 8 of 10 studies show.

    As `detectable_binary`, with DISCORDANT of the items discordant, or as many as the difference takes; None: not any.
    """
    effect = detectable_binary(num_items, max(1, round(DISCORDANT * num_items)))
    return None if math.isnan(effect) else effect


@lru_cache(4096)
def detectable_binary(num_items: int, num_discordant: int, level: float = LEVEL) -> float:
    """The difference of two shares, paired, that the exact McNemar test shows in 8 of 10 repetitions.

    With m of n items discordant, m ~ Binomial(n, psi), and x of them in favour, x ~ Binomial(m, (1 + delta / psi) / 2):

        P( x >= x*(m) ) = 0.8,    x*(m) the least with P( Binomial(m, 1/2) >= x* ) <= level / 2

    psi is the share that was seen, or delta where that is larger (Duffy 1984, Biometrics 40; Miettinen 1968).

    Returns:
        Not a number without discordant items, and where even n of n would not do.
    """
    if not num_discordant:
        return math.nan
    seen = num_discordant / num_items

    def power(delta: float) -> float:
        psi = max(seen, delta)
        low, high = stats.binom.ppf([1e-7, 1 - 1e-7], num_items, psi).astype(int)
        discordant = np.arange(low, high + 1)
        needed = stats.binom.isf(level / 2, discordant, 0.5) + 1  # the least x with P(X >= x) <= level / 2
        shown = stats.binom.sf(needed - 1, discordant, (1 + delta / psi) / 2)
        return float(np.sum(stats.binom.pmf(discordant, num_items, psi) * shown))

    if power(1.0) < POWER:
        return math.nan
    return float(optimize.brentq(lambda delta: power(delta) - POWER, 1e-9, 1.0, xtol=1e-6))
