"""A figure as a static picture (SVG): for print, and for readers without script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bft_ray.page.model import Axis, Figure, Marks
from bft_ray.page.ticks import Scale, scale_of

#: distinct for every kind of colour vision (Okabe and Ito, 2008), and light or dark enough to differ without colour
COLOURS = {"main": "#0072B2", "best": "#B34700", "dark": "#222222", "grey": "#767676", "light": "#DADDE1"}
DASHES = {"line": "", "step": "", "dash": "7 4", "dots": "2 3"}
#: cividis in seven steps (Nunez, Anderton and Renslow, 2018): its lightness rises evenly
CIVIDIS = ("#00224E", "#2A3F6D", "#575C6D", "#7C7B78", "#A59C74", "#D2C060", "#FEE838")
_WIDTH = 720.0
_LETTER, _LINE = 6.4, 13.0  # width and height of a letter, pixels
_NAME = 30  # letters in a line of a name
_ROW, _FLAT = 24.0, 300.0  # height of a row of a list; of a plane of two axes of numbers


@dataclass(frozen=True)
class _Frame:
    """The plane of a figure, in pixels."""

    left: float
    right: float
    top: float
    height: float
    row: float
    x: Scale
    y: Scale

    def px(self, value: float) -> float:
        return self.left + self.x.at(value) * (self.right - self.left)

    def py(self, value: float) -> float:
        return self.top + self.height - self.y.at(value) * self.height


def to_svg(figure: Figure) -> str:
    """The picture; its width follows the page."""
    names = [wrapped(name) for name in figure.y.names]
    letters = max((len(line) for name in names for line in name), default=0)
    legend = _legend_rows(figure.marks)
    row = max(_ROW, 6 + _LINE * max((len(name) for name in names), default=1))
    frame = _Frame(
        left=18 + _LETTER * letters if names else 62,
        right=_WIDTH - 16,
        top=8 + 18.0 * len(legend),
        height=row * len(names) if names else _FLAT,
        row=row,
        x=scale_of([*values_of(figure, "x"), *([] if figure.rule is None else [figure.rule])], figure.x.is_log, 7),
        y=Scale(len(names) - 0.5, -0.5, False, ())
        if names
        else scale_of(values_of(figure, "y"), figure.y.is_log, 6, margin=0.06),
    )
    out = [*_legend(legend, frame.left), *_across(figure.x, frame)]
    out += _names(names, frame) if names else _up(figure.y, frame)
    if figure.rule is not None:
        out.append(
            f'<path d="M{frame.px(figure.rule):.1f} {frame.top:.1f}v{frame.height:.1f}" stroke="#222" stroke-width="1.2"/>'
        )
    ends = ends_of(figure)
    for marks in figure.marks:
        out += _marks(marks, frame, ends)
    end = frame.top + frame.height + 42
    if figure.scale:
        out.append(_colour_scale(figure, frame.left, end + 4))
        end += 26
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {end:.0f}" role="img" aria-label="{escape(figure.alt)}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="11.5">'
        f"<title>{escape(figure.title)}</title>{''.join(out)}</svg>"
    )


def wrapped(name: str, width: int = _NAME) -> list[str]:
    """A name in lines of about `width` letters, broken between words."""
    lines = [""]
    for word in name.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def ends_of(figure: Figure) -> tuple[float, float]:
    """The ends of its scale of colours."""
    values = [value for marks in figure.marks for value in marks.values]
    return (min(values), max(values)) if values else (0.0, 1.0)


# ---- axes --------------------------------------------------------------------------------------------------------------


def values_of(figure: Figure, which: str) -> list[float]:
    """All numbers on an axis, "x" or "y", the ends of bars and intervals among them."""
    found = [value for marks in figure.marks for value in getattr(marks, which)]
    return found + ([end for marks in figure.marks for end in (*marks.low, *marks.high)] if which == "x" else [])


def _across(axis: Axis, frame: _Frame) -> list[str]:
    bottom, out = frame.top + frame.height, []
    for tick in frame.x.ticks:
        out.append(f'<path d="M{frame.px(tick):.1f} {frame.top:.1f}v{frame.height:.1f}" stroke="#E8EAED"/>')
        out.append(_text(frame.px(tick), bottom + 16, tick_text(tick), "middle"))
    out.append(f'<path d="M{frame.left:.1f} {bottom:.1f}H{frame.right:.1f}" stroke="#888"/>')
    return [*out, _text((frame.left + frame.right) / 2, bottom + 34, axis.title, "middle")]


def _up(axis: Axis, frame: _Frame) -> list[str]:
    out = []
    for tick in frame.y.ticks:
        out.append(f'<path d="M{frame.left:.1f} {frame.py(tick):.1f}H{frame.right:.1f}" stroke="#E8EAED"/>')
        out.append(_text(frame.left - 6, frame.py(tick) + 4, tick_text(tick), "end"))
    middle = _text(-(frame.top + frame.height / 2), 12, axis.title, "middle")
    return [*out, f'<g transform="rotate(-90)">{middle}</g>']


def _names(names: Sequence[Sequence[str]], frame: _Frame) -> list[str]:
    out = []
    for place, lines in enumerate(names):
        start = frame.py(place) + 4 - _LINE * (len(lines) - 1) / 2
        out += [_text(frame.left - 8, start + _LINE * number, line, "end") for number, line in enumerate(lines)]
    return out


def tick_text(value: float) -> str:
    """A number on an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>' if text else ""


