"""Of which form the rows of a table are, and a row -> its canonical record.

The first form of `bft_ray.data.form_table` that fits decides, unless the user names one (`form`) or the columns
(`columns`). Canonical records have `id` and `group` where given, and

- `prompt` and `completion`, each a text or a list of messages, and `tools` where given,
- `messages`, and `tools` where given,
- `text`,
- or `question`, `choices` (a list of text), `answer` (index), `context` and `subject` where given.

A column that is not used and looks like content (several words, nested values) is refused, never dropped in silence;
with `columns` the user has chosen, and it is only listed.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bft_ray.data import canonical, choices
from bft_ray.data.canonical import Fault
from bft_ray.data.content import bare, looks_like_content
from bft_ray.data.form_table import FIELDS, FORMS, KINDS, LABELS, MISSING_WORDS, Form
from bft_ray.data.template import check_braces, column_of, fill, names_in
from bft_ray.data.values import as_name, is_missing
from bft_ray.errors import BadInput, enumerate_names


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
    _plans: dict[tuple[str, ...], _Plan] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def plan(self, names: tuple[str, ...]) -> _Plan:
        """What is made of these columns; rows of a table mostly have the same."""
        if names not in self._plans:
            parts = _parts(self.form, names)
            known = set(map(bare, self.form.known))
            own = {part: column for part, column in parts.items() if part not in ("id", "group")}
            unused = _unused(self, names)
            self._plans[names] = _Plan(own, unused, tuple(name for name in unused if bare(name) not in known))
        return self._plans[names]


@dataclass(frozen=True)
class _Plan:
    """Part -> column; columns that are not used; those of them that no form knows."""

    parts: dict[str, str]
    unused: tuple[str, ...]
    unknown: tuple[str, ...]


def recognise(
    record: Mapping[str, Any],
    where: str,
    columns: Mapping[str, str] | None = None,
    form: str = "auto",
    more: Sequence[tuple[str, Mapping[str, Any]]] = (),
    field: str = "source",
) -> Use:
    """The form of a table.

    Args:
        record: its first row.
        where: its place, for errors.
        columns: canonical field -> column or template, as the user says.
        form: name of a form, or auto.
        more: further first rows with their places, for what a single row does not show.
        field: dotted name of the source in the config.

    Raises:
        BadInput: an unknown form, columns that fit none, or a column that looks like content and is not used.
    """
    columns = dict(columns or {})
    for target in columns:
        if target not in FIELDS:
            raise BadInput(f"{field}.columns", target, f"among {', '.join(FIELDS)}", _near(target, FIELDS))
    if any(name in columns for names in KINDS.values() for name in names if name not in ("tools", "context")):
        use = _chosen(record, columns, field)
    else:
        found = _find(record, where, form, [each for _, each in more], field)
        use = Use(found, _shown(found, tuple(map(str, record))), (), columns, field)
    names = tuple(map(str, record))
    use = Use(use.form, {**use.used, **columns}, _unused(use, names), columns, field)
    if form == "auto" and use.form.kind == "text" and use.form.name != _CHOSEN:
        _check_labels(use, where)
    for place, each in [(where, record), *more]:
        check_unused(use, each, place)
    return use


def _check_labels(use: Use, where: str) -> None:
    """Refuse a table of texts with their labels: as text alone, the texts were learned, and no label was."""
    label = next((name for name in use.unused if bare(name) in LABELS), None)
    if label is None:
        return
    text = use.used["text"]
    remedy = (
        f"To learn it: --prompt '{{{text}}}' --completion '{{{label}}}' (of `bft-ray init`; in a config, `columns` of the source). "
        f"To learn the text alone: --form {use.form.name} (in a config, `form` of the source)."
    )
    rule = f"but it looks like what is to be answered, and of the form {use.form.name} the column `{text}` alone is learned"
    raise BadInput(f"{where} {label}", "a label", rule, remedy)


def apply(use: Use, record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The canonical record of a row.

    Raises:
        BadInput: a value that is missing or of the wrong kind, named by place and column.
        MissingCell: a cell that holds what a table library writes for a missing value.
    """
    check_unused(use, record, where)
    names = tuple(map(str, record))
    own = use.plan(names).parts
    if use.form.name == _CHOSEN:
        values = {part: _taken(use.columns.get(part, part), record, names, where) for part in _wanted(use, names)}
        own = {part: use.columns.get(part, part) for part in values}
    else:
        values = {part: record[column] for part, column in own.items()}
    for part in use.form.needs:
        if part not in own and part not in values:
            raise BadInput(f"{where} {use.form.needs[part][0]}", "missing", "given in every row", _FILL)
    for part, value in values.items():
        if (isinstance(value, str) and value.strip() in MISSING_WORDS) or is_missing(value):
            if part not in use.form.needs:
                values[part] = None
            elif is_missing(value):
                raise BadInput(f"{where} {own[part]}", "missing", "given in every row", _FILL)
            else:
                raise MissingCell(f"missing {own[part]} (the word {value.strip()})")
    try:
        made = use.form.make(values)
    except Fault as fault:
        column = own.get(fault.part, fault.part)
        raise BadInput(
            f"{where} {column}{fault.inner}", fault.received, fault.rule, _fault_remedy(fault, use)
        ) from None
    row = {**_marks(use, record, names, where), **made}
    for part, value in row.items():
        if _has_nul(value):
            remedy = "Damaged files hold it, and UTF-16 that was read as another encoding: remove it from the text."
            raise BadInput(
                f"{where} {own.get(part, part)}", "text with a NUL character (U+0000)", "without one", remedy
            )
    return row


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(map(_has_nul, inner))


