"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from bft_ray.config import ScheduleConfig


def learning_rate(step: int, num_steps: int, peak: float, config: ScheduleConfig) -> float:
    """Rate of step `step` (from 0): linear rise to `peak`, then the shape down to `min_ratio * peak`."""
    warmup = math.ceil(config.warmup_ratio * num_steps)  # steps in which it rises
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[config.shape]
    return peak * (config.min_ratio + (1 - config.min_ratio) * left)
