"""How many optimizer steps a run has: the one place that loop, cost, rungs and records ask."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bft_ray.config.tree import Config


def shares(ratios: Sequence[float], samples_per_source: Sequence[int]) -> list[int]:
    """Samples that each source gives to an epoch: max(1, round(ratio * samples))."""
    return [max(1, round(ratio * own)) for ratio, own in zip(ratios, samples_per_source, strict=True)]


def num_steps(config: Config, samples_per_source: Sequence[int]) -> int:
    """Optimizer steps of a run: `schedule.steps`, or

        max(1, ceil(epochs * (sum over sources of max(1, round(ratio * samples)) / B)))

    with B = `data.global_batch_size`, in floating point and in this order: 0.07 * (100 / 1) is above 7, so it is 8.

    Args:
        samples_per_source: samples of each source of `data.train` that tokenising has kept, in order.
    """
    if config.schedule.steps is not None:
        return config.schedule.steps
    epoch = sum(shares([source.ratio for source in config.data.train], samples_per_source))
    return max(1, math.ceil(config.schedule.epochs * (epoch / config.data.global_batch_size)))


def steps_if_known(config: Config, samples_per_source: Sequence[int] | None) -> int | None:
    """As `num_steps`; None where it follows from epochs, and the samples are not known."""
    if samples_per_source is None:
        return config.schedule.steps
    return num_steps(config, samples_per_source)
