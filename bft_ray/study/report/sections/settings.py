"""What each setting does: effects with the others averaged out, their shares, and a map of epsilon and cap."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from bft_ray.config.metrics import format_value
from bft_ray.page.live import colour_scale
from bft_ray.page.model import Axis, Cell, Figure, Marks, Number, Part, Plot, Section, Span, Table, present
from bft_ray.page.svg import tick_text
from bft_ray.page.ticks import scale_of
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import DEFAULT
from bft_ray.space.ranges import is_number
from bft_ray.stats.effects import Effect, Level, effects
from bft_ray.study.kept import Known
from bft_ray.study.records.leaderboard import short_names, value_text
from bft_ray.study.records.ranking import tuned
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, SEARCH
from bft_ray.study.report.arms import metric_cell

_LISTED = 8  # values that get a level each; more are put into ranges
_RANGES, _RANGE = 4, 4  # ranges at most, and trials in one at least
_EPSILON, _CAP = "loss.epsilon", "loss.weight_cap"
_LEAST = 4  # trials; of fewer nothing is told


def settings(known: Known) -> Section | None:
    """None while too few trials have ended."""
    space, search = known.study.space, known.parts[SEARCH]
    own = ran(search)
    if len(own) < _LEAST:
        return None
    found = effects_of(own, space)
    parts: list[Part] = [_caveat(search, own)]
    if found:
        parts += present(_effects_figure(found, own, space, known), _effects_table(found, space), _shares(found, space))
    parts += present(_map(own, space), _parallel(own, space))
    return Section("settings", "What each setting does", parts)


def ran(search: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials with a result of their own."""
    return [one for one in search if one.ran_to_end and one.value is not None]


def effects_of(own: Sequence[TrialRecord], space: SearchSpace) -> dict[str, Effect]:
    """Setting -> its effect on the objective; see `bft_ray.stats.effects`."""
    levels = {name: levels_of(own, name, space) for name in space.parameters}
    found = effects([record.value or 0.0 for record in own], levels)
    return dict(sorted(found.items(), key=lambda pair: -pair[1].share if math.isfinite(pair[1].share) else 0.0))


