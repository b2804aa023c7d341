"""Where a setting does best, in words, as a table and as a picture."""

from __future__ import annotations

import math

from bft_ray.page.model import Axis, Cell, Figure, Marks, Number, Part, Table
from bft_ray.study.confirm.combine import Course
from bft_ray.study.confirm.peak import Best, Peaked
from bft_ray.study.report.arms import signed

_SHAPES = ("dot", "square", "diamond", "cross", "ring")
_STROKES = ("line", "dash", "dots")
_TONES = ("main", "best", "dark", "grey")


def peak_sentences(found: Peaked) -> list[str]:
    """Sentences on the best setting of each condition, and on how it moves; Markdown."""
    what = found.peak.setting
    if not found.best:
        return [f"Which {what} is best cannot be told yet: too few arms and conditions have an answer."]
    told = [f"{_best(one)} in {name}" for name, one in found.best.items() if one.is_told]
    without = [name for name, one in found.best.items() if math.isnan(one.value)]
    unsure = [name for name, one in found.best.items() if not one.is_told and name not in without]
    lines = [f"By a parabola in its logarithm, the best {what} is {', '.join(told)}."] if told else []
    if unsure:
        why = "no part of the curve rises or falls beyond noise"
        lines.append(f"Which {what} is best cannot be told in {', '.join(unsure)}: {why}.")
    if without:
        lines.append(f"Which {what} is best cannot be told in {', '.join(without)}: the parabola has no peak.")
    return lines + ([_move(found, found.move)] if found.move is not None else [])


def _move(found: Peaked, move: Course) -> str:
    what, axis = found.peak.setting, found.peak.over
    if math.isnan(move.value):
        return f"Whether the best {what} moves with {axis} cannot be told: the parabola has no peak."
    if math.isinf(move.low) and math.isinf(move.high):
        return (
            f"Whether the best {what} moves with {axis} cannot be told: no factor per doubling of {axis} is excluded."
        )
    factor = f"by a factor of {_factor(move.value)} [{_factor(move.low)}, {_factor(move.high)}] per doubling of {axis}"
    if move.verdict == "cannot be told":
        return f"Whether the best {what} moves with {axis} cannot be told: {factor}."
    return f"**The best {what} {move.verdict} with {axis}**: {factor}."


def _number(value: float) -> str:
    return f"{value:.3g}"


def _factor(doublings: float) -> str:
    """2^doublings, as long as it can be read."""
    if math.isinf(doublings):
        return "any" if doublings > 0 else "0"
    return _number(2.0**doublings)


def _best(one: Best) -> str:
    """The peak with its interval; where the curve rises or falls up to an end of the settings, that end."""
    if one.low == max(one.shown):
        return f"{_number(one.low)} or more"
    if one.high == min(one.shown):
        return f"{_number(one.high)} or less"
    return f"{_number(one.value)} [{_number(one.low)}, {_number(one.high)}]"


def peak_parts(found: Peaked, name: str) -> list[Part]:
    """Heading, picture and table; nothing where no condition has an answer.

    Args:
        name: of the picture, unique in the page.
    """
    if not found.best:
        return []
    what = found.peak.setting
    return [f"**The best {what}**", _figure(found, name), peak_table(found)]


def peak_table(found: Peaked) -> Table:
    """A table with one row for each condition: the best setting and its interval."""
    rows: list[list[Cell]] = [
        [
            condition,
            "no peak" if math.isnan(one.value) else Number(one.value, _number(one.value)),
            _best(one) if one.is_told else "cannot be told",
        ]
        for condition, one in found.best.items()
    ]
    return Table(["condition", f"best {found.peak.setting}", "with its interval"], rows)


def _figure(found: Peaked, name: str) -> Figure:
    what, marks = found.peak.setting, []
    for place, (condition, one) in enumerate(found.best.items()):
        tone = _TONES[place % len(_TONES)]
        texts = [f"{condition}, {what} {_number(value)}: {signed(score)}" for value, score in one.shown.items()]
        shape = _SHAPES[place % len(_SHAPES)]
        marks.append(Marks(condition, [*one.shown], [*one.shown.values()], shape=shape, tone=tone, texts=texts))  # type: ignore[arg-type]
        stroke = _STROKES[place % len(_STROKES)]
        marks.append(Marks("", [*one.curve], [*one.curve.values()], shape="none", stroke=stroke, tone=tone))  # type: ignore[arg-type]
    best = "; ".join(
        f"{condition}: best at {_number(one.value)}" if not math.isnan(one.value) else f"{condition}: no peak"
        for condition, one in found.best.items()
    )
    return Figure(
        name=name,
        title=f"Score over the {what}",
        alt=f"Mean score of each arm over its {what}, one curve a condition. {best}.",
        x=Axis(what, is_log=True),
        y=Axis("score less the mean of its condition"),
        marks=marks,
        text="A point is the mean of an arm over seeds and items, a line the parabola that is laid through all of them.",
    )
