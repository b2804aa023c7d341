"""How the search went: the best value against compute, the rungs, the curves of the trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bft_ray.config.metrics import format_value, is_better
from bft_ray.page.model import Axis, Cell, Figure, Marks, Number, Part, Section, Span, Stroke, Table, Tone, present
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import Asha
from bft_ray.study.kept import Known
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.ranking import best, tuned
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, SEARCH
from bft_ray.study.report import agreement
from bft_ray.study.report.sections.cost import hours, unit_of

_STROKES: Sequence[Stroke] = ("line", "dash", "dots")


def course(known: Known) -> Section | None:
    """None before the first trial of the search has ended."""
    space, search = known.study.space, known.parts[SEARCH]
    rungs = _rungs(search, space) if isinstance(space.scheduler, Asha) else []
    curves = _curves(search, space, known.choice.champion if known.choice else None)
    parts: list[Part] = present(_history(known), *rungs, curves)
    return Section("course", "How the search went", parts) if parts else None


# ---- the best value against compute --------------------------------------------------------------------------------


def _history(known: Known) -> Figure | None:
    space, search = known.study.space, known.parts[SEARCH]
    metric = space.objective.metric
    ended = sorted(
        (r for r in search if r.is_finished and not r.duplicate_of), key=lambda record: record.finished or 0.0
    )
    if not any(record.value is not None for record in ended):
        return None
    baselines = tuned(known.parts[BASELINES], metric)
    spent = sum(hours(record, known.study) for record in known.parts[BASELINES])
    at: dict[str, float] = {}
    for record in ended:
        spent += hours(record, known.study)
        at[record.id] = spent
    unit, factor = unit_of(spent)
    steps: list[tuple[float, float]] = []
    for record in ended:
        if record.value is not None and (not steps or is_better(metric, record.value, steps[-1][1])):
            steps.append((factor * at[record.id], record.value))
    steps.append((factor * spent, steps[-1][1]))
    marks = [_of_trials(ended, at, factor, metric)]
    if metric == rung_metric(space):
        stopped = [(record, record.last_rung) for record in ended if record.state == "pruned" and record.last_rung]
        marks.append(
            Marks(
                "stopped early, at its last rung",
                [factor * at[record.id] for record, _ in stopped],
                [value for _, (_, value) in stopped],
                shape="cross",
                tone="grey",
                texts=[f"{record.label}: stopped at step {step}" for record, (step, _) in stopped],
            )
        )
    reached, values = [at for at, _ in steps], [value for _, value in steps]
    marks.append(Marks("best so far", reached, values, shape="none", stroke="step", tone="best"))
    first = factor * min(at.values())
    for (name, record), stroke in zip(baselines.items(), _STROKES, strict=False):
        if record.value is not None:
            label = f"baseline {name}, {format_value(metric, record.value)}"
            marks.append(
                Marks(label, [first, factor * spent], [record.value] * 2, shape="none", stroke=stroke, tone="dark")
            )
    last = format_value(metric, steps[-1][1])
    return Figure(
        "history",
        "Best value against compute",
        f"The best {metric} of the search comes to {last} over {factor * spent:.3g} {unit}.",
        Axis(unit),
        Axis(metric),
        [one for one in marks if one.x],
        f"Over the {unit} of baselines and search, in the order in which trials ended. A curve that is flat at its "
        "right end says that more trials of this space would hardly help.",
    )


def _of_trials(ended: Sequence[TrialRecord], at: Mapping[str, float], factor: float, metric: str) -> Marks:
    own = [record for record in ended if record.value is not None]
    return Marks(
        "a trial that ran to its end",
        [factor * at[record.id] for record in own],
        [record.value or 0.0 for record in own],
        texts=[f"{record.label}: {format_value(metric, record.value or 0.0)}" for record in own],
    )


# ---- rungs -------------------------------------------------------------------------------------------------------------


def survival(search: Sequence[TrialRecord]) -> dict[int, tuple[int, int]]:
    """Rung -> (trials that were measured there, those of them that trained on)."""
    found: dict[int, tuple[int, int]] = {}
    for record in search:
        if record.duplicate_of or not record.is_finished:
            continue
        reached = sorted(record.rung_values)
        for step in reached:
            count, further = found.get(step, (0, 0))
            goes_on = step != reached[-1] or record.state != "pruned"
            found[step] = (count + 1, further + goes_on)
    return dict(sorted(found.items()))


def _rungs(search: Sequence[TrialRecord], space: SearchSpace) -> list[Part]:
    found = survival(search)
    if not found:
        return []
    orders = agreement.by_rung(search, rung_metric(space), space.objective.metric)
    texts = [f"step {step}: {further} of {count} trained on" for step, (count, further) in found.items()]
    marks = [
        _counts("measured at the rung", [count for count, _ in found.values()], texts, "light", 0.6),
        _counts("trained on", [further for _, further in found.values()], texts, "main", 0.3),
    ]
    figure = Figure(
        "rungs",
        "What early stopping did",
        f"Trials at each rung and those that trained on. {'; '.join(texts)}.",
        Axis("trials"),
        Axis(names=[f"step {step}" for step in found]),
        marks,
    )
    rows: list[list[Cell]] = []
    for step, (count, further) in found.items():
        order = orders.get(step)
        tau: Cell = Number.of(order.tau, ".2f") if order else "too few trials"
        span: Cell = Span(*(Number.of(end, ".2f") for end in (order.low, order.high))) if order else ""
        rows.append([f"step {step}", Number.of(count), Number.of(further), tau, span])
    head = ["rung", "measured", "trained on", "agreement with the end", "95 % interval"]
    text = (
        "Agreement is Kendall's tau of the trials that ran to their end: 1, the rung had their final order; where the "
        "interval reaches 0, a stopped trial may have been the best."
    )
    return [figure, Table(head, rows), text]


def _counts(label: str, counts: Sequence[int], texts: Sequence[str], tone: Tone, height: float) -> Marks:
    """A bar a rung."""
    places, none = list(range(len(counts))), [0.0] * len(counts)
    return Marks(label, [], places, tone=tone, low=none, high=counts, is_bar=True, height=height, texts=texts)


# ---- curves ------------------------------------------------------------------------------------------------------------


def _curves(search: Sequence[TrialRecord], space: SearchSpace, champion: str | None) -> Figure | None:
    """The metric at the rungs against steps; of complete trials also at the end."""
    metric = rung_metric(space)
    curves: list[tuple[TrialRecord, list[tuple[int, float]]]] = []
    for record in search:
        reached = {step: value for step, value in record.rung_values.items() if math.isfinite(value)}
        if record.state == "complete" and metric in record.metrics and record.planned_steps:
            reached[record.planned_steps] = record.metrics[metric]
        if reached and not record.duplicate_of:
            curves.append((record, sorted(reached.items())))
    if not any(len(points) > 1 for _, points in curves):
        return None
    top = best(search, space.objective.metric)
    special = [pair for pair in curves if pair[0] is top or (champion and pair[0].name == champion)]
    others = [pair for pair in curves if not any(pair[0] is one for one, _ in special)]
    marks = [
        _lines("stopped early", [pair for pair in others if pair[0].state == "pruned"], metric, "grey"),
        _lines("ran to its end", [pair for pair in others if pair[0].state != "pruned"], metric, "main"),
    ]
    for record, points in special:
        label = " and ".join(["best"] * (record is top) + ["champion"] * (record.name == champion))
        marks.append(_lines(f"{label}: {record.label}", [(record, points)], metric, "best"))
    return Figure(
        "curves",
        "The trials at the rungs and at the end",
        f"{metric} of {len(curves)} trials against optimizer steps.",
        Axis("optimizer steps", is_log=True),
        Axis(metric),
        [one for one in marks if one.x],
    )


def _lines(label: str, curves: Sequence[tuple[TrialRecord, list[tuple[int, float]]]], metric: str, tone: str) -> Marks:
    """Several lines as one: a point that is no number parts them."""
    x: list[float] = []
    y: list[float] = []
    texts: list[str] = []
    for record, points in curves:
        for step, value in points:
            x.append(step)
            y.append(value)
            texts.append(f"{record.label}, step {step}: {format_value(metric, value)}")
        x.append(math.nan)
        y.append(math.nan)
        texts.append("")
    shape = "cross" if tone == "grey" else "square" if tone == "best" else "dot"
    return Marks(label, x, y, shape=shape, stroke="dash" if tone == "grey" else "line", tone=tone, texts=texts)  # type: ignore[arg-type]
