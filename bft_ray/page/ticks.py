"""The ends of an axis, and where its numbers stand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """A range of numbers on an axis.

    Args:
        low, high: its ends.
        ticks: numbers that are shown.
    """

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The place of a value: 0 at the low end, 1 at the high one."""
        low, high, value = map(math.log10 if self.is_log else float, (self.low, self.high, value))
        return (value - low) / (high - low)


def scale_of(values: Iterable[float], is_log: bool, count: int = 6, margin: float = 0.04) -> Scale:
    """A scale that holds all finite values, with about `count` numbers on it.

    Args:
        is_log: logarithmic; values that are not above 0 are left out.
        margin: on both ends, as a share.
    """
    kept = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)] or [0.5, 1.0]
    ends = [math.log10(value) if is_log else float(value) for value in (min(kept), max(kept))]
    width = ends[1] - ends[0] or (0.5 if is_log else abs(ends[0]) * 0.1 or 1.0)
    low, high = ends[0] - margin * width, ends[1] + margin * width
    if ends[0] == ends[1]:
        low, high = ends[0] - width / 2, ends[1] + width / 2
    if is_log:
        return Scale(10**low, 10**high, True, _log_ticks(low, high, count))
    return Scale(low, high, False, _ticks(low, high, count))


def _ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * step for step in _STEPS if power * step >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(float(f"{place * step:.10g}") for place in range(first, last + 1))


def _log_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Powers of ten; with 2 and 5 between where there is room, else plain steps."""
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        if len(found) >= min(3, count):
            every = -(-len(found) // (count + 2))
            return tuple(float(f"{value:.6g}") for value in found[::every])
    return _ticks(10**low, 10**high, count)
