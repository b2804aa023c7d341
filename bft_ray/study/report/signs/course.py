"""How trials go on after their last rung."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from bft_ray.config.metrics import higher_is_better
from bft_ray.page.model import Finding
from bft_ray.space.definition import SearchSpace
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.record import Records, TrialRecord
from bft_ray.study.records.store import SEARCH

_LEVEL = 0.01  # of the sign test
_FEW = 5  # trials; of fewer no sign is told
_LITTLE, _MUCH = 0.1, 0.5  # of the whole improvement


def plateau(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Most trials improve hardly after half of their steps."""
    gains = _late_gains(parts.get(SEARCH, ()), space)
    share, count = _late_share(gains)
    if count < _FEW or share >= _LITTLE or _falls(gains):
        return None
    return Finding(
        "An early plateau",
        f"Half of the {count} trials that ran to their end made at most {max(share, 0):.0%} "
        "of their improvement after their last rung.",
        "Fewer steps (budget.steps) would find the same; spend them on more trials, seeds or items. If the level is "
        "too low, the limit is the data or the base model, not the training time.",
    )


def falling(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """More trials end below their last rung than chance allows: they train too long (sign test)."""
    gains = _late_gains(parts.get(SEARCH, ()), space)
    if len(gains) < _FEW or not _falls(gains):
        return None
    count = sum(late < 0 for _, late in gains)
    return Finding(
        "Trials get worse towards their end",
        f"{count} of {len(gains)} trials that ran to their end had a better {rung_metric(space)} at their last "
        f"rung: they learn the training rows by heart.",
        "Fewer steps or epochs, a lower learning rate, or more rows.",
    )


def rising(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Most trials make much of their improvement after their last rung: they are cut short."""
    share, count = _late_share(_late_gains(parts.get(SEARCH, ()), space))
    if count < _FEW or share < _MUCH:
        return None
    return Finding(
        "Trials still rise at their end",
        f"Half of the {count} trials that ran to their end made at least {share:.0%} of their improvement after their last rung.",
        "More steps (budget.steps) under another `name`: the order of settings may change when they have learned.",
    )


def _late_gains(search: Sequence[TrialRecord], space: SearchSpace) -> list[tuple[float, float]]:
    """(improvement from the first rung to the end, that from the last rung to the end) of trials that ran to their end and
    were measured at two rungs or more.
    """
    metric = rung_metric(space)
    sign = 1 if higher_is_better(metric) else -1
    found = []
    for record in search:
        values = [value for value in record.rung_values.values() if math.isfinite(value)]
        if record.ran_to_end and metric in record.metrics and len(values) > 1:
            end = record.metrics[metric]
            found.append((sign * (end - values[0]), sign * (end - values[-1])))
    return found


def _late_share(gains: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Median share of the improvement that came after the last rung, and the number of trials that improved at all."""
    shares = [late / whole for whole, late in gains if whole > 0]
    return (float(np.median(shares)) if shares else math.nan), len(shares)


def _falls(gains: Sequence[tuple[float, float]]) -> bool:
    moved = [late for _, late in gains if late != 0]
    worse = sum(late < 0 for late in moved)
    return bool(moved) and float(stats.binomtest(worse, len(moved), 0.5, "greater").pvalue) < _LEVEL
