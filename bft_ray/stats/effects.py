"""What each setting does to a result, with the others averaged out: an additive model of all trials.

    y_i = mu + sum over settings k of effect_k(level of trial i) + noise

The effects of a setting sum to 0 over its levels. A setting that a trial does not have (an epsilon under a method without
one) adds nothing there. Least squares; intervals of t with n - rank degrees of freedom, each alone at 95 %.

The share of a setting is the partial omega squared of its F test (Olejnik and Algina, 2003), df1 (F - 1) / (df1 (F - 1) + n);
its interval inverts the noncentral F distribution (Steiger, 2004, "Beyond the F test"): lambda / (lambda + n).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

_ESTIMABLE = 1e-6  # of a contrast: how far, relative to its length, it may lie outside of what the trials span
_LEVEL = 0.95


@dataclass(frozen=True)
class Level:
    """The mean at one level of a setting, where the other settings are as in all trials that have this setting.

    Args:
        mean: NaN where the trials cannot separate it from other settings.
        low, high: its interval; NaN without degrees of freedom.
        num_trials: at this level.
    """

    at: Hashable
    mean: float
    low: float
    high: float
    num_trials: int


@dataclass(frozen=True)
class Effect:
    """The effect of one setting.

    Args:
        levels: in the order in which they were given.
        share: of the variance that no other setting explains, the part that this one does; in [0, 1]; NaN: not known.
        low, high: its interval.
        p: of no effect at any level; NaN: not known.
    """

    levels: tuple[Level, ...]
    share: float
    low: float
    high: float
    p: float


def effects(values: Sequence[float], settings: Mapping[str, Sequence[Hashable | None]]) -> dict[str, Effect]:
    """Setting -> what it does; settings with a single level are left out.

    Args:
        values: y, one a trial [n].
        settings: setting -> its level in each trial [n]; None: the trial does not have it.
    """
    y = np.asarray(values, dtype=np.float64)
    levels = {name: _levels(own) for name, own in settings.items()}
    levels = {name: own for name, own in levels.items() if len(own) > 1}
    if len(y) < 3 or not levels:
        return {}
    blocks = {name: _coded(settings[name], own) for name, own in levels.items()}
    x = np.hstack([np.ones((len(y), 1)), *blocks.values()])
    inverse = np.linalg.pinv(x, rcond=1e-9)
    beta, rank = inverse @ y, int(np.linalg.matrix_rank(x))
    freedom = len(y) - rank
    rss = float(np.square(y - x @ beta).sum())
    noise = rss / freedom if freedom > 0 else math.nan
    places = _places(blocks)
    is_partial = {name: any(at is None for at in settings[name]) for name in levels}

    def level(at: Hashable, row: np.ndarray, own: Sequence[Hashable | None]) -> Level:
        count = sum(one == at for one in own)
        weights = row @ inverse  # [n]: of the values, in the estimate
        if np.linalg.norm(weights @ x - row) > _ESTIMABLE * np.linalg.norm(row):
            return Level(at, math.nan, math.nan, math.nan, count)
        mean = float(row @ beta)
        if freedom <= 0:
            return Level(at, mean, math.nan, math.nan, count)
        reach = float(stats.t.isf((1 - _LEVEL) / 2, freedom)) * math.sqrt(noise * float(weights @ weights))
        return Level(at, mean, mean - reach, mean + reach, count)

    found = {}
    for name, own in levels.items():
        has = np.array([at is not None for at in settings[name]])
        rows = []
        for place in range(len(own)):
            row = x[has].mean(axis=0)
            for other, span in places.items():
                if other == name:
                    row[span] = _code(place, len(own))
                elif is_partial[other]:
                    row[span] = 0.0
            rows.append(level(own[place], row, settings[name]))
        found[name] = Effect(tuple(rows), *_share(np.delete(x, places[name], axis=1), y, rss, rank, freedom))
    return found


def _levels(own: Sequence[Hashable | None]) -> list[Hashable]:
    return list(dict.fromkeys(at for at in own if at is not None))


def _coded(own: Sequence[Hashable | None], levels: Sequence[Hashable]) -> np.ndarray:
    """[n, levels - 1]: effect coding."""
    place = {at: index for index, at in enumerate(levels)}
    none = np.zeros(len(levels) - 1)
    return np.array([none if at is None else _code(place[at], len(levels)) for at in own])


def _code(place: int, count: int) -> np.ndarray:
    row = np.zeros(count - 1)
    if place < count - 1:
        row[place] = 1.0
    else:
        row[:] = -1.0
    return row


def _places(blocks: Mapping[str, np.ndarray]) -> dict[str, slice]:
    found, start = {}, 1
    for name, block in blocks.items():
        found[name] = slice(start, start + block.shape[1])
        start += block.shape[1]
    return found


def _share(
    without: np.ndarray, y: np.ndarray, rss: float, rank: int, freedom: int
) -> tuple[float, float, float, float]:
    """(share, low, high, p) of the columns that `without` lacks."""
    fewer = rank - int(np.linalg.matrix_rank(without))
    if freedom <= 0 or fewer == 0 or rss <= 1e-24 * float(y @ y):
        return math.nan, math.nan, math.nan, math.nan
    fit = without @ (np.linalg.pinv(without, rcond=1e-9) @ y)
    f = max(float(np.square(y - fit).sum()) - rss, 0.0) / fewer / (rss / freedom)
    omega, count = fewer * (f - 1), len(y)
    ends = [_noncentral(f, fewer, freedom, tail) for tail in ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)]
    low, high = (end / (end + count) for end in ends)
    return max(omega / (omega + count), 0.0) if omega > 0 else 0.0, low, high, float(stats.f.sf(f, fewer, freedom))


def _noncentral(f: float, first: int, second: int, tail: float) -> float:
    """The noncentrality under which a larger F has probability `tail`; 0 where even without an effect it has more."""
    if stats.f.sf(f, first, second) >= tail:
        return 0.0
    top = 1.0
    while stats.ncf.sf(f, first, second, top) < tail and top < 1e6:
        top *= 4
    return float(optimize.brentq(lambda size: stats.ncf.sf(f, first, second, size) - tail, 0.0, top, xtol=1e-6))
