"""How the gain of one arm over another differs between the conditions of a series: a pure function of their scores.

With the gain d_c of condition c at the place x_c of an axis,

    slope = sum_c w_c d_c,    w_c = z_c / sum_c z_c^2,    z_c = log2 x_c - mean of log2 x over the block of c

A block holds the conditions that agree on every other axis, so that only differences within it count. The slope is in the
metric's unit per doubling of x.

Where all conditions have the same seeds and items, the slope is one number for each of them, and its interval is that of
any paired comparison (`bft_ray.stats.simultaneous`): what seeds and items have in common cancels. Elsewhere (other data sets) the
conditions are independent: se^2 = sum_c w_c^2 se_c^2, and Student's t on (number of seeds - 1) degrees of freedom, which is
careful.

A contrast is the same sum with w_c = 1/n over the n conditions of one group and -1/m over the m of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bft_ray.config.metrics import higher_is_better
from bft_ray.space.series import Contrast, Trend
from bft_ray.stats.errors import as_groups
from bft_ray.stats.simultaneous import as_arrays, compare_pair
from bft_ray.study.confirm.choice import Plan, Record


@dataclass(frozen=True)
class Confirmed:
    """The confirmation of one condition.

    Args:
        at: axis -> place.
        records: its runs.
    """

    at: Mapping[str, float]
    plan: Plan
    records: Sequence[Record]


_NOTHING = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Estimate:
    """A weighted sum of gains over conditions, in the metric's unit.

    Args:
        low, high: its two-sided interval at `level`; not a number where nothing can be said.
    """

    value: float
    low: float
    high: float
    level: float

    @property
    def sign(self) -> int:
        """1 or -1 where it lies beyond noise, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Slope(Estimate):
    """The slope of a gain over an axis, per doubling; above 0: the gain grows.

    Args:
        num_conditions: that have both arms.
    """

    trend: Trend
    num_conditions: int

    @property
    def verdict(self) -> str:
        """`grows`, `falls`, or `cannot be told`."""
        return {1: "grows", -1: "falls"}.get(self.sign, "cannot be told")


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
        return Difference(*_NOTHING, 1 - alpha, contrast)
    return Difference(*_estimate(found, weights, conditions, alpha), 1 - alpha, contrast)


def slope_of(trend: Trend, conditions: Mapping[str, Confirmed], alpha: float) -> Slope:
    """The slope of a trend.

    Args:
        alpha: error of its interval, both sides together.
    """
    found = {name: gain for name, own in conditions.items() if (gain := _gain(trend, own)) is not None}
    weights = _weights({name: conditions[name].at for name in found}, trend.over)
    if not weights:
        return Slope(*_NOTHING, 1 - alpha, trend, len(found))
    return Slope(*_estimate(found, weights, conditions, alpha), 1 - alpha, trend, len(weights))


def _estimate(
    gains: Mapping[str, _Gain], weights: Mapping[str, float], conditions: Mapping[str, Confirmed], alpha: float
) -> tuple[float, float, float]:
    """The weighted sum of the gains with its interval: paired by seed and item where all conditions have the same ones."""
    used = {name: gains[name] for name in weights}
    first = next(iter(weights))
    if all(one.keys() == used[first].keys() and _items(one) == _items(used[first]) for one in used.values()):
        return _paired(used, weights, conditions[first].plan, alpha)
    return _independent(used, weights, alpha)


#: seed -> item -> gain
_Gain = dict[int, dict[str, float]]


def _gain(trend: Trend | Contrast, own: Confirmed) -> _Gain | None:
    """The gain on each seed and item, higher is better; None where an arm is missing or has failed."""
    metric = trend.metric or own.plan.metric
    sign = 1.0 if higher_is_better(metric) else -1.0
    runs = {(one.name, one.seed): one for one in own.records}
    gain: _Gain = {}
    for seed in own.plan.seeds:
        first, second = runs.get((trend.better, seed)), runs.get((trend.than, seed))
        if first is None or second is None or first.failed or second.failed:
            return None
        ours, theirs = (
            one.items if metric == own.plan.metric else one.others.get(metric, {}) for one in (first, second)
        )
        gain[seed] = {item: sign * (ours[item] - theirs[item]) for item in ours.keys() & theirs.keys()}
    return gain if all(gain.values()) else None


def _items(gain: _Gain) -> set[str]:
    return set.intersection(*(set(own) for own in gain.values()))


def _weights(at: Mapping[str, Mapping[str, float]], axis: str) -> dict[str, float]:
    """Condition -> its weight in the slope; {} where no block has two places."""
    blocks: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for name, places in at.items():
        if axis in places:
            blocks.setdefault(tuple(sorted((a, x) for a, x in places.items() if a != axis)), []).append(name)
    centred: dict[str, float] = {}
    for names in blocks.values():
        logs = {name: math.log2(at[name][axis]) for name in names}
        if len(set(logs.values())) > 1:
            mean = math.fsum(logs.values()) / len(logs)
            centred |= {name: value - mean for name, value in logs.items()}
    total = math.fsum(value**2 for value in centred.values())
    return {name: value / total for name, value in centred.items()}


def _paired(
    gains: Mapping[str, _Gain], weights: Mapping[str, float], plan: Plan, alpha: float
) -> tuple[float, float, float]:
    items = sorted(_items(next(iter(gains.values()))))
    arrays = as_arrays(
        {name: {s: {i: own[i] for i in items} for s, own in gain.items()} for name, gain in gains.items()}, plan.seeds
    )
    slope = np.sum([weights[name] * arrays[name] for name in weights], axis=0)
    groups = as_groups([plan.groups.get(item, ()) for item in items]) if plan.groups else None
    told = compare_pair("slope", "none", {"slope": slope, "none": np.zeros_like(slope)}, alpha, groups)
    return (told.gain, told.low, told.high) if told.has_spread else (told.gain, math.nan, math.nan)


def _independent(gains: Mapping[str, _Gain], weights: Mapping[str, float], alpha: float) -> tuple[float, float, float]:
    value, variance, seeds = 0.0, 0.0, []
    for name, gain in gains.items():
        items = sorted(_items(gain))
        [array] = as_arrays(
            {name: {seed: {i: own[i] for i in items} for seed, own in gain.items()}}, list(gain)
        ).values()
        told = compare_pair(name, "none", {name: array, "none": np.zeros_like(array)}, alpha)
        value += weights[name] * told.gain
        variance += (weights[name] * told.se) ** 2
        seeds.append(len(gain))
    if variance == 0:
        return value, math.nan, math.nan
    reach = float(stats.t.isf(alpha / 2, min(seeds) - 1)) * math.sqrt(variance)
    return value, value - reach, value + reach
