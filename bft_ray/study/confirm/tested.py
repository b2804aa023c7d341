"""Champion and default on the test split, measured once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bft_ray.config.metrics import higher_is_better
from bft_ray.space.parts import DEFAULT
from bft_ray.stats.errors import as_groups
from bft_ray.stats.paired import paired_difference


@dataclass(frozen=True)
class TestResult:
    """The single measurement on the test split.

    Args:
        champion, default: names of the arms; the same where the default is the champion.
        metric: of the objective.
        champion_value, default_value: the metric on the test split.
        gain, low, high: champion over default, paired by item, and its interval (NaN where there is none); above 0 is
            better. For these two models: the interval does not contain the variation between seeds.
        num_items: of the test split.
        detectable: the true gain that such a test shows in 8 of 10 repetitions; NaN for one item.
    """

    __test__ = False  # not for pytest

    champion: str
    default: str
    metric: str
    champion_value: float
    default_value: float
    gain: float
    low: float
    high: float
    num_items: int
    detectable: float


def note_of(arm: str) -> str:
    """The name of the note in which a study keeps what was measured for an arm on the test split."""
    return f"test {arm}"


def on_test_split(metric: str, champion: str, measured: Mapping[str, Mapping[str, Any]]) -> TestResult:
    """Champion against default, paired by item (`bft_ray.stats.paired`). One model each: the interval does not contain
    the variation between seeds.

    Args:
        champion: name of the arm.
        measured: arm -> `metrics` (name -> value), `items` (item -> score) and, where items share some, `groups`.
    """
    values = {name: one["metrics"][metric] for name, one in measured.items()}
    own, default = (measured[name]["items"] for name in (champion, DEFAULT))
    sides = [np.array([scores[item] for item in sorted(own)]) for scores in (own, default)]
    shared = measured[champion].get("groups", {})
    groups = as_groups([shared.get(item, ()) for item in sorted(own)]) if shared else None
    first, second = sides if higher_is_better(metric) else sides[::-1]
    found = paired_difference(first, second, groups=groups)
    return TestResult(
        champion=champion,
        default=DEFAULT,
        metric=metric,
        champion_value=values[champion],
        default_value=values[DEFAULT],
        gain=found.value,
        low=found.low,
        high=found.high,
        num_items=len(own),
        detectable=found.detectable,
    )
