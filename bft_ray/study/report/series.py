"""The page of a series: its question, what its studies say together, and each claim under each condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bft_ray.page.model import Cell, Figure, Number, Page, Part, Section, Table, listed, present
from bft_ray.space.series import Contrast, Series, Trend
from bft_ray.study.confirm.candidates import confirmed
from bft_ray.study.confirm.choice import Record
from bft_ray.study.confirm.claims import Judged, Verdict
from bft_ray.study.confirm.combine import Confirmed
from bft_ray.study.confirm.peak import Peaked, peak_of
from bft_ray.study.confirm.trend import Difference, Slope, difference_of, slope_of
from bft_ray.study.kept import Known
from bft_ray.study.records.store import CONFIRMATION
from bft_ray.study.report.apart import fields_text, tuned_apart
from bft_ray.study.report.arms import arms_table, gain_cells, metric_cell, signed, span_of
from bft_ray.study.report.peaks import peak_parts, peak_sentences
from bft_ray.study.report.sections.head import answer
from bft_ray.study.report.verdicts import verdicts_figure

_VERDICTS: tuple[Verdict, ...] = ("does not hold", "holds", "cannot be told")


@dataclass(frozen=True)
class Told:
    """What a series says so far: a function of the records of its studies.

    Args:
        known: condition -> its study, in the order of the series; only those that have begun.
        judged: condition -> its claims; only those with a choice.
        slopes: of the trends, from the conditions that have a choice.
        differences: of the contrasts, likewise.
        peaks: likewise.
        runs: condition -> its confirmation; only those with a choice.
    """

    series: Series
    known: Mapping[str, Known]
    judged: Mapping[str, Sequence[Judged]]
    slopes: Sequence[Slope]
    differences: Sequence[Difference] = ()
    peaks: Sequence[Peaked] = ()
    runs: Mapping[str, Confirmed] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every study has its answer."""
        return len(self.judged) == len(self.series.conditions)


def told(series: Series, known: Mapping[str, Known]) -> Told:
    """What the studies say together; `known`: condition -> its study."""
    judged, runs, alphas = {}, {}, []
    for name, own in known.items():
        if own.choice is not None and own.choice.num_items:
            judged[name] = own.choice.claims
            records = confirmed(own.study.space, own.parts[CONFIRMATION])
            runs[name] = Confirmed(series.conditions[name].at, own.choice.plan, records)
            alphas.append(own.choice.plan.alpha)
    level = min(alphas, default=0.05) / max(1, len(series.trends) + len(series.contrasts) + len(series.peaks))
    return Told(
        series,
        known,
        judged,
        slopes=[slope_of(trend, runs, level, series.caps) for trend in series.trends],
        differences=[difference_of(one, runs, level) for one in series.contrasts],
        peaks=[peak_of(one, runs, level) for one in series.peaks],
        runs=runs,
    )


def sentences(found: Told) -> list[str]:
    """The answer, Markdown: how often each claim holds, and how gains move. Verdicts against a claim come first."""
    lines = []
    if not found.is_whole:
        lines.append(f"**Not finished**: {len(found.judged)} of {len(found.series.conditions)} studies have an answer.")
    by_claim: dict[str, dict[Verdict, list[str]]] = {}
    for condition, judged in found.judged.items():
        for one in judged:
            by_claim.setdefault(str(one.claim), {}).setdefault(one.verdict, []).append(condition)
    for claim, verdicts in by_claim.items():
        lines += [_claim(claim, verdicts), *_apart(found, claim)]
    lines += [_slope(slope) for slope in found.slopes] + [_difference(one) for one in found.differences]
    return lines + [text for one in found.peaks for text in peak_sentences(one)]


def _claim(claim: str, verdicts: Mapping[Verdict, Sequence[str]]) -> str:
    total = sum(len(names) for names in verdicts.values())
    parts = []
    for verdict in _VERDICTS:
        if names := verdicts.get(verdict, ()):
            where = f" ({', '.join(names)})" if verdict != "cannot be told" and len(names) < total else ""
            parts.append(f"{verdict} in {len(names)}{where}")
    return f"Of {total} condition{'s' * (total != 1)}, that {claim} {', '.join(parts)}."


def _apart(found: Told, claim: str) -> list[str]:
    """A sentence where the arms of a claim differ in settings that another metric chose."""
    fields: list[str] = []
    where = []
    for name, one in _of(found, claim):
        own = found.known.get(name)
        if own is not None and (differ := tuned_apart(one.claim, own.parts, own.study.space)):
            where.append(name)
            fields += differ
    if not where:
        return []
    objective = found.known[where[0]].study.space.objective.metric
    return [f"In {listed(where)} the two differ in {fields_text(fields)} as well, which {objective} chose."]


def _slope(slope: Slope) -> str:
    trend, what = slope.trend, f"the gain of {_arms_of(slope.trend)}"
    if math.isnan(slope.value):
        return f"How {what} moves with {trend.over} cannot be told yet: too few conditions have an answer."
    rate = f"{signed(slope.value)} [{signed(slope.low)}, {signed(slope.high)}] per doubling of {trend.over}"
    if slope.verdict == "cannot be told":
        return f"Whether {what} moves with {trend.over} cannot be told: {rate}."
    return f"**{what[0].upper()}{what[1:]} {slope.verdict} with {trend.over}**: {rate}."