class MissingCell(Exception):
    """A row is left out, and why."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


def check_unused(use: Use, record: Mapping[str, Any], where: str) -> None:
    """Refuse a row with a column that looks like content and is not used, unless the user chose the columns."""
    if use.form.name == _CHOSEN:
        return
    for name in use.plan(tuple(map(str, record))).unknown:
        if looks_like_content(name, record[name]):
            used = ", ".join(dict.fromkeys(n for shown in use.used.values() for n in names_in(shown) or [shown]))
            raise BadInput(
                f"{where} {name}",
                f"a column of the form {use.form.name}, which uses {used}",
                "but it looks like content, and nothing of it would be learned",
                _remedy(use, name),
            )


# --- columns ----------------------------------------------------------------------------------------------

_CHOSEN = "columns"
_FILL = "Fill it or take the row out."
_MAKE = {
    "completion": canonical.pair,
    "messages": canonical.messages,
    "text": canonical.text,
    "choice": choices.choice,
}


def _chosen(record: Mapping[str, Any], columns: dict[str, str], field: str) -> Use:
    """What the user's own columns make; a field that they do not name has its own name."""
    kind = next(k for k, names in KINDS.items() if any(n in columns for n in names if n not in ("tools", "context")))
    for name in columns:
        if name not in ("id", "group") and name not in KINDS[kind]:
            raise BadInput(f"{field}.columns", name, f"of one form: {', '.join(KINDS[kind])}", "Leave one out.")
    needs = {name: (name,) for name in KINDS[kind] if name not in ("tools", "context", "subject")}
    may = {name: (name,) for name in KINDS[kind] if name not in needs}
    form = Form(_CHOSEN, kind, needs, {name: f"{{{name}}}" for name in needs}, _MAKE[kind], may=may)
    used = {name: columns.get(name, name) for name in needs}
    used |= {name: columns.get(name, name) for name in may if name in columns or name in record}
    return Use(form, used, (), columns, field)


def _wanted(use: Use, names: tuple[str, ...]) -> list[str]:
    return [part for part in (*use.form.needs, *use.form.may) if part in use.columns or part in names]


