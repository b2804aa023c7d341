"""What a first search space of a dataset takes from the data: which windows differ, when trials may stop, and how much
its held-out items can show.
"""

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
DISCORDANT = 0.2  # share of the items on which two models are assumed to differ
_LEAST_CHANGES = 6
_Z = 1.959964 + 0.841621  # two-sided error of 5 %, and found in 8 of 10 studies


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


def smallest_effect(num_items: int) -> float:
    """Smallest difference of a share (accuracy, say) between two models on the same items that 8 of 10 studies show:

        max( (z(0.975) + z(0.8)) sqrt(d / n), 6 / n ), at most 1

    n items, independent of each other, and d = 0.2 the assumed share of items on which exactly one of the two is right
    (McNemar's test in the form of Connor, 1987, without its term of the squared difference). Of few items the second
    part decides: five changes that all go one way are within chance (2 / 2^5 = 0.06), six are not (0.03).
    """
    return min(1.0, max(_Z * math.sqrt(DISCORDANT / num_items), _LEAST_CHANGES / num_items))
