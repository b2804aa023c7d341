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

from collections.abc import Mapping, Sequence
from typing import Any

from bft_ray.data.advice import columns_text, how_to_fit, remedy_of_fault, remedy_of_unused
from bft_ray.data.canonical import Fault
from bft_ray.data.content import bare, looks_like_content
from bft_ray.data.form_table import FIELDS, FORMS, KINDS, LABELS, MISSING_WORDS, Form
from bft_ray.data.template import names_in
from bft_ray.data.use import (
    CHOSEN,
    FILL,
    Use,
    chosen_form,
    marks_of,
    parts_of,
    shown_of,
    unused_columns,
    value_of,
    wanted_parts,
)
from bft_ray.data.values import is_missing, texts_in
from bft_ray.errors import BadInput, did_you_mean


class MissingCell(Exception):
    """A row is left out, and why."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


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
    columns, names = dict(columns or {}), tuple(map(str, record))
    for target in columns:
        if target not in FIELDS:
            raise BadInput(f"{field}.columns", target, f"among {', '.join(FIELDS)}", did_you_mean(target, FIELDS))
    if any(name in columns for names in KINDS.values() for name in names if name not in ("tools", "context")):
        found, used = chosen_form(record, columns, field)
    else:
        found = _find(record, where, form, [each for _, each in more], field)
        used = shown_of(found, names)
    use = Use(found, {**used, **columns}, unused_columns(found, columns, names), columns, field)
    if form == "auto" and use.form.kind == "text" and use.form.name != CHOSEN:
        _check_labels(use, where)
    for place, each in [(where, record), *more]:
        check_unused(use, each, place)
    return use


def apply(use: Use, record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The canonical record of a row.

    Raises:
        BadInput: a value that is missing or of the wrong kind, named by place and column.
        MissingCell: a cell that holds what a table library writes for a missing value.
    """
    check_unused(use, record, where)
    names = tuple(map(str, record))
    own = use.plan(names).parts
    if use.form.name == CHOSEN:
        values = {
            part: value_of(use.columns.get(part, part), record, names, where) for part in wanted_parts(use, names)
        }
        own = {part: use.columns.get(part, part) for part in values}
    else:
        values = {part: record[column] for part, column in own.items()}
    for part in use.form.needs:
        if part not in own and part not in values:
            raise BadInput(f"{where} {use.form.needs[part][0]}", "missing", "given in every row", FILL)
    for part, value in values.items():
        if (isinstance(value, str) and value.strip() in MISSING_WORDS) or is_missing(value):
            if part not in use.form.needs:
                values[part] = None
            elif is_missing(value):
                raise BadInput(f"{where} {own[part]}", "missing", "given in every row", FILL)
            else:
                raise MissingCell(f"missing {own[part]} (the word {value.strip()})")
    try:
        made = use.form.make(values)
    except Fault as fault:
        column = own.get(fault.part, fault.part)
        raise BadInput(
            f"{where} {column}{fault.inner}", fault.received, fault.rule, remedy_of_fault(fault, use)
        ) from None
    row = {**marks_of(use, record, names, where), **made}
    for part, value in row.items():
        if any("\0" in text for text in texts_in(value)):
            remedy = "Damaged files hold it, and UTF-16 that was read as another encoding: remove it from the text."
            raise BadInput(
                f"{where} {own.get(part, part)}", "text with a NUL character (U+0000)", "without one", remedy
            )
    return row


def check_unused(use: Use, record: Mapping[str, Any], where: str) -> None:
    """Refuse a row with a column that looks like content and is not used, unless the user chose the columns."""
    if use.form.name == CHOSEN:
        return
    for name in use.plan(tuple(map(str, record))).unknown:
        if looks_like_content(name, record[name]):
            used = ", ".join(dict.fromkeys(n for shown in use.used.values() for n in names_in(shown) or [shown]))
            raise BadInput(
                f"{where} {name}",
                f"a column of the form {use.form.name}, which uses {used}",
                "but it looks like content, and nothing of it would be learned",
                remedy_of_unused(use, name),
            )


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


def _find(record: Mapping[str, Any], where: str, name: str, more: Sequence[Mapping[str, Any]], field: str) -> Form:
    if name != "auto":
        known = [form.name for form in FORMS]
        if name not in known:
            raise BadInput(f"{field}.form", name, f"auto or one of {', '.join(known)}", did_you_mean(name, known))
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
        raise BadInput(where, f"a row of {columns_text(record)}", rule, how_to_fit(name, field, record))
    if fitting[0].name == "medmcqa" and fitting[1:2] and fitting[1].name == "medmcqa_from_1":
        remedy = f"Set {field}.form: medmcqa (the hub's copy, from 0) or medmcqa_from_1 (the authors' files)."
        raise BadInput(f"{where} cop", "1 to 3 in its first rows", "but whether it counts from 0 or 1 is open", remedy)
    return fitting[0]


def _fits(form: Form, rows: Sequence[Mapping[str, Any]], is_named: bool) -> bool:
    parts = parts_of(form, tuple(map(str, rows[0])))
    if not all(part in parts for part in form.needs):
        return False
    if form.one_of and not any(part in parts for part in form.one_of):
        return False
    if is_named:
        return True
    return form.fits([{part: row.get(column) for part, column in parts.items()} for row in rows])
