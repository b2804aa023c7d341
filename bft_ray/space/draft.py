"""What the data decide about a first search space: which windows differ, and when trials may stop."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bft_ray.config.measured import VALIDATION

#: how the space that `bft-ray init` wrote begins; `bft-ray profile` rewrites no other
MARK = "# Written by `bft-ray init`"
WHOLE = 0.95  # a window that covers more of the answers whole tells little from the next
PUBLISHED_WINDOW = 256
MOST_WINDOWS = 4
_LOOKED_AT = 9
CONFIRMATION_SEEDS = (101, 102, 103, 104, 105)
REDUCTION = 3
_LATE = 0.6


def window_grid(longest: int) -> list[int]:
    """Powers of two (tokens), ascending: the last one covers an answer whole that is twice as long as this; the first
    is 2, or more where they would be more than 9.
    """
    last = max(2, math.ceil(math.log2(max(2, 2 * longest))))
    return [2**power for power in range(max(1, last - _LOOKED_AT + 1), last + 1)]


def differing_windows(windows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The `MOST_WINDOWS` longest of these windows that slide over at least 5 % of the answers; ascending.

    The published window is among them where it is shorter than the longest answer. At or above the longest answer all
    windows are the same run; where an answer has one or two tokens there may be none.

    Args:
        lengths: supervised tokens of each sample.
    """
    longest = max(lengths)
    slides = [w for w in sorted(windows) if w < longest and sum(n <= w for n in lengths) < WHOLE * len(lengths)]
    also = {PUBLISHED_WINDOW} if longest > PUBLISHED_WINDOW else set()
    return sorted({*slides[-MOST_WINDOWS:], *also})


def grace_steps(num_steps: int, metric: str) -> int | None:
    """Steps of the first rung: where a trial may stop first. None: too short to stop.

    A ninth of a trial for metrics of every token of validation rows, whose ranks agree early; 3 of 5 for those of a task, such as
    the probability of a choice, whose ranks were seen to agree only late (docs/benchmarks.md, "Early stopping").
    """
    if num_steps < 2:
        return None
    return math.ceil(num_steps / REDUCTION**2) if metric.startswith(f"{VALIDATION}/") else math.ceil(num_steps * _LATE)
