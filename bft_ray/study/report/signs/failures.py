"""Trials that ended without a result."""

from __future__ import annotations

import re
from collections import Counter

from bft_ray.page.model import Finding
from bft_ray.space.definition import LEARNING_RATE, SearchSpace
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.records.leaderboard import value_text
from bft_ray.study.records.record import Records, TrialRecord, all_of

_MANY_FAILED = 0.1  # share of the trials
_NO_NUMBER = re.compile(r"not finite|non-finite|\bnan\b|\binf\b", re.IGNORECASE)  # words: maintenance has one within it
_LONGEST = 300  # letters of a reason


def not_finite(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Trials whose loss or metric was no number: training is unstable at these settings."""
    lost = [one for one in _own(parts) if one.state == "failed" and _is_no_number(one)]
    if not lost:
        return None
    rates = [record.assignment[LEARNING_RATE] for record in lost if LEARNING_RATE in record.assignment]
    where = f", at learning rates from {value_text(min(rates))}" if rates else ""
    return Finding(
        "Unstable: trials ended without a number",
        f"{len(lost)} of {len(_own(parts))} trials failed because a loss or a metric was not finite{where}. For "
        f"example `{lost[0].id}`: {lost[0].reason[:_LONGEST]}",
        f"Leave out learning rates from {value_text(min(rates))} on, or lengthen schedule.warmup_ratio."
        if rates
        else "Lower optimizer.learning_rate, or lengthen schedule.warmup_ratio; with half precision, try "
        "model.dtype=bf16.",
    )


def failures(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """More than a tenth of the trials failed for other reasons."""
    own = [record for record in _own(parts) if record.is_finished]
    lost = [record for record in own if record.state == "failed" and not _is_no_number(record)]
    if len(lost) <= _MANY_FAILED * len(own):
        return None
    reason, times = Counter(record.reason for record in lost).most_common(1)[0]
    return Finding(
        "Many trials failed",
        f"{len(lost)} of {len(own)} trials failed; {times} of them: {reason[:_LONGEST]}",
        "Mend the cause and give the study another `name`: `bft-ray doctor` with its config finds most causes "
        "before they cost time.",
    )


def _own(parts: Records) -> list[TrialRecord]:
    return [record for record in all_of(parts) if not record.duplicate_of]


def _is_no_number(record: TrialRecord) -> bool:
    return _NO_NUMBER.search(record.reason) is not None
