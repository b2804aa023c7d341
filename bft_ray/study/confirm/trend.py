"""How the gain of one arm over another differs between the conditions of a series: a pure function of their scores.

With the gain d_c of condition c at the place x_c of an axis,

    slope = sum_c w_c d_c,    w_c = z_c / sum_c z_c^2,    z_c = log2 x_c - mean of log2 x over the block of c

A block holds the conditions that agree on every other axis, so that only differences within it count. The slope is in the
metric's unit per doubling of x. A contrast is the same sum with w_c = 1/n over the n conditions of one group and -1/m over the
m of the other. Intervals: `bft_ray.study.confirm.combine`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bft_ray.space.series import Contrast, Trend, blocks
from bft_ray.study.confirm.combine import NOTHING, BySeed, Confirmed, Course, Estimate, estimate, scores_of, weighted


@dataclass(frozen=True)
class Slope(Course):
    """The slope of a gain over an axis.

    Args:
        num_conditions: that have both arms.
    """

    trend: Trend
    num_conditions: int


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean gain in one group of conditions minus that in another."""

    contrast: Contrast

    @property
    def verdict(self) -> str:
        """`larger`, `smaller`, or `cannot be told`."""
        return {1: "larger", -1: "smaller"}.get(self.sign, "cannot be told")


def difference_of(contrast: Contrast, conditions: Mapping[str, Confirmed], alpha: float) -> Difference:
    """The difference of a contrast: the same sum as a slope, with w_c = 1 / (number of the group), negative for `against`.

    Args:
        alpha: error of its interval, both sides together.
    """
    weights = {name: 1 / len(contrast.of) for name in contrast.of}
    weights |= {name: -1 / len(contrast.against) for name in contrast.against}
    found = {
        name: gain for name in weights if name in conditions and (gain := _gain(contrast, conditions[name])) is not None
    }
    if len(found) < len(weights):
        return Difference(*NOTHING, contrast)
    return Difference(*estimate(found, weights, conditions, alpha), contrast)


def slope_of(trend: Trend, conditions: Mapping[str, Confirmed], alpha: float, caps: Collection[str] = ()) -> Slope:
    """The slope of a trend.

    Args:
        alpha: error of its interval, both sides together.
        caps: names among the places of conditions that are no axes.
    """
    found = {name: gain for name, own in conditions.items() if (gain := _gain(trend, own)) is not None}
    weights = _weights({name: conditions[name].at for name in found}, trend.over, caps)
    if not weights:
        return Slope(*NOTHING, trend, len(found))
    return Slope(*estimate(found, weights, conditions, alpha), trend, len(weights))


def _gain(trend: Trend | Contrast, own: Confirmed) -> BySeed | None:
    """The gain on each seed and item; None where an arm is missing or has failed."""
    arms = {arm: scores_of(arm, own, trend.metric) for arm in (trend.better, trend.than)}
    found = {arm: scores for arm, scores in arms.items() if scores is not None}
    return weighted(found, {trend.better: 1.0, trend.than: -1.0}) if len(found) == 2 else None


def _weights(at: Mapping[str, Mapping[str, float]], axis: str, caps: Collection[str]) -> dict[str, float]:
    """Condition -> its weight in the slope; {} where no block has two places."""
    centred: dict[str, float] = {}
    for names in blocks(at, axis, caps):
        logs = {name: math.log2(at[name][axis]) for name in names}
        mean = math.fsum(logs.values()) / len(logs)
        centred |= {name: value - mean for name, value in logs.items()}
    total = math.fsum(value**2 for value in centred.values())
    return {name: value / total for name, value in centred.items()}
