"""Statements with a verdict, as a picture: a row each, with its gain."""

from __future__ import annotations

from collections.abc import Sequence

from bft_ray.page.model import Axis, Figure, Marks
from bft_ray.stats.comparison import Comparison
from bft_ray.study.confirm.claims import Verdict
from bft_ray.study.report.arms import gain_text

_TONES = {"holds": "best", "does not hold": "dark", "cannot be told": "main"}
_SHAPES = {"holds": "dot", "does not hold": "square", "cannot be told": "diamond"}


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
