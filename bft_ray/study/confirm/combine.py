"""Weighted sums of scores over the conditions of a series, with their intervals: what trends, contrasts and peaks have in common.

Where all conditions have the same seeds and items, the sum is one number for each of them, and its interval is that of
any paired comparison (`bft_ray.stats.simultaneous`): what seeds and items have in common cancels. Elsewhere (other data sets) the
conditions are independent: se^2 = sum_c w_c^2 se_c^2, and Student's t on (number of seeds - 1) degrees of freedom, which is
careful.

A test that is inverted at many places needs a critical value without draws (`sign_of`): that of Cochran and Cox (1957) for variances of
unlike freedom, t = (v_S t_f + v_I t_h) / (v_S + v_I), which errs to the careful side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bft_ray.config.metrics import higher_is_better
from bft_ray.stats.crossed import Crossed
from bft_ray.stats.errors import Groups, as_groups
from bft_ray.stats.simultaneous import compare_pair
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


NOTHING = (math.nan, math.nan, math.nan)
#: seed -> item -> number
BySeed = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Estimate:
    """A weighted sum of scores over conditions, in the metric's unit.

    Args:
        low, high: its two-sided interval; not a number where nothing can be said.
    """

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where it lies beyond noise, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Course(Estimate):
    """How something moves per doubling of an axis; above 0: it grows."""

    @property
    def verdict(self) -> str:
        """`grows`, `falls`, or `cannot be told`."""
        return {1: "grows", -1: "falls"}.get(self.sign, "cannot be told")


def scores_of(arm: str, own: Confirmed, metric: str | None) -> BySeed | None:
    """The scores of an arm on each seed and item, higher is better; None where it is missing, has failed, or lacks the metric.

    Args:
        metric: None: that of the objective.
    """
    name = metric or own.plan.metric
    sign = 1.0 if higher_is_better(name) else -1.0
    runs = {one.seed: one for one in own.records if one.name == arm}
    scores: BySeed = {}
    for seed in own.plan.seeds:
        run = runs.get(seed)
        if run is None or run.failed:
            return None
        items = run.items if name == own.plan.metric else run.others.get(name, {})
        scores[seed] = {item: sign * value for item, value in items.items()}
    return scores if all(scores.values()) else None


def weighted(scores: Mapping[str, BySeed], weights: Mapping[str, float]) -> BySeed:
    """The weighted sum of scores that have the same seeds, on the items that all of them have."""
    names = list(weights)
    return {
        seed: {
            item: sum(weights[name] * scores[name][seed][item] for name in names)
            for item in set.intersection(*(set(scores[name][seed]) for name in names))
        }
        for seed in scores[names[0]]
    }


def estimate(
    gains: Mapping[str, BySeed], weights: Mapping[str, float], conditions: Mapping[str, Confirmed], alpha: float
) -> tuple[float, float, float]:
    """The weighted sum over conditions with the ends of its interval; those are not a number where nothing can be said.

    Args:
        gains: condition -> seed -> item -> number.
        weights: condition -> weight; others do not count.
        conditions: where the groups of the items stand.
        alpha: error of the interval, both sides together.
    """
    used = {name: gains[name] for name in weights}
    if _are_crossed(used):
        return _paired(used, weights, conditions[next(iter(weights))].plan, alpha)
    return _independent(used, weights, alpha)


def sign_of(sums: Mapping[str, BySeed], conditions: Mapping[str, Confirmed], alpha: float) -> int:
    """The sign of the sum over conditions: 1 or -1 where it lies beyond noise, else 0.

    Args:
        sums: condition -> seed -> item -> number.
        alpha: error of the two-sided test.
    """
    if _are_crossed(sums):
        first = next(iter(sums))
        total = np.sum([_array(one) for one in sums.values()], axis=0)
        parts = [_crossed(total, _groups(sums[first], conditions[first].plan))]
    else:
        parts = [_crossed(_array(own), _groups(own, conditions[name].plan)) for name, own in sums.items()]
    value = math.fsum(one.parts[0].gain for one in parts)
    seeds = math.fsum(one.parts[0].pooled for one in parts)
    items = math.fsum(one.parts[0].item for one in parts)
    if seeds + items == 0 or any(one.parts[0].is_skewed for one in parts):
        return 0
    by_seeds = stats.t.isf(alpha / 2, min(one.num_seeds for one in parts) - 1)
    by_items = stats.t.isf(alpha / 2, min(one.item_freedom for one in parts))
    critical = (seeds * by_seeds + items * by_items) / (seeds + items)
    return int(np.sign(value)) if abs(value) > critical * math.sqrt(seeds + items) else 0


def _are_crossed(scores: Mapping[str, BySeed]) -> bool:
    """Whether all conditions have the same seeds and items."""
    first, *others = scores.values()
    return all(one.keys() == first.keys() and _items(one) == _items(first) for one in others)


def _crossed(array: np.ndarray, groups: Groups | None) -> Crossed:
    return Crossed.of([np.zeros_like(array), array], [], groups)


def _array(scores: BySeed) -> np.ndarray:
    """[S, n] on the items of all seeds, in their order."""
    items = sorted(_items(scores))
    return np.array([[own[item] for item in items] for _, own in sorted(scores.items())])


def _groups(scores: BySeed, plan: Plan) -> Groups | None:
    return as_groups([plan.groups.get(item, ()) for item in sorted(_items(scores))]) if plan.groups else None


def _items(gain: BySeed) -> set[str]:
    return set.intersection(*(set(own) for own in gain.values()))


def _paired(
    gains: Mapping[str, BySeed], weights: Mapping[str, float], plan: Plan, alpha: float
) -> tuple[float, float, float]:
    total = np.sum([weights[name] * _array(gain) for name, gain in gains.items()], axis=0)
    groups = _groups(next(iter(gains.values())), plan)
    told = compare_pair("sum", "none", {"sum": total, "none": np.zeros_like(total)}, alpha, groups)
    return (told.gain, told.low, told.high) if told.has_spread else (told.gain, math.nan, math.nan)


def _independent(gains: Mapping[str, BySeed], weights: Mapping[str, float], alpha: float) -> tuple[float, float, float]:
    value, variance, seeds = 0.0, 0.0, []
    for name, gain in gains.items():
        array = _array(gain)
        told = compare_pair(name, "none", {name: array, "none": np.zeros_like(array)}, alpha)
        value += weights[name] * told.gain
        variance += (weights[name] * told.se) ** 2
        seeds.append(len(gain))
    if variance == 0:
        return value, math.nan, math.nan
    reach = float(stats.t.isf(alpha / 2, min(seeds) - 1)) * math.sqrt(variance)
    return value, value - reach, value + reach
