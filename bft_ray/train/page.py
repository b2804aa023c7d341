"""The page of a training run: what its weights and confidences did over time, and the hardest samples, by id."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bft_ray.page.model import Axis, Cell, Figure, Marks, Number, Page, Part, Section, Shape, Stroke, Table

History = Mapping[str, Sequence[tuple[int, float]]]

_SHOWN, _POINTS = 15, 300
_LEVELS: Sequence[tuple[str, str, Shape, Stroke]] = (
    ("p90", "90 % of the samples below", "none", "dash"),
    ("p50", "median", "none", "line"),
    ("p10", "10 % below", "none", "dots"),
)
_FIGURES = (
    ("sample_weight", "Sample weights over time", "sample weight as applied"),
    ("confidence", "Window confidence over time", "confidence of a sample's least sure window"),
)
#: metrics of a step that the page shows
METRICS = ("train/nll", *(f"train/{name}_{level}" for name, *_ in _FIGURES for level, *_ in _LEVELS))


def training_page(title: str, history: History, records: Sequence[Mapping[str, Any]]) -> Page:
    """The page.

    Args:
        history: metric of `METRICS` -> (step, value), in order.
        records: of the items of the last evaluation: `set`, `id`, numbers.
    """
    figures: list[Part] = [
        figure for name, head, axis in _FIGURES if (figure := _over_time(name, head, axis, history)) is not None
    ]
    if loss := history.get("train/nll"):
        marks = [_line("of a batch", loss, "none", "line")]
        axis = Axis("nats a token")
        figures.append(
            Figure(
                "nll", "Unweighted loss over time", "Negative log-likelihood of each step.", Axis("step"), axis, marks
            )
        )
    hardest: list[Part] = [
        table for name in dict.fromkeys(r.get("set", "") for r in records) if (table := hardest_table(records, name))
    ]
    steps = max((points[-1][0] for points in history.values() if points), default=0)
    sections = [Section("time", "Over time", figures)] if figures else []
    if hardest:
        text = "Items that the trained model does worst on, by id: look at them in your own files. Text is not kept."
        sections.append(Section("hardest", "The hardest items", [text, *hardest]))
    question = "How did weights and confidences move in this training, and what does the model still find hard?"
    return Page(title, title, question, _answer(history, steps), sections=sections)


def _answer(history: History, steps: int) -> str:
    middle = history.get("train/confidence_p50", ())
    if not middle:
        return f"**{steps:,} steps**; nothing of weights and confidences was recorded."
    first, last = middle[0][1], middle[-1][1]
    return f"**{steps:,} steps**: the median confidence of a batch went from {first:.3g} to {last:.3g}."


def _over_time(name: str, head: str, axis: str, history: History) -> Figure | None:
    marks = [
        _line(label, points, shape, stroke)
        for level, label, shape, stroke in _LEVELS
        if (points := history.get(f"train/{name}_{level}"))
    ]
    if not marks:
        return None
    alt = "; ".join(f"{one.label}: {one.y[0]:.3g} at first, {one.y[-1]:.3g} at last" for one in marks)
    return Figure(
        name,
        head,
        f"{head}. {alt}.",
        Axis("step"),
        Axis(axis),
        marks,
        "Quantiles over the samples of each global batch.",
    )


def _line(label: str, points: Sequence[tuple[int, float]], shape: Shape, stroke: Stroke) -> Marks:
    every = math.ceil(len(points) / _POINTS)
    kept = [*points[::every], *([points[-1]] if (len(points) - 1) % every else [])]
    return Marks(label, [step for step, _ in kept], [value for _, value in kept], shape=shape, stroke=stroke)


def hardest_table(records: Sequence[Mapping[str, Any]], name: str) -> Table | None:
    """The items of a set with the least probability, or the largest loss a token; None where its records have neither."""
    own = [record for record in records if record.get("set", "") == name]
    if own and all("probability" in record for record in own):
        what, values = "probability of the right answer", [float(record["probability"]) for record in own]
        order = sorted(range(len(own)), key=lambda place: values[place])
    elif own and all("nll" in record and record.get("num_tokens") for record in own):
        what, values = "nats a token", [record["nll"] / record["num_tokens"] for record in own]
        order = sorted(range(len(own)), key=lambda place: -values[place])
    else:
        return None
    rows: list[list[Cell]] = [
        [f"`{own[place]['id']}`", Number(values[place], f"{values[place]:.3f}")] for place in order[:_SHOWN]
    ]
    return Table(["item", what], rows, f"`{name}`, {min(_SHOWN, len(own))} of {len(own):,} items")
