"""What a page consists of, as plain data. Who computes a number writes it here once; `bft_ray.page.html` only renders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar


def shown_time(seconds: float | None = None) -> str:
    """A moment, in seconds since 1970, as pages show it: day, hour and minute of this machine's time zone; None: now."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@dataclass(frozen=True)
class Number:
    """A number and how it is shown; the page keeps the exact value beside the text."""

    value: float
    text: str

    @classmethod
    def of(cls, value: float, form: str = "") -> Number:
        """A number in a form of Python's format language, such as `.3f`."""
        return cls(value, f"{value:{form}}")


@dataclass(frozen=True)
class Span:
    """Two numbers, from low to high."""

    low: Number
    high: Number

    @property
    def text(self) -> str:
        """`[low, high]`."""
        return f"[{self.low.text}, {self.high.text}]"


Cell = str | Number | Span


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; "" for none."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def as_text(rows: Sequence[Sequence[str]], num_left: int | None = None) -> str:
    """Rows in columns for a terminal.

    Args:
        num_left: so many columns begin at their left, the others end at their right; None: all begin at their left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) if num_left is None else num_left
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        head: of the columns.
        title: above it; "" none.
        is_open: False: behind a line that opens it.
        strong: places of the rows that stand out.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    is_open: bool = True
    strong: Sequence[int] = ()

    def texts(self) -> list[list[str]]:
        """Head and rows, as they are read."""
        rows = ([cell if isinstance(cell, str) else cell.text for cell in row] for row in self.rows)
        return [list(self.head), *rows]


#: how marks look: their shape tells them apart without colour
Shape = Literal["dot", "ring", "square", "diamond", "cross", "none"]
Stroke = Literal["none", "line", "step", "dash", "dots"]
Tone = Literal["main", "best", "dark", "grey", "light"]


@dataclass(frozen=True)
class Marks:
    """Points, a line through them, or horizontal bars.

    Args:
        label: in the legend; "" none.
        x, y: places; y of a list is a place in it.
        texts: what a point says under the pointer; () none.
        low, high: ends of a horizontal interval through each point, or of a bar.
        is_bar: bars from low to high, without a point.
        height: of a bar, in places of the list.
        values: of a scale of colours; () none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    shape: Shape = "dot"
    stroke: Stroke = "none"
    tone: Tone = "main"
    texts: Sequence[str] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_bar: bool = False
    height: float = 0.6
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Axis:
    """An axis.

    Args:
        is_log: logarithmic.
        names: of the places 0, 1, 2 ... of a list, from the top; () numbers.
    """

    title: str = ""
    is_log: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A figure.

    Args:
        name: in the page, unique.
        title: what it shows, in a few words.
        alt: what is to be seen, for who does not see it.
        text: how to read it; "" nothing.
        rule: where a vertical line is; None: nowhere.
        scale: what the scale of colours shows; "" none.
    """

    name: str
    title: str
    alt: str
    x: Axis
    y: Axis
    marks: Sequence[Marks]
    text: str = ""
    rule: float | None = None
    scale: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure of another library for plotly.js; `text` also says where its numbers stand without script.

    Args:
        tree: its data and layout, plain.
    """

    name: str
    title: str
    alt: str
    text: str
    tree: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """Something to look at, with its remedy."""

    title: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Code:
    """Commands or a config, as they are typed."""

    text: str
    title: str = ""
    is_open: bool = True


@dataclass(frozen=True)
class Columns:
    """Texts side by side, (title, text) each, with their line breaks."""

    texts: Sequence[tuple[str, str]]


#: a paragraph in a little Markdown (**bold**, `code`), or a list of them
Part = str | Sequence[str] | Table | Figure | Plot | Finding | Code | Columns


Content = TypeVar("Content")


def present(*parts: Content | None) -> list[Content]:
    """Those that are not None: a figure or a section without data is none."""
    return [part for part in parts if part is not None]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: in links, unique.
        parts: from top to bottom.
    """

    name: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        title: of the window.
        above: a line above the question.
        question, answer: a sentence each, little Markdown.
        facts: (what, value, a word on it) of the few numbers at the top.
    """

    title: str
    above: str
    question: str
    answer: str
    facts: Sequence[tuple[str, Cell, str]] = ()
    sections: Sequence[Section] = ()

    @property
    def figures(self) -> list[Figure | Plot]:
        """All figures, from top to bottom."""
        return [part for section in self.sections for part in section.parts if isinstance(part, (Figure, Plot))]