def _difference(one: Difference) -> str:
    contrast, what = one.contrast, f"the gain of {_arms_of(one.contrast)}"
    groups = f"in {listed(contrast.of)} than in {listed(contrast.against)}"
    if math.isnan(one.value):
        return f"Whether {what} is larger {groups} cannot be told yet: conditions have no answer."
    found = f"{signed(one.value)} [{signed(one.low)}, {signed(one.high)}]"
    if one.verdict == "cannot be told":
        return f"Whether {what} is larger {groups} cannot be told: {found}."
    return f"**{what[0].upper()}{what[1:]} is {one.verdict} {groups}**: {found}."


def _arms_of(asked: Trend | Contrast) -> str:
    return f"`{asked.better}` over `{asked.than}`" + (f" in {asked.metric}" if asked.metric else "")


def series_page(found: Told, when: str) -> Page:
    """The page of a series.

    Args:
        when: the time that it shows.
    """
    parts: list[Part] = present(
        *(_figure(found, claim) for claim in _claims(found)),
        claims_table(found),
        "The intervals of a study hold together for its own claims, not for those of all studies. Positive is better.",
    )
    if (values := values_table(found)).rows:
        parts += ["**Means over seeds of the other metrics that claims are about**", values]
    if found.slopes:
        parts += ["**Trends**", trends_table(found.slopes)]
    if found.differences:
        parts += ["**Between groups**", *[_difference(one) for one in found.differences]]
    for number, one in enumerate(found.peaks):
        parts += peak_parts(one, f"peak-{number}")
    each = [
        Section(f"study-{number}", name, [f"`{own.study.name}`: {answer(own)}", *_arms(own)])
        for number, (name, own) in enumerate(found.known.items())
    ]
    return Page(
        title=f"bft-ray: {found.series.name}",
        above=f"Series `{found.series.name}` of {len(found.series.conditions)} studies, as of {when}",
        question=found.series.question,
        answer=" ".join(sentences(found)) or "No study has an answer yet.",
        sections=[Section("together", "Side by side", parts), *each],
    )


def _arms(own: Known) -> list[Part]:
    return [arms_table(own.choice)] if own.choice is not None and own.choice.num_items else []


def _claims(found: Told) -> list[str]:
    return list(dict.fromkeys(str(one.claim) for judged in found.judged.values() for one in judged))


def _of(found: Told, claim: str) -> list[tuple[str, Judged]]:
    return [(name, one) for name, judged in found.judged.items() for one in judged if str(one.claim) == claim]


def _figure(found: Told, claim: str) -> Figure | None:
    rows = _of(found, claim)
    own = rows[0][1].claim
    return verdicts_figure(
        f"claim-{_claims(found).index(claim)}",
        claim.replace("`", ""),
        "Gain under each condition with its interval.",
        f"gain in {own.metric or 'the metric of the study'}",
        [(name, one.verdict, one.gain) for name, one in rows],
        own.by_at_most or 0.0,
    )


def claims_table(found: Told) -> Table:
    """A table with one row for each claim under each condition."""
    axes = list(dict.fromkeys(axis for one in found.series.conditions.values() for axis in one.at))
    rows: list[list[Cell]] = []
    for name, judged in found.judged.items():
        at = found.series.conditions[name].at
        places: list[Cell] = [Number.of(at[axis], "g") if axis in at else "" for axis in axes]
        for one in judged:
            rows.append([name, *places, str(one.claim), one.verdict, *gain_cells(one.gain, one.why)])
    return Table(["condition", *axes, "claim", "verdict", "gain", "interval", "detectable"], rows)


def values_table(found: Told) -> Table:
    """A row for each condition and metric of a claim that is not the objective: the mean over seeds and items of each arm."""
    arms = list(dict.fromkeys(record.name for own in found.runs.values() for record in own.records))
    rows: list[list[Cell]] = []
    for name, own in found.runs.items():
        for metric in dict.fromkeys(one.claim.metric for one in found.judged[name] if one.claim.metric):
            means = [_mean_of(metric, [record for record in own.records if record.name == arm]) for arm in arms]
            rows.append([name, metric, *(metric_cell(metric, mean) for mean in means)])
    return Table(["condition", "metric", *arms], rows)


def _mean_of(metric: str, records: Sequence[Record]) -> float | None:
    scores = [list(record.others[metric].values()) for record in records if record.others.get(metric)]
    return sum(sum(own) / len(own) for own in scores) / len(scores) if scores else None


def trends_table(slopes: Sequence[Slope]) -> Table:
    """A table with one row for each trend: verdict, slope, interval."""
    rows: list[list[Cell]] = [
        [
            _arms_of(one.trend),
            one.trend.over,
            one.verdict,
            "" if math.isnan(one.value) else Number(one.value, signed(one.value)),
            "" if math.isnan(one.low) else span_of(one.low, one.high),
            str(one.num_conditions),
        ]
        for one in slopes
    ]
    return Table(["gain", "over", "verdict", "per doubling", "interval", "conditions"], rows)
