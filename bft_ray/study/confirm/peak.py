"""Where between its arms a setting does best, and whether that moves along an axis: a pure function of the scores of a series.

With u = log2 of the setting of an arm, x_c = log2 of the place of condition c on the axis, centred, one parabola is laid
through the mean scores of all arms under all conditions, by least squares:

    y = a_c + b u + d u x_c + g u^2,     slope at u:  s_c(u) = b + d x_c + 2 g u,     peak:  u_c = -(b + d x_c) / (2 g)

A slope is a weighted sum of scores, so it can be tested against 0 (`bft_ray.study.confirm.combine.sign_of`). The interval of
a peak is that of Fieller (1954), by inverting the test: all settings at which the slope does not differ from 0 beyond noise.
It may reach an end of the settings, or hold all of them: then the data do not say where the peak is. Per doubling of x the peak
moves by a factor 2^m, m = -d / (2 g), with the interval of all m at which d + 2 g m does not differ from 0. All intervals of a
peak hold together (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bft_ray.space.series import Peak
from bft_ray.study.confirm.combine import NOTHING, BySeed, Confirmed, Course, scores_of, sign_of, weighted

#: places at which the test is inverted: of the settings, and of the factor, in doublings
_NUM_PLACES = 41
_LARGEST_MOVE = 4.0
#: a condition and an arm
Cell = tuple[str, str]


@dataclass(frozen=True)
class Best:
    """The best setting under one condition, in the unit of the setting.

    Args:
        value: the peak, within the settings tried; not a number where the parabola has none.
        low, high: the settings between which it lies; not a number where the data do not say.
        shown: setting -> mean score, minus the mean of the condition.
        curve: setting -> the parabola, likewise.
    """

    value: float
    low: float
    high: float
    shown: Mapping[float, float]
    curve: Mapping[float, float]

    @property
    def is_told(self) -> bool:
        """Whether the data say between which settings the best one lies."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Peaked:
    """What the scores say of a peak.

    Args:
        best: condition -> its best setting; only those whose arms have run.
        move: of the best setting along the axis, in doublings; no number where the parabola has no peak; None where none is
            asked for.
    """

    peak: Peak
    best: Mapping[str, Best]
    move: Course | None


def peak_of(peak: Peak, conditions: Mapping[str, Confirmed], alpha: float) -> Peaked:
    """The best setting under each condition.

    Args:
        alpha: error of all intervals together.
    """
    scores: dict[Cell, BySeed] = {}
    settings: dict[Cell, float] = {}
    logs: dict[str, float] = {}
    for name, own in conditions.items():
        if peak.over is not None and peak.over not in own.at:
            continue
        found = {arm: one for arm in peak.arms if (one := scores_of(arm, own, peak.metric)) is not None}
        at = {arm: math.log2(_setting(peak, arm, own)) for arm in found}
        if len({round(u, 9) for u in at.values()}) > 2:
            scores |= {(name, arm): one for arm, one in found.items()}
            settings |= {(name, arm): u for arm, u in at.items()}
            logs[name] = math.log2(own.at[peak.over]) if peak.over else 0.0
    mean = math.fsum(logs.values()) / max(1, len(logs))
    places = {name: value - mean for name, value in logs.items()}
    fit = _Fit(settings, places, scores, conditions, alpha / (len(places) + 1))
    moves = len({round(place, 9) for place in places.values()}) > 1
    if not fit.is_determined or (peak.over and not moves):
        return Peaked(peak, {}, Course(*NOTHING) if peak.over else None)
    return Peaked(peak, {name: fit.best(name) for name in places}, fit.move() if peak.over else None)


def _setting(peak: Peak, arm: str, own: Confirmed) -> float:
    """The setting of an arm; beyond the cap it makes no difference."""
    return min(peak.arms[arm], own.at.get(peak.capped_by, math.inf) if peak.capped_by else math.inf)


