"""All arms of a confirmation side by side: one table for the page and for the note."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bft_ray.config.metrics import format_value
from bft_ray.page.model import Cell, Number, Span, Table
from bft_ray.stats.comparison import Comparison
from bft_ray.study.confirm.choice import Arm, Choice
from bft_ray.study.confirm.tested import TestResult
from bft_ray.study.records.leaderboard import as_markdown


def arms_table(choice: Choice, search: Mapping[str, float] | None = None, test: TestResult | None = None) -> Table:
    """A row an arm, best mean first. A choice that fits only the search shows in its first columns.

    Args:
        search: arm -> the objective in the search, or when the baseline was tuned; None: no such column.
        test: on the test split; None: no such column.
    """
    second = choice.plan.second
    sides = {} if test is None else {test.default: test.default_value, test.champion: test.champion_value}
    head = ["arm", "kind", *(["search"] if search is not None else []), "mean", "gain", "interval", "p", "best"]
    head += ["detectable", *(["test"] if test is not None else []), *([second.metric, "front"] if second else [])]
    rows: list[list[Cell]] = []
    for arm in choice.arms:
        cells: list[Cell] = [f"**{arm.name}**" if arm.name == choice.champion else arm.name, arm.kind]
        if search is not None:
            cells.append(_four(search.get(arm.name)))
        cells += [_four(arm.mean), *_cells(arm.gain, choice.best.get(arm.name))]
        if test is not None:
            cells.append(_four(sides.get(arm.name)))
        if second:
            cells += [metric_cell(second.metric, arm.second), "yes" * arm.on_front]
        rows.append(cells)
    strong = [place for place, arm in enumerate(choice.arms) if arm.name == choice.champion]
    return Table(head, rows, strong=strong)


def _cells(gain: Comparison | None, best: float | None) -> list[Cell]:
    chance: Cell = "" if best is None else Number.of(best, ".0%")
    p: Cell = "" if gain is None or not gain.has_spread else Number.of(gain.p, ".2g")
    mean, interval, least = gain_cells(gain)
    return [mean, interval, p, chance, least]


def gain_cells(gain: Comparison | None, why: str = "") -> list[Cell]:
    """Gain, interval and smallest detectable gain, three cells.

    Args:
        why: why there is no gain.
    """
    if gain is None:
        return [why, "", ""]
    interval: Cell = span_of(gain.low, gain.high) if gain.has_spread else "no spread"
    least: Cell = "" if math.isnan(gain.detectable) else Number(gain.detectable, size(gain.detectable))
    return [Number(gain.gain, signed(gain.gain)), interval, least]


def metric_cell(metric: str, value: float | None) -> Cell:
    """A value of a metric; empty where there is none."""
    return "" if value is None else Number(value, format_value(metric, value))


def _four(value: float | None) -> Cell:
    return "" if value is None else Number.of(value, ".4f")


def markdown(table: Table) -> str:
    """A table for the note."""
    return as_markdown(table.texts())


# ---- gains in words ----------------------------------------------------------------------------------------------------


def gain_text(gain: Comparison) -> str:
    """`+0.0123 [-0.0010, +0.0256]`."""
    return f"{signed(gain.gain)} {interval(gain)}"


def interval(gain: Comparison) -> str:
    """`[-0.0010, +0.0256]`."""
    if not gain.has_spread:
        return "(no spread to compare it with)"
    return span_of(gain.low, gain.high).text


def span_of(low: float, high: float) -> Span:
    """An interval of gains."""
    return Span(Number(low, signed(low)), Number(high, signed(high)))


#: a difference of means below it is one of rounding
ROUNDING = 1e-12


def signed(value: float) -> str:
    """With its sign, and four decimals, or two digits where it is small."""
    if abs(value) < ROUNDING:
        return "+0"
    return f"{value:+.2g}" if abs(value) < 0.001 else f"{value:+.4f}"


def size(value: float) -> str:
    """The same without the sign of what is above 0."""
    return signed(value).removeprefix("+")


def arm_words(arm: Arm) -> str:
    """What a point of the arm says under the pointer."""
    gain = gain_text(arm.gain) if arm.gain else "the default"
    mean = "" if arm.mean is None else f", mean {arm.mean:.4f}"
    return f"{arm.name}: {gain}{mean}{f' ({arm.excluded})' if arm.excluded else ''}"