def _taken(column: str, record: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    """The value of a column, or of a template over columns."""
    if (found := column_of(column, names, bare)) is not None:
        return record[found]
    if not names_in(column):
        check_braces(column, where)
        raise BadInput(f"{where} {column}", "missing", "given in every row", _near(column, names) or _FILL)
    return fill(column, record, names, bare, where)


def _marks(use: Use, record: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    """`id` and `group` of a row, as text, where it has them."""
    marks = {}
    for name in ("id", "group"):
        chosen = use.columns.get(name)
        column = column_of(chosen or name, names, bare)
        if column is None and chosen is not None and names_in(chosen):
            marks[name] = as_name(fill(chosen, record, names, bare, where), f"{where} {name}")
            if marks[name] in ("", *MISSING_WORDS):
                raise BadInput(f"{where} {chosen}", "missing", "given in every row", _FILL)
        elif column is not None and not is_missing(record[column]) and str(record[column]).strip():
            value = record[column]
            is_whole = isinstance(value, float) and value.is_integer()  # a table's reader makes 1.0 of 1
            marks[name] = as_name(int(value) if name == "group" and is_whole else value, f"{where} {column}")
            if name == "group":
                marks[name] = " ".join(marks[name].split())
        elif name == "group" and chosen is not None:
            raise BadInput(f"{where} {chosen}", "missing", "given in every row", _near(chosen, names) or _FILL)
    return marks


@functools.lru_cache(maxsize=1024)
def _named(names: tuple[str, ...]) -> dict[str, str]:
    """Bare name -> column; of several alike the first."""
    return {bare(name): name for name in reversed(names)}


def _parts(form: Form, names: tuple[str, ...]) -> dict[str, str]:
    """Part -> column, of the parts that are there."""
    found = {}
    for part, spellings in form.spellings.items():
        for spelling in spellings:
            if bare(spelling) in _named(names):
                found[part] = spelling if spelling in names else _named(names)[bare(spelling)]
                break
    return found


def _shown(form: Form, names: tuple[str, ...]) -> dict[str, str]:
    """Canonical field -> column, or a template over columns, of what is there."""
    parts = _parts(form, names)
    shown = {}
    for name, template in form.shows.items():
        there = re.sub(r"\{(\w+)\}", lambda m: f"{{{parts[m[1]]}}}" if m[1] in parts else "", template).strip()
        if there:
            shown[name] = there[1:-1] if re.fullmatch(r"\{[^{}]*\}", there) else there
    extra = {name: parts[name] for name in ("context", "subject") if form.kind == "choice" and name in parts}
    return shown | extra | {name: parts[name] for name in ("id", "group") if name in parts}


def _unused(use: Use, names: tuple[str, ...]) -> tuple[str, ...]:
    """Columns that nothing is made of."""
    taken = set()
    for shown in use.columns.values():
        taken |= {column_of(name, names, bare) for name in names_in(shown) or [shown]}
    if use.form.name == _CHOSEN:
        taken |= {part for part in (*use.form.needs, *use.form.may, "id", "group") if part not in use.columns}
    else:
        taken |= set(_parts(use.form, names).values())
    taken |= {column.partition(".")[0] for column in taken if column}  # a part of it is used
    return tuple(name for name in names if name not in taken)


def _find(record: Mapping[str, Any], where: str, name: str, more: Sequence[Mapping[str, Any]], field: str) -> Form:
    if name != "auto":
        known = [form.name for form in FORMS]
        if name not in known:
            raise BadInput(f"{field}.form", name, f"auto or one of {', '.join(known)}", _near(name, known))
    rows = [record, *more]
    fitting = [form for form in FORMS if name in ("auto", form.name) and _fits(form, rows, name != "auto")]
    if not fitting:  # texts that are not all texts: the reader names the row
        fitting = [form for form in FORMS if name == "auto" and form.kind == "text" and _fits(form, rows[:1], False)]
    if not fitting:
        rule = f"a row of the form {name}" if name != "auto" else "a row of a known form"
        if any(looks_like_content("", str(column)) or str(column).strip()[-1:] in ("?", ".") for column in record):
            remedy = (
                "Put a line with the names of the columns, such as question,answer, before it. If it is that line, say which to use: "
                f"`bft-ray init --prompt COLUMN --completion COLUMN`, or {field}.columns."
            )
            raise BadInput(where, "under a first line that looks like data", "a row under the names of columns", remedy)
        raise BadInput(where, f"a row of {_columns(record)}", rule, _how(name, field))
    if fitting[0].name == "medmcqa" and fitting[1:2] and fitting[1].name == "medmcqa_from_1":
        remedy = f"Set {field}.form: medmcqa (the hub's copy, from 0) or medmcqa_from_1 (the authors' files)."
        raise BadInput(f"{where} cop", "1 to 3 in its first rows", "but whether it counts from 0 or 1 is open", remedy)
    return fitting[0]


def _columns(record: Mapping[str, Any]) -> str:
    """The names of a row's columns; their number where the names may be cells, as in a table without a line of names."""
    names = [str(column) for column in record]
    if any(map(_is_like_a_cell, names)):
        return f"{len(names)} columns whose names look like cells"
    return enumerate_names(names) or "nothing"


def _is_like_a_cell(name: str) -> bool:
    words = name.split()
    has_digit = any(letter.isdigit() for letter in name)
    return len(name) > 40 or len(words) > 5 or (has_digit and (len(words) > 1 or not name.isidentifier()))


def _fits(form: Form, rows: Sequence[Mapping[str, Any]], is_named: bool) -> bool:
    parts = _parts(form, tuple(map(str, rows[0])))
    if not all(part in parts for part in form.needs):
        return False
    if form.one_of and not any(part in parts for part in form.one_of):
        return False
    if is_named:
        return True
    every = ({part: row.get(column) for part, column in parts.items()} for row in rows)
    return all(form.fits(values) for values in every)


def _how(name: str, field: str) -> str:
    if name != "auto":
        form = next(form for form in FORMS if form.name == name)
        return f"It has the columns {', '.join('/'.join(each) for each in form.needs.values())}."
    forms = "prompt and completion, question and answer, instruction and output, messages, conversations, text, choices"
    return (
        f"Known are {forms}; else name the columns in {field}.columns, for example {{prompt: case, completion: note}}."
    )


def _remedy(use: Use, name: str) -> str:
    fields = [part for part in KINDS[use.form.kind] if part in use.used and part != "tools"]
    shown = {part: use.used[part] for part in fields}
    if "prompt" in shown:
        first = shown["prompt"] if names_in(shown["prompt"]) else f"{{{shown['prompt']}}}"
        shown["prompt"] = f"{first}\\n\\n{{{name}}}"
        as_option = f'`--prompt "{shown["prompt"]}" --completion {shown["completion"]}`, or in the config '
    else:
        as_option = ""
    mapping = ", ".join(f'{part}: "{value}"' for part, value in shown.items())
    without = "name the columns without it there" if "prompt" in shown else "this names the columns without it"
    return f"Use it: {as_option}{use.source}.columns: {{{mapping}}}; or {without}."


def _fault_remedy(fault: Fault, use: Use) -> str:
    """The remedy of a fault, where its kind alone tells one."""
    if fault.remedy:
        return fault.remedy
    if fault.received == "a number":
        return "Write it as text." if fault.inner else _numbers_as_text(use)
    if fault.received in ("a truth value", "bytes", "date", "datetime", "Decimal", "time"):
        return "Write it as the text that the model is to read or to give, such as yes and no, or 2024-11-05."
    if fault.received == "text" and fault.part == "choices":
        return 'Write it as a JSON list, ["a", "b"], or give each option a column of its own: option_a, option_b ...'
    return _FILL if fault.received in ("missing", "empty") else ""


def _numbers_as_text(use: Use) -> str:
    """What helps where a column of prompt or completion holds numbers: a template makes text of them."""
    if use.form.kind != "completion":
        return "Write it as text."
    shown = {part: use.used[part] for part in ("prompt", "completion")}
    made = {part: column if names_in(column) else f"{{{column}}}" for part, column in shown.items()}
    options = " ".join(f"--{part} '{template}'" for part, template in made.items())
    return f"Write it as text, or let a template do it: {options} (of `bft-ray init`; in a config, `columns` of the source)."


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [each for each in known if each != name], 1)
    return f"Did you mean `{near[0]}`?" if near else ""
