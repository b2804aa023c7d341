"""A figure for plotly.js: the same marks, with hover and zoom."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Literal

from bft_ray.page.model import Figure, Marks, Plot
from bft_ray.page.svg import CIVIDIS, COLOURS, ends_of, tick_text, values_of, wrapped
from bft_ray.page.ticks import scale_of

_SHAPES = {"dot": "circle", "ring": "circle-open", "square": "square", "diamond": "diamond", "cross": "x-thin-open"}
_STROKES = {"line": "solid", "step": "solid", "dash": "dash", "dots": "dot"}
_ROW, _FLAT = 30, 380  # pixels


@cache
def library() -> str:
    """plotly.js as the installed package has it (MIT licence), gzipped, as base64: a third of its size."""
    content = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def colour_scale() -> list[list[Any]]:
    """The scale of colours, from the lowest value to the highest."""
    return [[place / (len(CIVIDIS) - 1), one] for place, one in enumerate(CIVIDIS)]


def to_json(figures: Sequence[Figure | Plot]) -> str:
    """Name -> data and layout, as JSON that may stand in a page."""
    tree = {figure.name: to_tree(figure) for figure in figures}
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def to_tree(figure: Figure | Plot) -> dict[str, Any]:
    """Data and layout of a figure for plotly.js, as plain values."""
    return dict(figure.tree) if isinstance(figure, Plot) else {"data": _data(figure), "layout": _layout(figure)}


def _data(figure: Figure) -> list[dict[str, Any]]:
    seen: set[str] = set()
    traces = []
    for marks in figure.marks:
        trace = _bars(marks) if marks.is_bar else _points(figure, marks)
        trace |= {"name": marks.label, "legendgroup": marks.label or None}
        trace["showlegend"] = bool(marks.label) and marks.label not in seen
        seen.add(marks.label)
        traces.append({key: value for key, value in trace.items() if value is not None})
    return traces


def _bars(marks: Marks) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "base": _plain(marks.low),
        "x": [high - low for low, high in zip(marks.low, marks.high, strict=True)],
        "y": list(marks.y),
        "width": marks.height,
        "marker": {"color": COLOURS[marks.tone]},
        **_hover(marks),
    }


def _points(figure: Figure, marks: Marks) -> dict[str, Any]:
    has_line, has_points = marks.stroke != "none", marks.shape != "none"
    colour = COLOURS[marks.tone]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "+".join(["lines"] * has_line + ["markers"] * has_points) or "none",
        "x": _plain(marks.x),
        "y": _plain(marks.y),
        "marker": {"color": colour, "size": 9, "symbol": _SHAPES.get(marks.shape, "circle"), "line": {"width": 1.6}},
        **_hover(marks),
    }
    if marks.shape not in ("ring", "cross"):
        del trace["marker"]["line"]
    if has_line:
        shape = "hv" if marks.stroke == "step" else "linear"
        trace["line"] = {"color": colour, "width": 2, "dash": _STROKES[marks.stroke], "shape": shape}
    if marks.low:
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": _plain([high - x for high, x in zip(marks.high, marks.x, strict=True)]),
            "arrayminus": _plain([x - low for low, x in zip(marks.low, marks.x, strict=True)]),
            "width": 0,
            "thickness": 2,
            "color": colour,
        }
    if marks.values:
        low, high = ends_of(figure)
        bar = {"title": {"text": figure.scale, "side": "right"}, "thickness": 12}
        trace["marker"] |= {
            "color": list(marks.values),
            "cmin": low,
            "cmax": high,
            "colorscale": colour_scale(),
            "colorbar": bar,
        }
        trace["marker"] |= {"size": 13, "line": {"width": 1, "color": "#444"}}
    return trace


def _hover(marks: Marks) -> dict[str, Any]:
    if not marks.texts:
        return {"hoverinfo": "skip"}
    return {"text": list(map(escape, marks.texts)), "hovertemplate": "%{text}<extra></extra>", "textposition": "none"}


def _plain(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _layout(figure: Figure) -> dict[str, Any]:
    rows = sum(max(1, len(wrapped(name))) for name in figure.y.names)
    labels = {marks.label for marks in figure.marks if marks.label}
    layout: dict[str, Any] = {
        "height": (max(_ROW * len(figure.y.names), 22 * rows) if figure.y.names else _FLAT - 110) + 110,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 12.5, "color": "#1d2733"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"align": "left", "bgcolor": "#fff", "bordercolor": "#888"},
        "showlegend": bool(labels),
        "legend": {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "barmode": "overlay",
        "xaxis": _axis(figure, "x"),
        "yaxis": _axis(figure, "y"),
    }
    if figure.rule is not None:
        line = {"color": "#222", "width": 1.4}
        ends = {"x0": figure.rule, "x1": figure.rule, "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] = [{"type": "line", "line": line, "layer": "below", **ends}]
    return layout


def _axis(figure: Figure, which: Literal["x", "y"]) -> dict[str, Any]:
    axis = figure.x if which == "x" else figure.y
    found: dict[str, Any] = {
        "title": {"text": axis.title, "standoff": 8},
        "automargin": True,
        "gridcolor": "#E8EAED",
        "zeroline": False,
        "linecolor": "#888",
        "type": "log" if axis.is_log else "linear",
    }
    if axis.is_log:  # plotly's own numbers there are powers of ten with bare digits between
        ticks = scale_of(values_of(figure, which), True, 7).ticks
        found |= {"tickvals": list(ticks), "ticktext": [tick_text(tick) for tick in ticks]}
    if axis.names:
        found |= {
            "tickvals": list(range(len(axis.names))),
            "ticktext": ["<br>".join(map(escape, wrapped(name))) for name in axis.names],
            "range": [len(axis.names) - 0.5, -0.5],
            "showgrid": False,
            "title": {"text": ""},
            "fixedrange": True,
        }
    return found