@dataclass(frozen=True)
class _Fit:
    """The parabola of all conditions.

    Args:
        settings: cell -> u.
        places: condition -> x.
        level: error of each interval.
    """

    settings: Mapping[Cell, float]
    places: Mapping[str, float]
    scores: Mapping[Cell, BySeed]
    conditions: Mapping[str, Confirmed]
    level: float

    @cached_property
    def design(self) -> np.ndarray:
        """[cells, number of conditions + 3]: what a_c, then b, d, g add to the mean score of a cell."""
        return np.array(
            [
                [*(float(name == own) for own in self.places), u, u * self.places[name], u * u]
                for (name, _), u in self.settings.items()
            ]
        )

    @property
    def is_determined(self) -> bool:
        """Whether the cells determine a parabola."""
        moves = any(abs(place) > 1e-9 for place in self.places.values())
        return bool(self.settings) and int(np.linalg.matrix_rank(self.design)) >= len(self.places) + 2 + moves

    @cached_property
    def solve(self) -> np.ndarray:
        """[number of conditions + 3, cells]: the coefficients from the mean scores."""
        return np.linalg.pinv(self.design)

    @cached_property
    def coefficients(self) -> np.ndarray:
        """[number of conditions + 3]: a_c, then b, d, g (d is 0 where nothing moves)."""
        return self.solve @ np.array([_mean(own) for own in self.scores.values()])

    def best(self, name: str) -> Best:
        own = {cell: u for cell, u in self.settings.items() if cell[0] == name}
        smallest, largest = min(own.values()), max(own.values())
        b, d, g = self.coefficients[-3:]
        grid = np.linspace(smallest, largest, _NUM_PLACES)
        raw = {u: _mean(self.scores[cell]) for cell, u in own.items()}
        mean = math.fsum(raw.values()) / len(raw)
        height = self.coefficients[list(self.places).index(name)] - mean
        curve = {2.0**u: float(height + (b + d * self.places[name]) * u + g * u * u) for u in grid}
        shown = {2.0**u: value - mean for u, value in raw.items()}
        if g >= 0:
            return Best(math.nan, math.nan, math.nan, shown, curve)
        value = float(np.clip(-(b + d * self.places[name]) / (2 * g), smallest, largest))
        signs = [self._sign(1.0, self.places[name], 2 * u) for u in grid]
        # the peak lies right of where the curve is shown to rise, and left of where it is shown to fall
        low = max((u for u, sign in zip(grid, signs, strict=True) if sign > 0), default=smallest)
        high = min((u for u, sign in zip(grid, signs, strict=True) if sign < 0), default=largest)
        if not any(signs):
            return Best(2.0**value, math.nan, math.nan, shown, curve)
        return Best(2.0**value, 2.0 ** float(low), 2.0 ** float(high), shown, curve)

    def move(self) -> Course:
        _, d, g = self.coefficients[-3:]
        if g >= 0:
            return Course(*NOTHING)
        value = float(-d / (2 * g))
        if self._sign(0.0, 0.0, 1.0) == 0:  # with a curvature that may be 0, the factor may be anything
            return Course(value, -math.inf, math.inf)
        grid = np.linspace(-_LARGEST_MOVE, _LARGEST_MOVE, 2 * _NUM_PLACES - 1)
        signs = [self._sign(0.0, 1.0, 2 * m) for m in grid]
        # d + 2 g m falls with m: the factor lies right of where it is shown to be above 0, and left of where below
        low = max((float(m) for m, sign in zip(grid, signs, strict=True) if sign > 0), default=-math.inf)
        high = min((float(m) for m, sign in zip(grid, signs, strict=True) if sign < 0), default=math.inf)
        return Course(value, low, high)

    @cached_property
    def _parts(self) -> dict[str, dict[str, BySeed]]:
        """Condition -> b, d, g -> what it adds to the coefficient, on each seed and item."""
        return {
            name: {
                coefficient: weighted(
                    {arm: own for (condition, arm), own in self.scores.items() if condition == name},
                    {
                        arm: float(weight)
                        for (condition, arm), weight in zip(self.settings, row, strict=True)
                        if condition == name
                    },
                )
                for coefficient, row in zip("bdg", self.solve[-3:], strict=True)
            }
            for name in self.places
        }

    def _sign(self, b: float, d: float, g: float) -> int:
        """Of b, d and g times their coefficients: 1 or -1 beyond noise, else 0."""
        sums = {name: weighted(parts, {"b": b, "d": d, "g": g}) for name, parts in self._parts.items()}
        return sign_of(sums, self.conditions, self.level)


def _mean(scores: BySeed) -> float:
    return float(np.mean([np.mean(list(own.values())) for own in scores.values()]))
