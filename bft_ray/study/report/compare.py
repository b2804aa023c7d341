"""Settings side by side, for a study that confirms nothing: what the data show about them, and what not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from bft_ray.config.metrics import format_value, higher_is_better
from bft_ray.page.model import Cell, Number, Table
from bft_ray.space.definition import SearchSpace
from bft_ray.stats.power import detectable
from bft_ray.study.confirm.standing import Items, in_words, standing_of
from bft_ray.study.records.leaderboard import Spread, metric_by, value_text
from bft_ray.study.records.ranking import ranked
from bft_ray.study.records.record import Records, TrialRecord
from bft_ray.study.records.store import BASELINES, SEARCH
from bft_ray.study.report.arms import markdown, metric_cell


@dataclass(frozen=True)
class Reach:
    """What a comparison of K values with n runs each can show (s: standard deviation of runs at one value, pooled).

    Args:
        least: any two means that differ by more differ beyond noise: q(0.95; K, freedom) s / sqrt(n), Tukey's honest
            significant difference.
        detectable: smallest true difference of two means that shows so in 8 of 10 studies (`bft_ray.stats.power`).
    """

    least: float
    detectable: float


def single(space: SearchSpace) -> str | None:
    """The one setting that a study compares; None where it varies several."""
    return next(iter(space.parameters)) if len(space.parameters) == 1 else None


def verdict(records: Records, space: SearchSpace, items: Items | None = None) -> str:
    """The first sentences on a study without a confirmation, Markdown.

    Args:
        items: scores of the trials that `bft_ray.study.confirm.standing.compared` names; None: not known.
    """
    search, metric = records.get(SEARCH, ()), space.objective.metric
    everything = [*search, *records.get(BASELINES, ())]
    top = next(iter(ranked(everything, metric)), None)  # may be a duplicate: its original may be a baseline
    if top is None or top.value is None:
        return f"**No trial has finished**: there is no {metric} yet."
    found = f"`{top.label}` has the best {metric}, {format_value(metric, top.value)}"
    if space.confirmation is not None:
        return f"**Not confirmed**: {found}, on the data that picked it."
    standing = standing_of(records, metric, items or {})
    if standing is None:
        return f"**{found}**; the study compares, and chooses no champion."
    setting = single(space)
    means = _ordered(search, metric, setting) if setting else []
    if setting is None or len(means) < 2:
        return in_words(standing, metric)
    beside = f" {in_words(standing, metric)}" if records.get(BASELINES) else ""
    return _means(search, metric, setting, means) + beside


def _means(search: Sequence[TrialRecord], metric: str, setting: str, means: Sequence[Spread]) -> str:
    first, last = means[0], means[-1]
    text = (
        f"**{setting} {value_text(first.at)} has the best mean {metric}, {format_value(metric, first.mean)}**; "
        f"the worst, {value_text(last.at)}, has {format_value(metric, last.mean)}"
    )
    seen = reach(search, metric, setting)
    if seen is None:
        return f"{text}: with one run each, noise cannot be ruled out."
    if seen.least == 0:
        return f"{text}: no two runs at one value differ, so there is no noise to compare that with."
    is_seen = abs(first.mean - last.mean) > seen.least
    return (
        f"{text}: a difference {'beyond' if is_seen else 'within'} noise (two means must differ by {seen.least:.2g})."
    )


def evidence(search: Sequence[TrialRecord], space: SearchSpace) -> str:
    """`evidence_tables` in Markdown."""
    parts = evidence_tables(search, space)
    return "\n\n".join(part if isinstance(part, str) else markdown(part) for part in parts)


def evidence_tables(search: Sequence[TrialRecord], space: SearchSpace) -> list[str | Table]:
    """The objective by each setting, with its spread over runs, as tables and sentences."""
    metric, setting = space.objective.metric, single(space)
    finite = [name for name, parameter in space.parameters.items() if parameter.finite() is not None]
    parts: list[str | Table] = [
        by_value(search, metric, name) for name in finite if len(metric_by(search, metric, name)) > 1
    ]
    seen = reach(search, metric, setting) if setting else None
    if parts and seen is not None and seen.least > 0:
        parts.append(
            f"Any two means that differ by {seen.least:.2g} or more differ beyond noise (Tukey, 5 %); a true difference of "
            f"{seen.detectable:.2g} shows in 8 of 10 such studies. Noise is the variation between seeds; the items are the "
            "same for all."
        )
    elif parts and not setting:
        parts.append("Runs at one value differ in the other settings as well: this is a hint, not a test.")
    return parts


def by_value(search: Sequence[TrialRecord], metric: str, setting: str) -> Table:
    """A row a value, best mean first; see `bft_ray.study.records.leaderboard.Spread`."""
    rows: list[list[Cell]] = []
    for spread in _ordered(search, metric, setting):
        mean, low, high = (metric_cell(metric, value) for value in (spread.mean, spread.low, spread.high))
        sd: Cell = "" if math.isnan(spread.sd) else Number.of(spread.sd, ".2g")
        rows.append([value_text(spread.at), mean, sd, low, high, Number.of(spread.num_runs)])
    return Table([setting, f"mean {metric}", "sd", "least", "largest", "runs"], rows)


def reach(search: Sequence[TrialRecord], metric: str, setting: str) -> Reach | None:
    """What the comparison can show (`Reach`); None where there are fewer than two values, or none has several runs. A run
    that several trials share counts once. Where the numbers of runs differ, the smallest is n.
    """
    runs = {record.duplicate_of or record.id: record for record in reversed(search)}
    own = metric_by(runs.values(), metric, setting)
    freedom = sum(spread.num_runs - 1 for spread in own)
    if len(own) < 2 or not freedom:
        return None
    squares = sum((spread.num_runs - 1) * spread.sd**2 for spread in own if spread.num_runs > 1)
    se = math.sqrt(squares / freedom / min(spread.num_runs for spread in own))
    if se <= 1e-12 * max(abs(spread.mean) for spread in own):  # rounding
        return Reach(0.0, math.nan)
    least = float(stats.studentized_range.ppf(0.95, len(own), freedom)) * se
    unpaired = math.sqrt(2) * se
    return Reach(least, detectable(unpaired, freedom, critical=least / unpaired))


def _ordered(search: Sequence[TrialRecord], metric: str, setting: str) -> list[Spread]:
    sign = -1 if higher_is_better(metric) else 1
    return sorted(metric_by(search, metric, setting), key=lambda spread: sign * spread.mean)
