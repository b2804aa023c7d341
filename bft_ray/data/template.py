"""Columns named by a template: `"{Question}\\n\\nContext: {context}"` -> the text of a row."""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping
from typing import Any

from bft_ray.data.canonical import as_text
from bft_ray.data.content import bare
from bft_ray.data.form_table import MISSING_WORDS
from bft_ray.data.values import is_missing, kind_of
from bft_ray.errors import BadInput, enumerate_names


@functools.lru_cache(maxsize=256)
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    # the parser takes `!` and `:` for marks of a format: here they are of the name
    parsed = string.Formatter().parse(template)
    return tuple(
        (before, name and "".join((name, f"!{mark}" if mark else "", f":{rest}" if rest else "")))
        for before, name, rest, mark in parsed
    )


def names_in(template: str) -> list[str]:
    """Columns between braces; none where the text is no template (also where its braces do not match)."""
    try:
        return [name for _, name in _pieces(template) if name]
    except ValueError:
        return []


def check_braces(text: str, where: str) -> None:
    """Raise BadInput where a text that is no column has braces that do not match, and so is no template either."""
    try:
        _pieces(text)
    except ValueError as error:
        remedy = (
            "Double the braces that are text. In a template no column can be named whose name has braces: rename it, or give its "
            "name alone, without a template."
        )
        raise BadInput(where, text, f"a column, or a template whose braces match: {error}", remedy) from None


def column_of(name: str, names: tuple[str, ...]) -> str | None:
    """The column of this name, or else the only one that differs just in case, white space, `-` or `_`."""
    if name in names:
        return name
    alike = [each for each in names if bare(each) == bare(name)]
    return alike[0] if len(alike) == 1 else None


def fill(template: str, record: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    """The text of a row. `\\n` and `\\t` in a template are a line end and a tab, since a shell has no other way to write
    them; doubled braces are braces. Where no column holds anything the text is that: "", or the word for a missing
    value, as of a column without a template. The words around nothing are no question, no answer and no group.

    Raises:
        BadInput: a column that the row has not, or a value that is no text.
    """
    text, cells = [], []
    for before, name in _pieces(template.replace("\\n", "\n").replace("\\t", "\t")):
        text.append(before)
        if not name:
            continue
        column = column_of(name, names)
        if column is None or is_missing(record[column]):
            remedy = "Fill it or remove the row." if column else f"The row has {enumerate_names(names)}."
            raise BadInput(f"{where} {name}", "missing", "given in every row", remedy)
        value = as_text(record[column])
        if value is None:
            remedy = "Write it as the text that the model is to read or to give."
            raise BadInput(f"{where} {column}", kind_of(record[column]), "text, a number, or a list of text", remedy)
        text.append(value)
        cells.append(value.strip())
    if all(cell in ("", *MISSING_WORDS) for cell in cells):
        return next(filter(None, cells), "")
    return "".join(text)
