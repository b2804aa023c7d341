"""A page as one HTML file that needs nothing beside it: it reads without script, in print, and in black and white."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib import resources

from bft_ray.page.live import library, to_json
from bft_ray.page.model import Cell, Code, Columns, Figure, Finding, Number, Page, Part, Plot, Section, Span, Table
from bft_ray.page.svg import to_svg


def to_html(page: Page, live: bool = True) -> str:
    """The page. Figures are static pictures; where script runs, plotly.js puts live ones in their places on a screen.

    Args:
        live: False: only static ones, in a hundredth of the size.
    """
    body = [
        f'<header><p class="above">{_inline(page.above)}</p><h1>{_inline(page.question)}</h1>',
        f'<p class="answer">{_inline(page.answer)}</p>{_facts(page.facts)}</header>',
        '<nav aria-label="parts of this page"><ul>',
        *(f'<li><a href="#{part.name}">{html.escape(part.title)}</a></li>' for part in page.sections),
        "</ul></nav><main>",
        *map(_section, page.sections),
        "</main>",
    ]
    style, script = (_file(name) for name in ("page.css", "page.js"))
    scripts = ""
    if live and (figures := page.figures):
        scripts = (
            f'<script type="application/json" id="figures">{to_json(figures)}</script>'
            f'<script type="text/plain" id="plotly">{library()}</script><script>{script}</script>'
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(page.title)}</title><style>{style}</style></head>\n<body>{''.join(body)}{scripts}</body></html>\n"
    )


def _file(name: str) -> str:
    return (resources.files("bft_ray.page") / name).read_text(encoding="utf-8")


def _inline(text: str) -> str:
    """A little Markdown: **bold** and `code`."""
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)


def _cell(cell: Cell) -> str:
    if isinstance(cell, Number):
        return f'<data value="{cell.value!r}">{html.escape(cell.text)}</data>'
    if isinstance(cell, Span):
        return f"[{_cell(cell.low)}, {_cell(cell.high)}]"
    return _inline(cell)


def _facts(facts: Sequence[tuple[str, Cell, str]]) -> str:
    if not facts:
        return ""
    boxes = (
        f"<div><dt>{_inline(name)}</dt><dd>{_cell(value)}<small>{_inline(word)}</small></dd></div>"
        for name, value, word in facts
    )
    return f'<dl class="facts">{"".join(boxes)}</dl>'


def _section(section: Section) -> str:
    return f'<section id="{section.name}"><h2>{html.escape(section.title)}</h2>{"".join(map(_part, section.parts))}</section>'


def _part(part: Part) -> str:
    match part:
        case str():
            return f"<p>{_inline(part)}</p>"
        case Table():
            return _table(part)
        case Figure() | Plot():
            return _figure(part)
        case Finding():
            remedy = f'<p class="remedy"><b>What to do:</b> {_inline(part.remedy)}</p>'
            return f'<div class="finding"><h3>{_inline(part.title)}</h3><p>{_inline(part.text)}</p>{remedy}</div>'
        case Code():
            return _folded(part.title, f"<pre>{html.escape(part.text)}</pre>", part.is_open)
        case Columns():
            boxes = (
                f"<div><h4>{html.escape(title)}</h4><pre>{html.escape(text)}</pre></div>" for title, text in part.texts
            )
            return f'<div class="columns">{"".join(boxes)}</div>'
    return f"<ul>{''.join(f'<li>{_inline(one)}</li>' for one in part)}</ul>"


def _folded(title: str, content: str, is_open: bool) -> str:
    if is_open:
        return (f"<h3>{_inline(title)}</h3>" if title else "") + content
    return f"<details><summary>{_inline(title)}</summary>{content}</details>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in table.head)
    rows = []
    for place, row in enumerate(table.rows):
        first, *rest = map(_cell, row)
        cells = f'<th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest)
        rows.append(f"<tr{' class=strong' if place in table.strong else ''}>{cells}</tr>")
    content = f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _folded(table.title, content, table.is_open)


def _figure(figure: Figure | Plot) -> str:
    text = f"<p>{_inline(figure.text)}</p>" if figure.text else ""
    return (
        f'<figure id="figure-{figure.name}"><figcaption><h3>{_inline(figure.title)}</h3>{text}</figcaption>'
        f'<div class="static">{to_svg(figure) if isinstance(figure, Figure) else ""}</div>'
        f'<div class="live" data-figure="{figure.name}" role="img" aria-label="{html.escape(figure.alt)}"></div></figure>'
    )
