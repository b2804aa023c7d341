"""The pictures of a study, drawn from its records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bft_ray.config.metrics import describe, format_value, higher_is_better, is_better
from bft_ray.profile.page import png
from bft_ray.space.definition import DEFAULT, SearchSpace
from bft_ray.study.confirm.choose import Arm, Choice
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.leaderboard import best, metric_by, short_names, tuned, value_text
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, SEARCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): distinct for every kind of colour vision; baselines also differ by their dashes
_TRIAL, _BEST, _GREY = "#0072B2", "#D55E00", "#767676"
_BASELINES = (("#000000", "-"), ("#009E73", "--"), ("#CC79A7", "-."), ("#E69F00", ":"))
_MARKERS = {"candidate": "o", "baseline": "s", "default": "D"}
_SEEN = "a true gain within shows in fewer than 8 of 10 studies"
_FEW = 12  # values of a setting that get a place each on the axis
_CROWDED = 70  # characters on an axis; more are turned
_LETTERS = 105  # characters in a row of a legend
_LEAST_GAP = 0.055  # of two labels beside an axis, as share of its height


def draw(records: Mapping[str, Sequence[TrialRecord]], space: SearchSpace, choice: Choice | None) -> dict[str, bytes]:
    """Name -> PNG, for those that the data allow: `by_<setting>` for each parameter, the window first; history,
    learning_curves, confirmation.

    Args:
        records: part -> its trials.
        choice: the result of the confirmation; None: there was none.
    """
    search, metric = records.get(SEARCH, ()), space.objective.metric
    baselines = tuned(records.get(BASELINES, ()), metric)
    fields = sorted(space.parameters, key=lambda name: name != "loss.window")
    short = short_names(fields)
    figures = {f"by_{short[name]}": _by_setting(search, baselines, space, name) for name in fields}
    figures["history"] = _history(search, baselines, space)
    figures["learning_curves"] = _curves(search, space, choice.champion if choice else None)
    figures["confirmation"] = _forest(choice) if choice is not None else None
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for figure in drawn.values():
        handles, labels = figure.axes[0].get_legend_handles_labels()
        of = dict(zip(labels, handles, strict=True))  # one entry each
        widths = sorted((len(label) + 7 for label in of), reverse=True)  # with the sign before it
        columns = max((count for count in (2, 3) if sum(widths[:count]) <= _LETTERS), default=1)
        figure.legend(of.values(), of.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return {name: png(figure) for name, figure in drawn.items()}


# ---- the objective against a setting -----------------------------------------------------------------------------------


def _by_setting(
    search: Sequence[TrialRecord], baselines: Mapping[str, TrialRecord], space: SearchSpace, name: str
) -> Figure | None:
    """A dot for each run; for values with several runs also their mean and range."""
    metric, parameter = space.objective.metric, space.parameters[name]
    spreads = metric_by(search, metric, name)
    if not spreads:
        return None
    figure, axes = _figure()
    default = _default_at(name, baselines, space)
    shown = [spread.at for spread in spreads] + ([] if default is None else [default])
    is_listed = 0 < len(parameter.finite() or []) <= _FEW
    places = _listed(axes, shown) if is_listed else _ranged(axes, shown, getattr(parameter, "log", False))
    if default is not None:
        axes.axvline(places[default], color=_GREY, linestyle=":", linewidth=1, zorder=0)
        above = axes.get_xaxis_transform()
        axes.text(places[default], 1.01, f"default {DEFAULT}", transform=above, ha="center", fontsize=8)
    shift = 0.1 if is_listed else 0.0
    trials = [record for record in search if record.state == "complete" and name in record.assignment]
    for is_duplicate, label in ((False, "a run"), (True, "a duplicate: the run of another trial")):
        own = [record for record in trials if bool(record.duplicate_of) is is_duplicate]
        runs = [(record.assignment[name], metrics) for record in own for metrics in record.by_seed.values()]
        _dots(axes, [(places[at] - shift, run[metric]) for at, run in runs if metric in run], label, is_duplicate)
    several = [spread for spread in spreads if spread.num_runs > 1]
    if is_listed and several:
        means = [spread.mean for spread in several]
        below, above = ([abs(getattr(spread, end) - spread.mean) for spread in several] for end in ("low", "high"))
        label, at = "mean, least and largest", [places[spread.at] + shift for spread in several]
        axes.errorbar(at, means, [below, above], fmt="D", color=_BEST, markersize=5, capsize=3, label=label)
    _lines(axes, baselines, metric)
    axes.set(xlabel=f"{name} (supervised tokens)" if name == "loss.window" else name, ylabel=_unit(metric))
    return figure


def _default_at(name: str, baselines: Mapping[str, TrialRecord], space: SearchSpace) -> Any:
    """The default's value on this axis; None where it has no such setting, or is not tuned over it yet."""
    own = {"loss.method": DEFAULT, "loss.window": 256}
    own |= next((baseline.overrides for baseline in space.baselines if baseline.name == DEFAULT), {})
    if DEFAULT in baselines:
        own |= baselines[DEFAULT].assignment
    return own.get(name)


