"""The cells of a table: which are missing, what kind they are, and the ids of its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from bft_ray.errors import BadInput

STARTER = "starter:"  # how the path of bundled data begins
_KINDS = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    list: "a list",
    dict: "an object",
}


def is_missing(value: Any) -> bool:
    """None, or NaN: what a table has where nothing was written."""
    return value is None or (isinstance(value, float) and value != value)


def kind_of(value: Any) -> str:
    """What a value is, in words: errors name it in place of the value."""
    return "missing" if is_missing(value) else _KINDS.get(type(value), type(value).__name__)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a value, however deep; names within it are none."""
    if isinstance(value, str):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for each in inner:
        yield from texts_in(each)


def as_name(value: Any, where: str) -> str:
    """An id or group as text: a blank stands for tabs and line ends. It is printed, and goes into records and files of results.

    Raises:
        BadInput: a list or object, which may hold what must not be printed; characters that steer a terminal.
    """
    if not isinstance(value, str | int | float | Decimal | date | UUID):
        remedy = "Take a column of short texts or numbers, or leave it out."
        raise BadInput(where, kind_of(value), "text or a number", remedy)
    text = re.sub(r"[\t\n\r\v\f]+", " ", str(value))
    if control := re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text):
        what, remedy = f"text with the control character U+{ord(control[0]):04X}", "Remove it."
        raise BadInput(where, what, "text of characters that can be printed", remedy)
    return text


def row_id(given: Any, where: str) -> str:
    """The id of a row: its own, or else its place without folders. All ids of samples and items come from here."""
    if given not in (None, ""):
        return as_name(given, f"{where} id")
    return where if where.startswith(STARTER) else where.rsplit("/", 1)[-1]


class Ids:
    """The ids of a table's rows, each with its place, so that the second one of a name is refused."""

    def __init__(self, column: str = "id", remedy: str = "Make the ids unique."):
        self._column, self._remedy = column, remedy
        self._places: dict[str, str] = {}

    def add(self, name: str, where: str) -> None:
        """Note the id of the row at `where`.

        Raises:
            BadInput: another row has it.
        """
        if name in self._places:
            raise BadInput(f"{where} {self._column}", name, f"but is at {self._places[name]} too", self._remedy)
        self._places[name] = where
