"""The page of a study: question, answer, evidence, what to look at, and how to use it."""

from __future__ import annotations

import time

from bft_ray.page.model import Page, Section, present
from bft_ray.study.kept import Known
from bft_ray.study.records.record import all_of
from bft_ray.study.report.diagnoses import diagnose
from bft_ray.study.report.sections import cost, course, evidence, head, samples, settings, use


def page_of(known: Known, now: float | None = None) -> Page:
    """The page, a function of what is known.

    Args:
        now: seconds since 1970; None: the clock's.
    """
    now = time.time() if now is None else now
    sections = present(
        evidence.evidence(known),
        evidence.change(known),
        _to_look_at(known),
        settings.settings(known),
        course.course(known),
        cost.cost(known, now),
        samples.data(known),
        samples.hardest(known),
        use.use(known),
        use.trials(known),
        use.how_to_read(),
    )
    return Page(
        title=f"{known.study.name}: {known.study.space.objective.metric}",
        above=head.above(known, now),
        question=head.question(known.study.space, known.study.domain),
        answer=head.answer(known),
        facts=head.facts(known),
        sections=sections,
    )


def _to_look_at(known: Known) -> Section | None:
    found = diagnose(known.parts, known.study.space, known.choice)
    if not found and not any(record.is_finished for record in all_of(known.parts)):
        return None
    nothing = (
        "None of the known signs of trouble is in the records: failures, blind or misleading rungs, seeds "
        "far apart, settings at the end of their range."
    )
    return Section("look", "What to look at", found or [nothing])