def _listed(axes: Axes, values: Sequence[Any]) -> dict[Any, float]:
    """A place for each value: none first, numbers, then text."""

    def order(value: Any) -> tuple[bool, Any]:
        return isinstance(value, str), value if isinstance(value, str) else float(value or 0)

    texts = {value: value_text(value) for value in sorted(dict.fromkeys(values), key=order)}
    axes.set_xticks(range(len(texts)), list(texts.values()), fontsize=8)
    if max(map(len, texts.values())) * len(texts) > _CROWDED:
        axes.tick_params(axis="x", rotation=15)
    axes.set_xlim(-0.6, len(texts) - 0.4)
    return {value: float(place) for place, value in enumerate(texts)}


def _ranged(axes: Axes, values: Sequence[float], is_log: bool) -> dict[Any, float]:
    """Value -> itself: its place on the axis."""
    from matplotlib.ticker import LogLocator

    if is_log:
        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
    return {value: value for value in values}


# ---- what happened, trial by trial -------------------------------------------------------------------------------------


def _history(search: Sequence[TrialRecord], baselines: Mapping[str, TrialRecord], space: SearchSpace) -> Figure | None:
    metric = space.objective.metric
    complete = [record for record in search if record.state == "complete" and metric in record.metrics]
    if not complete:
        return None
    figure, axes = _figure()
    steps: list[tuple[float, float]] = []
    for record in complete:
        if not steps or is_better(metric, record.metrics[metric], steps[-1][1]):
            steps.append((record.number, record.metrics[metric]))
    last = max(record.number for record in search)
    steps.append((last + 0.5, steps[-1][1]))
    axes.step(*zip(*steps, strict=True), where="post", color=_BEST, label="best so far")
    for is_duplicate, label in ((False, "complete"), (True, "duplicate")):
        own = [record for record in complete if bool(record.duplicate_of) is is_duplicate]
        _dots(axes, [(record.number, record.metrics[metric]) for record in own], label, is_duplicate)
    stopped = [(r.number, r.last_rung[1]) for r in search if r.state == "pruned" and r.last_rung]
    if stopped and metric == rung_metric(space):
        axes.plot(*zip(*stopped, strict=True), "x", color=_GREY, label="stopped early, at its last rung")
    elif stopped:
        _on_the_edge(axes, [number for number, _ in stopped], "x", "stopped early")
    _on_the_edge(axes, [record.number for record in search if record.state == "failed"], "v", "failed")
    _lines(axes, baselines, metric)
    axes.set(xlabel="trial, in the order in which they were proposed", ylabel=_unit(metric), xlim=(-0.7, last + 0.7))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _on_the_edge(axes: Axes, numbers: Sequence[int], marker: str, label: str) -> None:
    """Mark trials without a value on the edge of the axis."""
    if numbers:
        at = [0.02] * len(numbers)
        axes.plot(numbers, at, marker, color=_GREY, markersize=6, label=label, transform=axes.get_xaxis_transform())


def _curves(search: Sequence[TrialRecord], space: SearchSpace, champion: str | None) -> Figure | None:
    """The metric at the rungs against steps; of complete trials also at the end."""
    metric = rung_metric(space)
    curves: list[tuple[TrialRecord, list[tuple[int, float]]]] = []
    for record in search:
        reached = {step: value for step, value in record.rung_values.items() if math.isfinite(value)}
        if record.state == "complete" and metric in record.metrics and record.planned_steps:
            reached[record.planned_steps] = record.metrics[metric]
        if reached and not record.duplicate_of:
            curves.append((record, list(reached.items())))
    if not any(len(points) > 1 for _, points in curves):
        return None
    figure, axes = _figure()
    top = best(search, space.objective.metric)
    for record, points in curves:
        is_stopped = record.state == "pruned"
        is_best, is_champion = record == top, record.name == champion != ""
        if is_best or is_champion:
            label = " and ".join(["best"] * is_best + ["champion"] * is_champion) + f": {record.name or record.id}"
            look = {"color": _BEST, "linewidth": 2.5, "marker": "o", "linestyle": "-" if is_best else "--", "zorder": 3}
        else:
            label = "stopped early" if is_stopped else "other trials"
            look = {"color": _GREY if is_stopped else _TRIAL, "linewidth": 1, "alpha": 0.55}
            look |= {"marker": "x", "markevery": [-1]} if is_stopped else {"marker": "."}
        axes.plot(*zip(*points, strict=True), markersize=5, label=label, **look)
    steps = sorted({step for _, points in curves for step, _ in points})
    axes.set(xlabel="optimizer steps", ylabel=_unit(metric), xscale="log")  # rungs are a geometric series
    if len(steps) <= _FEW:
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.set_xticks([], minor=True)
    return figure


