"""Signs of trouble in the records of a study, each with its remedy. Every diagnosis is a pure function of the records.

The failure signatures of Balanced Fine-Tuning are among them: `bft_no_token` below `sft`, unstable runs, an early plateau.
Where noise could make a sign, a test decides (its level is named); so a sound study shows few false ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bft_ray.page.model import Finding
from bft_ray.space.definition import SearchSpace
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.records.record import Records
from bft_ray.study.report import apart, cards
from bft_ray.study.report.signs import confirmation, course, failures, search

#: most urgent first
CHECKS: Sequence[Callable[[Records, SearchSpace, Choice | None], Finding | None]] = (
    failures.failures,
    failures.not_finite,
    search.unmoved,
    confirmation.unstable_seeds,
    confirmation.no_token_below_sft,
    confirmation.sft_wins,
    confirmation.too_small,
    confirmation.flattered,
    apart.differ,
    search.blind_rungs,
    search.misleading_rungs,
    course.falling,
    course.rising,
    course.plateau,
    search.at_an_end,
    search.duplicates,
    cards.differ,
)


def diagnose(parts: Records, space: SearchSpace, choice: Choice | None) -> list[Finding]:
    """What the records show, most urgent first; [] where nothing does.

    Args:
        parts: part -> its trials.
        choice: of the confirmation; None: there was none, or not yet.
    """
    found = (check(parts, space, choice) for check in CHECKS)
    return [finding for finding in found if finding is not None]
