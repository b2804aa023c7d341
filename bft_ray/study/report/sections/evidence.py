"""The evidence for the choice, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from bft_ray.page.model import Axis, Figure, Marks, Part, Section, Shape, Tone, present
from bft_ray.study.confirm.candidates import confirmed, sources
from bft_ray.study.confirm.choice import Arm, Choice
from bft_ray.study.confirm.choose import without_each_seed
from bft_ray.study.kept import Known
from bft_ray.study.records.store import CONFIRMATION
from bft_ray.study.report import compare
from bft_ray.study.report.arms import arm_words, arms_table
from bft_ray.study.report.claims import about_claims, claims_sentence, claims_table
from bft_ray.study.report.describe import test_sentence
from bft_ray.study.report.explain import doubts, limits, measured

_SHAPES: Mapping[str, Shape] = {"candidate": "dot", "baseline": "square", "default": "diamond"}


def evidence(known: Known) -> Section | None:
    """Every arm of the confirmation; for a study without one its settings side by side; None while there is nothing."""
    choice = known.choice
    if choice is None:
        text = compare.evidence_tables(known.parts["search"], known.study.space)
        return Section("evidence", "The evidence", text) if text and known.study.space.confirmation is None else None
    if not choice.num_items:
        return Section("evidence", "The evidence", limits(choice)) if limits(choice) else None
    parts: list[Part] = present(
        measured(choice),
        forest(choice),
        arms_table(choice, search_values(known), known.test),
        "`search` is the value that picked the arm, on other data than `mean`: compare arms within a column, "
        "not columns.",
        None if known.test is None else test_sentence(known.test),
    )
    if choice.claims:
        parts += [claims_sentence(choice.claims), claims_table(choice), about_claims(choice)]
    return Section("evidence", "The evidence", [*parts, *limits(choice)])


def search_values(known: Known) -> dict[str, float]:
    """Arm -> the objective of the trial that it repeats."""
    return {arm: source.value for arm, source in sources(known.parts).items() if source.value is not None}


def forest(choice: Choice) -> Figure | None:
    """Gains over the default with their intervals, best arm first."""
    arms = [arm for arm in choice.arms if arm.mean is not None]
    if not any(arm.gain for arm in arms):
        return None
    plan = choice.plan
    seen = [
        (place, arm.gain.detectable)
        for place, arm in enumerate(arms)
        if arm.gain and not math.isnan(arm.gain.detectable)
    ]
    bars = Marks(
        "smaller than this study can show",
        [0.0] * len(seen),
        [place for place, _ in seen],
        tone="light",
        low=[-size for _, size in seen],
        high=[size for _, size in seen],
        is_bar=True,
    )
    figure_marks = ([bars] if seen else []) + list(_points(choice, arms))
    shown = "; ".join(arm_words(arm) for arm in arms)
    return Figure(
        name="gains",
        title=f"Gains over {plan.default}, {len(plan.seeds)} seeds, {choice.num_items:,} items",
        alt=f"Gain of each arm over {plan.default} with its interval. {shown}.",
        x=Axis(f"gain in {plan.metric}"),
        y=Axis(names=[arm.name for arm in arms]),
        marks=figure_marks,
        text="A point is a mean gain, a line its interval. Right is better: an arm beats the default where its "
        "whole line lies right of 0. "
        "A true gain within the grey bar is missed more often than in 2 of 10 such studies.",
        rule=0.0,
    )


def _points(choice: Choice, arms: list[Arm]) -> Iterator[Marks]:
    for place, arm in enumerate(arms):
        is_champion = arm.name == choice.champion
        tone: Tone = "best" if is_champion else "main" if arm.kind == "candidate" else "dark"
        gain = arm.gain
        yield Marks(
            f"champion ({arm.kind})" if is_champion else arm.kind,
            [gain.gain if gain else 0.0],
            [place],
            shape=_SHAPES[arm.kind],
            tone=tone,
            texts=[arm_words(arm)],
            low=[gain.low] if gain else [],
            high=[gain.high] if gain else [],
        )


def change(known: Known) -> Section | None:
    """What would change the answer; None while there is none."""
    choice = known.choice
    if choice is None or choice.champion is None:
        return None
    _, *sentences = doubts(choice) or [""]
    found = [text for text in [_seeds(known, choice), *sentences] if text]
    return Section("change", "What would change this answer", [found]) if found else None


def _seeds(known: Known, choice: Choice) -> str:
    """A sentence on the choice without each seed."""
    again = without_each_seed(confirmed(known.study.space, known.parts[CONFIRMATION]), choice.plan)
    if not again:
        return ""
    same = sum(champion == choice.champion for champion in again.values())
    others = sorted({str(champion) for champion in again.values() if champion != choice.champion})
    text = f"**Without any one of the {len(again)} seeds** the choice is the same in {same} of {len(again)} cases"
    return f"{text}; else it is {', '.join(f'`{name}`' for name in others)}." if others else f"{text}."