def levels_of(own: Sequence[TrialRecord], name: str, space: SearchSpace) -> list[Hashable | None]:
    """The level of each trial: its value, or of a continuous setting a range that some of the trials share; None: it has none."""
    values = [_value(record, name) for record in own]
    numbers = [value for value in values if is_number(value)]
    if not numbers or (space.parameters[name].finite() is not None and len(set(numbers)) <= _LISTED):
        return [None if value is None else value_text(value) for value in values]
    count = min(max(len(numbers) // _RANGE, 2), _RANGES)
    cuts = np.quantile(numbers, np.linspace(0, 1, count + 1))
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(cuts)]

    def level(value: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return names[int(np.searchsorted(cuts[1:-1], value, side="left"))]

    return [level(value) for value in values]


def _value(record: TrialRecord, name: str) -> Any:
    """A setting of a trial; a cap of null is the value `none`, where a trial without the setting has no value."""
    if name not in record.assignment:
        return None
    value = record.assignment[name]
    return "none" if value is None else value


def _caveat(search: Sequence[TrialRecord], own: Sequence[TrialRecord]) -> str:
    stopped = sum(record.state == "pruned" and not record.duplicate_of for record in search)
    text = (
        f"From the {len(own):,} trials of the search that ran to their end, on the data that picked them: "
        "this shows where to look, and confirms nothing."
    )
    if stopped:
        text += f" The {stopped:,} that were stopped early are not in it, so bad settings look better than they are."
    return text


def _order(level: Hashable) -> tuple[bool, float, str]:
    try:
        return False, float(str(level).partition(" to ")[0]), ""
    except ValueError:
        return True, 0.0, str(level)


def _effects_figure(
    found: Mapping[str, Effect], own: Sequence[TrialRecord], space: SearchSpace, known: Known
) -> Figure:
    metric, short = space.objective.metric, short_names(space.parameters)
    rows = _rows(found)
    names = [f"{short[name]} {level.at}" for name, level in rows]
    of_trials = {name: levels_of(own, name, space) for name in found}
    dots = [
        (record, record.value or 0.0, place)
        for place, (name, level) in enumerate(rows)
        for record, at in zip(own, of_trials[name], strict=True)
        if at == level.at
    ]
    means = [(level, place) for place, (_, level) in enumerate(rows) if math.isfinite(level.mean)]
    marks = [
        Marks(
            "a trial",
            [value for _, value, _ in dots],
            [place for _, _, place in dots],
            shape="ring",
            tone="grey",
            texts=[f"{record.label}: {format_value(metric, value)}" for record, value, _ in dots],
        ),
        Marks(
            "mean, others averaged out",
            [level.mean for level, _ in means],
            [place for _, place in means],
            shape="diamond",
            tone="best",
            low=[level.low if math.isfinite(level.low) else level.mean for level, _ in means],
            high=[level.high if math.isfinite(level.high) else level.mean for level, _ in means],
            texts=[f"{names[place]}: {_mean_text(metric, level)}" for level, place in means],
        ),
    ]
    published = tuned(known.parts[BASELINES], metric).get(DEFAULT)
    default = None if published is None else published.value
    if any(level.low < level.mean for level, _ in means):
        text = (
            "A diamond is a mean with the other settings averaged out, its line the 95 % interval; settings "
            "that explain most come first."
        )
    else:
        text = "There are too few trials to tell settings apart, or for intervals."
    if default is not None:
        text += f" The vertical line is the default, {format_value(metric, default)} on the same data."
    return Figure(
        "effects",
        "The objective by setting",
        f"Mean {metric} at each value of each setting, with intervals; the table below has the numbers.",
        Axis(metric),
        Axis(names=names),
        marks,
        text,
        rule=default,
    )


def _rows(found: Mapping[str, Effect]) -> list[tuple[str, Level]]:
    """Setting and level, in the order in which they are shown."""
    return [
        (name, level)
        for name, effect in found.items()
        for level in sorted(effect.levels, key=lambda level: _order(level.at))
    ]


def _mean_text(metric: str, level: Level) -> str:
    text = format_value(metric, level.mean)
    if not math.isfinite(level.low):
        return text
    return f"{text} [{format_value(metric, level.low)}, {format_value(metric, level.high)}]"


def _effects_table(found: Mapping[str, Effect], space: SearchSpace) -> Table:
    metric, rows = space.objective.metric, []
    for name, level in _rows(found):
        mean: Cell = "not separable" if math.isnan(level.mean) else metric_cell(metric, level.mean)
        span: Cell = "not known"
        if math.isfinite(level.low):
            low, high = (Number(end, format_value(metric, end)) for end in (level.low, level.high))
            span = Span(low, high)
        rows.append([name, str(level.at), mean, span, Number.of(level.num_trials)])
    head = ["setting", "value", f"mean {metric}", "95 % interval", "trials"]
    return Table(head, rows, title="The numbers of this figure", is_open=False)


def _shares(found: Mapping[str, Effect], space: SearchSpace) -> Figure | None:
    kept = {name: effect for name, effect in found.items() if math.isfinite(effect.share)}
    if not kept:
        return None
    short, places = short_names(space.parameters), list(range(len(kept)))
    texts = [
        f"{short[name]}: {effect.share:.0%} [{effect.low:.0%}, {effect.high:.0%}], p {effect.p:.2g}"
        for name, effect in kept.items()
    ]
    marks = Marks(
        "",
        [100 * effect.share for effect in kept.values()],
        places,
        shape="square",
        low=[100 * effect.low for effect in kept.values()],
        high=[100 * effect.high for effect in kept.values()],
        texts=texts,
    )
    return Figure(
        "importance",
        "How much each setting matters",
        f"Share of the variation that each setting explains, with its 95 % interval. {'; '.join(texts)}.",
        Axis("% of the variation that the other settings leave"),
        Axis(names=[short[name] for name in kept]),
        [marks],
        "A setting whose interval reaches 0 may not matter at all. (Partial omega squared; interval by the "
        "noncentral F distribution.)",
    )


def _map(own: Sequence[TrialRecord], space: SearchSpace) -> Figure | None:
    """Epsilon against cap, the objective as the colour; no cap stands above the largest one."""
    kept = [record for record in own if {_EPSILON, _CAP} <= set(record.assignment)]
    if not {_EPSILON, _CAP} <= set(space.parameters) or len(kept) < _LEAST:
        return None
    metric = space.objective.metric
    caps = [record.assignment[_CAP] for record in kept]
    top = 2 * max((cap for cap in caps if cap is not None), default=1.0)
    marks = Marks(
        "",
        [float(record.assignment[_EPSILON]) for record in kept],
        [top if cap is None else float(cap) for cap in caps],
        texts=[f"{record.name}: {format_value(metric, record.value or 0.0)}" for record in kept],
        values=[record.value or 0.0 for record in kept],
    )
    no_cap = f" No cap stands at {top:g}." if None in caps else ""
    return Figure(
        "map",
        "Epsilon and cap together",
        f"A trial at its epsilon and cap, coloured by {metric}. The leaderboard has the numbers.",
        Axis("epsilon", is_log=True),
        Axis("weight cap", is_log=True),
        [marks],
        f"A trial each; the lighter, the larger {metric}.{no_cap} Other settings differ between them.",
        scale=metric,
    )


def _parallel(own: Sequence[TrialRecord], space: SearchSpace) -> Plot:
    """Parallel coordinates, as plotly draws them: Optuna's own ones have a trace a trial, and cannot be brushed."""
    metric, short = space.objective.metric, short_names(space.parameters)
    values = [record.value or 0.0 for record in own]
    axes = [
        _axis(short[name], [_value(record, name) for record in own], space.parameters[name])
        for name in space.parameters
    ]
    lines = {"color": values, "colorscale": colour_scale(), "showscale": True, "colorbar": {"thickness": 12}}
    trace = {"type": "parcoords", "line": lines, "dimensions": [*axes, {"label": metric, "values": values}]}
    layout = {
        "height": 420,
        "margin": {"l": 70, "r": 50, "t": 60, "b": 30},
        "font": {"size": 12},
        "paper_bgcolor": "#fff",
    }
    return Plot(
        "parallel",
        "All settings of all trials",
        f"Parallel coordinates: a line a trial through its settings, coloured by {metric}; the table of all "
        f"trials has the same numbers.",
        "A line is a trial. Drag along an axis to keep only the trials that pass there. On a narrow screen, in print "
        "and without script, see the table of all trials.",
        {"data": [trace], "layout": layout},
    )


def _axis(label: str, values: Sequence[Any], parameter: Any) -> dict[str, Any]:
    """An axis: numbers of a range as they are (or their powers of ten), other values as places of a list."""
    if parameter.finite() is None and all(value is None or is_number(value) for value in values):
        low = min((value for value in values if value is not None), default=1.0)
        kept = [low if value is None else float(value) for value in values]  # without the setting: at the low end
        if not parameter.log:
            return {"label": label, "values": kept}
        ticks = scale_of(kept, True, 5).ticks
        powers = {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [tick_text(tick) for tick in ticks]}
        return {"label": label, "values": [math.log10(value) for value in kept], **powers}
    texts = ["(unused)" if value is None else value_text(value) for value in values]
    names = sorted(dict.fromkeys(texts), key=_order)
    return {
        "label": label,
        "values": [names.index(text) for text in texts],
        "tickvals": list(range(len(names))),
        "ticktext": names,
    }
