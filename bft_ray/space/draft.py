"""What the data decide about a first search space: which windows differ, and when trials may stop."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: how the space that `bft-ray init` wrote begins; `bft-ray profile` rewrites no other
MARK = "# Written by `bft-ray init`"
WHOLE = 0.95  # a window that covers more of the answers whole tells little from the next
PUBLISHED_WINDOW = 256
MOST_WINDOWS = 4
_LOOKED_AT = 9
CONFIRMATION_SEEDS = (101, 102, 103, 104, 105)
REDUCTION = 3


def window_grid(longest: int) -> list[int]:
    """Powers of two (tokens), ascending: the last one covers an answer whole that is twice as long as this; the first
    is 2, or more where they would be more than 9.
    """
    last = max(2, math.ceil(math.log2(max(2, 2 * longest))))
    return [2**power for power in range(max(1, last - _LOOKED_AT + 1), last + 1)]


def differing_windows(windows: Sequence[int], lengths: Sequence[int], most: int = MOST_WINDOWS) -> list[int]:
    """Of these windows the longest ones that slide over at least 5 % of the answers; ascending.

    The published window is among them where it is shorter than the longest answer. At or above the longest answer all
    windows are the same run; where an answer has one or two tokens there may be none.

    Args:
        lengths: supervised tokens of each sample.
        most: as many windows at most, and the published one.
    """
    longest = max(lengths)
    slides = [w for w in sorted(windows) if w < longest and sum(n <= w for n in lengths) < WHOLE * len(lengths)]
    also = {PUBLISHED_WINDOW} if longest > PUBLISHED_WINDOW else set()
    return sorted({*slides[-most:], *also})


def grace_steps(num_steps: int) -> int | None:
    """Steps of the first rung, so that a trial may stop after a ninth and after a third of it; None: too short to stop."""
    return math.ceil(num_steps / REDUCTION**2) if num_steps > 1 else None