# ---- the confirmation --------------------------------------------------------------------------------------------------


def _forest(choice: Choice) -> Figure | None:
    """Gains over the default with their intervals, best arm first."""
    arms = [arm for arm in choice.arms if arm.mean is not None]
    if not any(arm.gain for arm in arms):
        return None
    figure, axes = _figure(7.5, 1.7 + 0.36 * len(arms))
    axes.axvline(0, color="black", linewidth=1)
    for place, arm in enumerate(arms):
        is_champion = arm.name == choice.champion
        color = _BEST if is_champion else _TRIAL if arm.kind == "candidate" else "black"
        weight = "bold" if is_champion else "normal"
        if arm.gain is not None:
            seen = arm.gain.detectable
            seen = 0.0 if math.isnan(seen) else seen
            axes.barh(place, 2 * seen, left=-seen, height=0.55, color="#e4e4e4", zorder=0, label=_SEEN)
            axes.plot([arm.gain.low, arm.gain.high], [place, place], color=color, linewidth=3 if is_champion else 1.8)
        axes.plot(
            arm.gain.gain if arm.gain else 0.0,
            place,
            linestyle="",
            color=color,
            marker=_MARKERS[arm.kind],
            markersize=8 if is_champion else 6,
            markerfacecolor="white" if arm.excluded else color,
            label="champion" if is_champion else arm.kind,
        )
        axes.text(
            1.02, place, _gain_text(arm), transform=axes.get_yaxis_transform(), va="center", fontsize=8, weight=weight
        )
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms], fontsize=8)
    for tick, arm in zip(axes.get_yticklabels(), arms, strict=True):
        tick.set_weight("bold" if arm.name == choice.champion else "normal")
    axes.set_ylim(len(arms) - 0.4, -0.6)
    plan = choice.plan
    axes.set_xlabel(
        f"gain over {plan.default} in {plan.metric} (right is better), {len(plan.seeds)} seeds, {choice.num_items:,} items"
    )
    return figure


def _gain_text(arm: Arm) -> str:
    gain = arm.gain
    text = f"{gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" if gain else "the default"
    return f"{text}, {arm.excluded}" if arm.excluded else text


# ---- what they share ---------------------------------------------------------------------------------------------------


def _figure(width: float = 7.5, height: float = 4.0) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _lines(axes: Axes, baselines: Mapping[str, TrialRecord], metric: str) -> None:
    """A line for each baseline, with its name and value beside the axis, placed so that names do not overlap."""
    values = {name: record.value for name, record in baselines.items() if record.value is not None}
    for place, value in enumerate(values.values()):
        color, dashes = _BASELINES[place % len(_BASELINES)]
        axes.axhline(value, color=color, linestyle=dashes, linewidth=1.2, zorder=1)
    low, high = axes.get_ylim()
    places = _apart({name: (value - low) / (high - low) for name, value in values.items()}, _LEAST_GAP)
    for place, (name, value) in enumerate(values.items()):
        axes.annotate(
            f"{name} {format_value(metric, value)}",
            (1, (value - low) / (high - low)),
            (1.03, places[name]),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": _BASELINES[place % len(_BASELINES)][0]},
        )
    axes.set_ylim(low, high)


def _apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights of labels, moved up until each is at least `gap` above the next lower one."""
    found: dict[str, float] = {}
    for name in sorted(heights, key=lambda name: heights[name]):
        found[name] = max([heights[name], *(height + gap for height in found.values())])
    return found


def _dots(axes: Axes, points: Sequence[tuple[float, float]], label: str, is_hollow: bool) -> None:
    if points:
        fill = "none" if is_hollow else _TRIAL
        axes.plot(*zip(*points, strict=True), "o", color=_TRIAL, markersize=5, mfc=fill, alpha=0.7, label=label)


def _unit(metric: str) -> str:
    """`choices/probability (share, higher is better)`."""
    found = describe(metric)
    unit = f"{found.unit}, " if found and found.unit else ""
    return f"{metric}\n({unit}{'higher' if higher_is_better(metric) else 'lower'} is better)"
