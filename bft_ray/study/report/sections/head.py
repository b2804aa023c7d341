"""The head of a study's page: the question, the answer, and the few numbers that decide."""

from __future__ import annotations

import math

from bft_ray.config.metrics import format_value
from bft_ray.domains import domain
from bft_ray.page.model import Cell, Number, listed, shown_time
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import DEFAULT
from bft_ray.study.agenda import totals
from bft_ray.study.kept import Known
from bft_ray.study.records.leaderboard import short_names
from bft_ray.study.records.ranking import best
from bft_ray.study.records.record import all_of
from bft_ray.study.records.store import BASELINES, SEARCH
from bft_ray.study.report.arms import signed, size, span_of
from bft_ray.study.report.claims import claims_sentence
from bft_ray.study.report.compare import verdict as compared
from bft_ray.study.report.explain import verdict

Fact = tuple[str, Cell, str]


def above(known: Known, now: float) -> str:
    """The line above the question: which study, and in what state.

    Args:
        now: seconds since 1970.
    """
    ends = [record.finished for record in all_of(known.parts) if record.finished is not None]
    state = "runs now" if known.is_driven else "finished" if known.is_finished else "not finished, and not running"
    when = max(ends, default=now) if known.is_finished else now
    shown = shown_time(when)
    return f"Study `{known.study.name}`, {state}, {'ended' if known.is_finished else 'as of'} {shown}"


def question(space: SearchSpace, name: str) -> str:
    """The question of the study, in a sentence."""
    if space.confirmation is not None and not space.confirmation.top_k:
        arms = " or ".join(f"`{baseline.name}`" for baseline in space.baselines)
        return f"Judged by {space.objective.metric}, which suits {domain(name).title} best: {arms}?"
    varied = list(short_names(space.parameters).values())
    does, it = ("does", "it") if len(varied) == 1 else ("do", "they")
    beats = f", and {does} {it} beat `{DEFAULT}` at window 256 as published" if space.confirmation else ""
    suit = f"suit{'s' * (len(varied) == 1)} {domain(name).title}"
    return f"Judged by {space.objective.metric}, which {listed(varied).replace('_', ' ')} of BFT {suit}{beats}?"


def answer(known: Known) -> str:
    """The answer, in a sentence or two; what is missing for one, while there is none."""
    if known.choice is not None:
        return f"{claims_sentence(known.choice.claims)} {verdict(known.choice)}".lstrip()
    space, parts = known.study.space, known.parts
    ended = sum(record.is_finished for record in all_of(parts))
    everything = sum(totals(space, parts).values())
    if space.confirmation is None and ended == everything:
        return compared(parts, space, known.items)
    metric = space.objective.metric
    top = best([*parts[BASELINES], *parts[SEARCH]], metric)
    text = f"**No answer yet**: {ended:,} of at most {everything:,} trials have ended"
    if top is None or top.value is None:
        return f"{text}, none of them with a result."
    value = format_value(metric, top.value)
    return f"{text}; the best so far, `{top.label}`, has {value} on the data that picked it, which confirms nothing."


def facts(known: Known) -> list[Fact]:
    """The few numbers that decide: gain, what could have been detected, the test."""
    choice, test = known.choice, known.test
    if choice is None or choice.champion is None:
        return []
    arm = choice.arm(choice.champion)
    shown = arm if arm.gain is not None else choice.best_candidate
    found: list[Fact] = [("champion", arm.name, "the settings to train with")]
    if shown is not None and shown.gain is not None:
        of = "the champion" if shown is arm else "the best candidate"
        gain, plan = shown.gain, choice.plan
        span = f"{1 - plan.alpha:.0%} interval {span_of(gain.low, gain.high).text}" if gain.has_spread else "no spread"
        found.append((f"gain of {of} over {plan.default}", Number(gain.gain, signed(gain.gain)), span))
        if not math.isnan(gain.detectable):
            word = f"a true gain of this size shows in {gain.shows_in} such studies"
            found.append(("smallest detectable gain", Number(gain.detectable, size(gain.detectable)), word))
    if arm.name in choice.best:
        word = "that no other arm is better, given the noise"
        found.append(("probability", Number.of(choice.best[arm.name], ".0%"), word))
    if test is not None:
        of = (
            "champion and default are one"
            if test.champion == test.default
            else f"the default has {test.default_value:.4f}"
        )
        found.append(("test split, measured once", Number.of(test.champion_value, ".4f"), of))
    return found