# ---- marks -------------------------------------------------------------------------------------------------------------


def _marks(marks: Marks, frame: _Frame, ends: tuple[float, float]) -> list[str]:
    colour, out = COLOURS[marks.tone], []
    if marks.is_bar:
        thick = marks.height * (frame.row if frame.y.ticks == () else 8.0)
        for low, high, y in zip(marks.low, marks.high, marks.y, strict=True):
            begin, end = frame.px(low), frame.px(high)
            out.append(
                f'<rect x="{begin:.1f}" y="{frame.py(y) - thick / 2:.1f}" width="{max(end - begin, 0.7):.1f}" '
                f'height="{thick:.1f}" fill="{colour}"/>'
            )
        return out
    points = [(frame.px(x), frame.py(y)) for x, y in zip(marks.x, marks.y, strict=True)]
    if marks.stroke != "none" and points:
        out.append(
            f'<path d="{_path(points, marks.stroke)}" fill="none" stroke="{colour}" stroke-width="1.8" '
            f'stroke-dasharray="{DASHES[marks.stroke]}"/>'
        )
    for low, high, y in zip(marks.low, marks.high, marks.y, strict=False):
        if math.isfinite(low) and math.isfinite(high):
            out.append(
                f'<path d="M{frame.px(low):.1f} {frame.py(y):.1f}H{frame.px(high):.1f}" stroke="{colour}" stroke-width="2"/>'
            )
    if marks.values:
        points_of = [
            _point(px, py, marks.shape, _colour(value, ends))
            for (px, py), value in zip(points, marks.values, strict=True)
        ]
        return out + points_of
    shown = "".join(_point(px, py, marks.shape) for px, py in points if math.isfinite(px) and math.isfinite(py))
    return [*out, f"<g {_ink(marks.shape, colour)}>{shown}</g>"] if shown else out


def _ink(shape: str, colour: str) -> str:
    """The attributes of the points of some marks."""
    if shape in ("ring", "cross"):
        return f'fill="{"#fff" if shape == "ring" else "none"}" stroke="{colour}" stroke-width="1.4"'
    return f'fill="{colour}"'


def _path(points: Sequence[tuple[float, float]], stroke: str) -> str:
    """A line; a point that is no number ends it, and the next one begins another."""
    parts, is_begun = [], False
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            is_begun = False
            continue
        parts.append(
            f"M{x:.1f} {y:.1f}" if not is_begun else f"H{x:.1f}V{y:.1f}" if stroke == "step" else f"L{x:.1f} {y:.1f}"
        )
        is_begun = True
    return "".join(parts)


def _point(x: float, y: float, shape: str, colour: str = "") -> str:
    """A point; its ink is that of the group around it, or a colour of its own."""
    own = f' fill="{colour}" stroke="#444"' if colour else ""
    match shape:
        case "dot" | "ring":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if colour else 3.5}"{own}/>'
        case "square":
            return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"{own}/>'
        case "diamond":
            return f'<path d="M{x:.1f} {y - 5.2:.1f}l5.2 5.2l-5.2 5.2l-5.2 -5.2z"{own}/>'
        case "cross":
            return f'<path d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"/>'
    return ""


# ---- legends -----------------------------------------------------------------------------------------------------------


def _legend_rows(all_marks: Sequence[Marks]) -> list[list[Marks]]:
    rows: list[list[Marks]] = []
    for marks in {one.label: one for one in reversed(all_marks) if one.label}.values():
        if rows and sum(len(one.label) + 6 for one in [*rows[-1], marks]) * _LETTER < _WIDTH - 80:
            rows[-1].append(marks)
        else:
            rows.append([marks])
    return [row[::-1] for row in rows[::-1]]


def _legend(rows: Sequence[Sequence[Marks]], left: float) -> list[str]:
    out = []
    for number, row in enumerate(rows):
        x, y = min(left, 62.0), 12 + 18.0 * number
        for marks in row:
            colour = COLOURS[marks.tone]
            if marks.is_bar:
                out.append(f'<rect x="{x:.1f}" y="{y - 5:.1f}" width="20" height="9" fill="{colour}"/>')
            if marks.stroke != "none" or (marks.low and not marks.is_bar):
                dashes = DASHES.get(marks.stroke, "")
                out.append(
                    f'<path d="M{x:.1f} {y - 0.5:.1f}h20" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dashes}"/>'
                )
            if not marks.is_bar:
                out.append(f"<g {_ink(marks.shape, colour)}>{_point(x + 10, y - 0.5, marks.shape)}</g>")
            out.append(_text(x + 25, y + 3.5, marks.label, "start"))
            x += _LETTER * (len(marks.label) + 6)
    return out


def _colour(value: float, ends: tuple[float, float]) -> str:
    low, high = ends
    share = 0.5 if high <= low else (value - low) / (high - low)
    return CIVIDIS[round(min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1))]


def _colour_scale(figure: Figure, left: float, top: float) -> str:
    low, high = ends_of(figure)
    boxes = "".join(
        f'<rect x="{left + 60 + 22 * place:.1f}" y="{top:.1f}" width="22" height="11" fill="{colour}"/>'
        for place, colour in enumerate(CIVIDIS)
    )
    end = left + 60 + 22 * len(CIVIDIS)
    low_text, high_text = tick_text(low), f"{tick_text(high)}   {figure.scale}"
    return boxes + _text(left + 54, top + 10, low_text, "end") + _text(end + 6, top + 10, high_text, "start")
