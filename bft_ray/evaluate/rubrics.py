"""Scores of answers that were judged by a rubric, as HealthBench publishes them: pure functions of points and verdicts.

With the points p_i of the criteria of an item (negative for what an answer should not have) and v_i = 1 where a criterion is met:

    score of an answer    s = sum_i p_i v_i / sum_{p_i > 0} p_i             at most 1; may be negative
    score of a benchmark  mean of s over the items, clipped to [0, 1]
    its deviation         standard deviation of that over 1,000 bootstrap draws of the items
    score of a tag        of an item's tag (such as its theme): the mean of s over the items that have it; of a criterion's tag (such as
                          its axis): the mean of s over the criteria with it, where one of them has positive points
    length-adjusted       s - 0.0147 (n - 2,000) / 500, with n characters of the answer

Sources: Arora et al. 2025, arXiv 2505.08775, and OpenAI's simple-evals (healthbench_eval.py) for all but the last. That is of HealthBench
Professional (arXiv 2604.27470, section 4.1), whose text was not seen: center, penalty and sign are those of a public
implementation of it (medicalsphere/HealthBench).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

CENTER, PENALTY, EACH = 2000, 0.0147, 500
_DRAWS = 1000


def answer_scores(points: Sequence[float], met: np.ndarray) -> np.ndarray | None:
    """Scores [a] of answers; None where no criterion has positive points.

    Args:
        points: [c], of the criteria.
        met: [a, c], 1 where an answer meets a criterion.
    """
    p = np.asarray(points, dtype=np.float64)
    most = float(p[p > 0].sum())
    return None if most == 0 else met @ p / most


def tag_scores(
    points: Sequence[float], met: np.ndarray, item_tags: Sequence[str], criterion_tags: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Tag -> score of one item, mean over its answers; tags as `slug` writes them.

    Args:
        points, met: as for `answer_scores`.
        item_tags: of the item.
        criterion_tags: of each criterion.
    """
    found: dict[str, float] = {}
    whole = answer_scores(points, met)
    if whole is not None:
        found = {slug(tag): float(whole.mean()) for tag in item_tags}
    for tag in dict.fromkeys(tag for own in criterion_tags for tag in own):
        places = [place for place, own in enumerate(criterion_tags) if tag in own]
        scores = answer_scores([points[place] for place in places], met[:, places])
        if scores is not None:
            found[slug(tag)] = float(scores.mean())
    return found


def slug(tag: str) -> str:
    """`theme:emergency_referrals` as part of a metric's name: `theme_emergency_referrals`. Letters and digits of all scripts stay, as
    MLflow takes them; "" where a tag has none.
    """
    composed = unicodedata.normalize("NFC", tag.lower())  # MLflow takes no accent that stands apart from its letter
    return re.sub(r"[\W_]+", "_", composed).strip("_")


def length_adjusted(scores: np.ndarray, num_characters: np.ndarray) -> np.ndarray:
    """Scores [a] less what their length costs; short answers gain."""
    return scores - PENALTY * (num_characters - CENTER) / EACH


def clipped_mean(values: Sequence[float]) -> float:
    """Mean of the values that are numbers, clipped to [0, 1]."""
    return float(np.clip(np.nanmean(values), 0.0, 1.0))


def bootstrap_deviation(values: Sequence[float]) -> float:
    """Standard deviation of `clipped_mean` over bootstrap draws of the items; the same on every call."""
    own = np.asarray([value for value in values if value == value])
    draws = np.random.default_rng(0).choice(own, (_DRAWS, len(own)))
    return float(np.clip(draws.mean(1), 0.0, 1.0).std())


def means_by_tag(items: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Tag -> clipped mean over the items that have it."""
    tags = dict.fromkeys(tag for own in items for tag in own)
    return {tag: clipped_mean([own[tag] for own in items if tag in own]) for tag in tags}
