"""Whether the claims of a space hold: a pure function of the scores of its confirmation.

Each claim asks for the mean gain of one arm over another, paired by seed and item. Its two-sided interval
[low, high] is that of `bft_ray.stats.simultaneous.compare_pair` at alpha / m, with m claims (Bonferroni): all intervals hold
together with probability 1 - alpha.

| claim | holds | does not hold | else |
|---|---|---|---|
| better | low > 0 | high < 0: the reverse holds | cannot be told |
| better by m at most | high <= m | low > m | cannot be told |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bft_ray.space.claims import Claim
from bft_ray.stats.comparison import Comparison
from bft_ray.stats.errors import Groups
from bft_ray.stats.simultaneous import compare_pair

Verdict = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict.

    Args:
        gain: of `claim.better` over `claim.than`; None where one of them does not count.
        why: why there is no gain; "" where there is one.
    """

    claim: Claim
    verdict: Verdict
    gain: Comparison | None
    why: str = ""


def judge_all(
    claims: Sequence[Claim],
    metric: str,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    alpha: float,
    groups: Groups | None = None,
    flaws: Mapping[str, str] | None = None,
) -> tuple[Judged, ...]:
    """Every claim with its verdict.

    Args:
        metric: of the objective.
        scores: metric -> arm -> [S, n], higher is better; an arm that does not count is missing.
        alpha: error of all claims together.
        groups: which items of the objective share what; None: they are independent, as those of other metrics are.
        flaws: arm -> why it does not count.
    """
    judged = []
    for claim in claims:
        name = claim.metric or metric
        own = scores.get(name, {})
        gone = [arm for arm in (claim.better, claim.than) if arm not in own]
        if gone:
            nothing = "it has no runs" if name == metric else f"its scores in {name} were not kept"
            why = "; ".join(f"{arm}: {(flaws or {}).get(arm) or nothing}" for arm in gone)
            judged.append(Judged(claim, "cannot be told", None, why))
            continue
        gain = compare_pair(claim.better, claim.than, own, alpha / len(claims), groups if name == metric else None)
        judged.append(Judged(claim, judge(claim, gain), gain))
    return tuple(judged)


def judge(claim: Claim, gain: Comparison) -> Verdict:
    """The verdict on a claim; see the table at the head of the file. A gain without spread says nothing, except that arms
    which are the same on every item and seed do not differ by more than a bound.
    """
    if not gain.has_spread and gain.gain == 0 and claim.by_at_most is not None:
        return "holds"
    if not gain.has_spread or gain.is_skewed:
        return "cannot be told"
    if claim.by_at_most is None:
        return "holds" if gain.low > 0 else "does not hold" if gain.high < 0 else "cannot be told"
    return (
        "holds"
        if gain.high <= claim.by_at_most
        else "does not hold"
        if gain.low > claim.by_at_most
        else "cannot be told"
    )
