"""How the columns of one table are used: which column, or which template over columns, is which part of a form."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bft_ray.data import canonical, choices
from bft_ray.data.content import bare
from bft_ray.data.form_table import KINDS, MISSING_WORDS, Form
from bft_ray.data.template import check_braces, column_of, fill, names_in
from bft_ray.data.values import as_name, is_missing
from bft_ray.errors import BadInput, did_you_mean

_WHOLE = re.compile(r"^(-?[0-9]+)\.0+$")

CHOSEN = "columns"  # name of the form that a user's own columns make
FILL = "Fill it or take the row out."
_MAKE = {
    "completion": canonical.pair,
    "messages": canonical.messages,
    "text": canonical.text,
    "choice": choices.choice,
}


@dataclass(frozen=True)
class Use:
    """How the rows of one table are read.

    Args:
        used: canonical field -> column, or a template over columns.
        unused: columns that are not used, in the table's order.
        columns: what the user said.
        source: dotted name of the source in the config.
    """

    form: Form
    used: Mapping[str, str]
    unused: tuple[str, ...]
    columns: Mapping[str, str]
    source: str = "source"
    _plans: dict[tuple[str, ...], Plan] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def plan(self, names: tuple[str, ...]) -> Plan:
        """What is made of these columns; rows of a table mostly have the same."""
        if names not in self._plans:
            parts = parts_of(self.form, names)
            known = set(map(bare, self.form.known))
            own = {part: column for part, column in parts.items() if part not in ("id", "group")}
            unknown = tuple(name for name in unused_columns(self.form, self.columns, names) if bare(name) not in known)
            self._plans[names] = Plan(own, unknown)
        return self._plans[names]


@dataclass(frozen=True)
class Plan:
    """Part -> column; columns that are not used, and that the form does not know."""

    parts: dict[str, str]
    unknown: tuple[str, ...]


def chosen_form(record: Mapping[str, Any], columns: Mapping[str, str], field: str) -> tuple[Form, dict[str, str]]:
    """What the user's own columns make, and which column is used for which field; one that they do not name has its own name.

    Raises:
        BadInput: they name fields of several forms.
    """
    kind = next(k for k, names in KINDS.items() if any(n in columns for n in names if n not in ("tools", "context")))
    for name in columns:
        if name not in ("id", "group") and name not in KINDS[kind]:
            raise BadInput(f"{field}.columns", name, f"of one form: {', '.join(KINDS[kind])}", "Leave one out.")
    needs = {name: (name,) for name in KINDS[kind] if name not in ("tools", "context", "subject")}
    may = {name: (name,) for name in KINDS[kind] if name not in needs}
    form = Form(CHOSEN, kind, needs, {name: f"{{{name}}}" for name in needs}, _MAKE[kind], may=may)
    used = {name: columns.get(name, name) for name in needs}
    used |= {name: columns.get(name, name) for name in may if name in columns or name in record}
    return form, used


def wanted_parts(use: Use, names: tuple[str, ...]) -> list[str]:
    """The parts that columns of the user's choice make: those that they name, and those that a column has the name of."""
    return [part for part in (*use.form.needs, *use.form.may) if part in use.columns or part in names]


def value_of(column: str, record: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    """The value of a column, or of a template over columns.

    Raises:
        BadInput: no such column, or an empty cell in a template.
    """
    if (found := column_of(column, names)) is not None:
        return record[found]
    if not names_in(column):
        check_braces(column, where)
        raise BadInput(f"{where} {column}", "missing", "given in every row", did_you_mean(column, names) or FILL)
    return fill(column, record, names, where)


def marks_of(use: Use, record: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    """`id` and `group` of a row, as text, where it has them.

    Raises:
        BadInput: a column that the user chose is missing or empty, or holds what is no name.
    """
    marks = {}
    for name in ("id", "group"):
        chosen = use.columns.get(name)
        column = column_of(chosen or name, names)
        if column is None and chosen is not None and names_in(chosen):
            marks[name] = as_name(fill(chosen, record, names, where), f"{where} {name}")
            if marks[name] in ("", *MISSING_WORDS):
                raise BadInput(f"{where} {chosen}", "missing", "given in every row", FILL)
        elif column is not None and not is_missing(record[column]) and str(record[column]).strip():
            value = record[column]
            marks[name] = as_name(value, f"{where} {column}")
        elif name == "group" and chosen is not None:
            raise BadInput(f"{where} {chosen}", "missing", "given in every row", did_you_mean(chosen, names) or FILL)
    if "group" in marks:  # tables write 7 as 7.0 where a cell of the column is or was empty: that is one patient
        marks["group"] = _WHOLE.sub(r"\1", " ".join(marks["group"].split()))
    return marks


@functools.lru_cache(maxsize=1024)
def _named(names: tuple[str, ...]) -> dict[str, str]:
    """Bare name -> column; of several alike the first."""
    return {bare(name): name for name in reversed(names)}


def parts_of(form: Form, names: tuple[str, ...]) -> dict[str, str]:
    """Part -> column, of the parts that are there."""
    found = {}
    for part, spellings in form.spellings.items():
        for spelling in spellings:
            if bare(spelling) in _named(names):
                found[part] = spelling if spelling in names else _named(names)[bare(spelling)]
                break
    return found


def shown_of(form: Form, names: tuple[str, ...]) -> dict[str, str]:
    """Canonical field -> column, or a template over columns, of what is there."""
    parts = parts_of(form, names)
    shown = {}
    for name, template in form.shows.items():
        there = re.sub(r"\{(\w+)\}", lambda m: f"{{{parts[m[1]]}}}" if m[1] in parts else "", template).strip()
        if there:
            shown[name] = there[1:-1] if re.fullmatch(r"\{[^{}]*\}", there) else there
    extra = {name: parts[name] for name in ("context", "subject") if form.kind == "choice" and name in parts}
    return shown | extra | {name: parts[name] for name in ("id", "group") if name in parts}


def unused_columns(form: Form, columns: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, ...]:
    """Columns that nothing is made of."""
    taken = set()
    for shown in columns.values():
        taken |= {column_of(name, names) for name in names_in(shown) or [shown]}
    if form.name == CHOSEN:
        taken |= {part for part in (*form.needs, *form.may, "id", "group") if part not in columns}
    else:
        taken |= set(parts_of(form, names).values())
    taken |= {column.partition(".")[0] for column in taken if column}  # a part of it is used
    return tuple(name for name in names if name not in taken)
