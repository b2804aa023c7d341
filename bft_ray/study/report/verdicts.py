"""Statements with a verdict: the cells of a gain, and the picture in which all of them stand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bft_ray.page.model import Axis, Cell, Figure, Marks, Number
from bft_ray.stats.comparison import Comparison
from bft_ray.study.confirm.claims import Verdict
from bft_ray.study.report.arms import gain_text, signed, size, span_of

_TONES = {"holds": "best", "does not hold": "dark", "cannot be told": "main"}
_SHAPES = {"holds": "dot", "does not hold": "square", "cannot be told": "diamond"}


def gain_cells(gain: Comparison | None, why: str) -> list[Cell]:
    """Gain, interval and detectable gain.

    Args:
        why: why there is no gain.
    """
    if gain is None:
        return [why, "", ""]
    if not gain.has_spread:
        return [Number(gain.gain, signed(gain.gain)), "no spread", ""]
    least: Cell = "" if math.isnan(gain.detectable) else Number(gain.detectable, size(gain.detectable))
    return [Number(gain.gain, signed(gain.gain)), span_of(gain.low, gain.high), least]


def verdicts_figure(
    name: str, title: str, alt: str, x: str, rows: Sequence[tuple[str, Verdict, Comparison | None]], rule: float = 0.0
) -> Figure | None:
    """A row a statement: its gain with the interval, marked by the verdict; None where no gain has a spread.

    Args:
        alt: its first sentence; the rows follow.
        x: what the gains are in.
        rows: (name, verdict, gain).
        rule: where the line is drawn that the verdicts are about.
    """
    shown = [(what, verdict, gain) for what, verdict, gain in rows if gain is not None and gain.has_spread]
    if not shown:
        return None
    marks = [
        Marks(
            verdict,
            [gain.gain],
            [place],
            shape=_SHAPES[verdict],  # type: ignore[arg-type]
            tone=_TONES[verdict],  # type: ignore[arg-type]
            texts=[f"{what}: {gain_text(gain)}"],
            low=[gain.low],
            high=[gain.high],
        )
        for place, (what, verdict, gain) in enumerate(shown)
    ]
    return Figure(
        name=name,
        title=title,
        alt=f"{alt} {'; '.join(f'{what} {gain_text(gain)}' for what, _, gain in shown)}.",
        x=Axis(x),
        y=Axis(names=[what.replace("`", "") for what, _, _ in shown]),
        marks=marks,
        text="A point is a mean gain, a line its interval.",
        rule=rule,
    )
