"""Columns within columns: `data.question` of {"data": {"question": ...}}, `answers.text.0` of an object with a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bft_ray.data.template import names_in

_NOTHING = object()


def dotted_in(columns: Mapping[str, str]) -> list[str]:
    """Names with a dot that columns, or templates over columns, name."""
    named = [name for column in columns.values() for name in names_in(column) or [column]]
    return [name for name in dict.fromkeys(named) if "." in name.strip(".")]


def with_nested(
    rows: Iterable[tuple[str, dict[str, Any]]], dotted: Iterable[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) with a further column for each dotted name that is no column itself and has a value there, missing ones
    included.
    """
    dotted = list(dotted)
    for where, row in rows:
        found = {name: _value(row, name) for name in dotted if name not in row}
        yield where, row | {name: value for name, value in found.items() if value is not _NOTHING}


def _value(row: Mapping[str, Any], name: str) -> Any:
    place: Any = row
    for key in name.split("."):
        if isinstance(place, Mapping) and key in place:
            place = place[key]
        elif isinstance(place, list) and key.isdigit() and int(key) < len(place):
            place = place[int(key)]
        else:
            return _NOTHING
    return place
