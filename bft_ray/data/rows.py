"""Rows of a source, checked and named: JSONL, JSON, CSV, Parquet, a saved `datasets` folder or a hub id.

A row has one of three forms; the first row decides for its source:

- `prompt` and `completion`, each a text or a list of messages,
- `messages`: a list of {role, content},
- `text`.

Nothing is passed over in silence. A broken line, a missing field or a wrong type aborts and names the place
(`file.jsonl:12`, lines from 1; `file.parquet[11]`, rows from 0). An empty completion comes back as a `BadRow`
for the caller to count. Errors never quote the row's text.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bft_ray.config import SourceConfig
from bft_ray.data.tables import STARTER, is_missing, kind_of, read_table, resolve_path
from bft_ray.errors import BadInput

__all__ = ["FIELDS", "BadRow", "Row", "read_rows", "read_table", "resolve_path"]

FORMS = (("prompt", "completion"), ("messages",), ("text",))
FIELDS = ("id", *itertools.chain(*FORMS))


@dataclass(frozen=True)
class Row:
    """A row that passed the checks; exactly one of the three forms is filled."""

    id: str
    where: str
    prompt: str | list[dict] | None = None
    completion: str | list[dict] | None = None
    messages: list[dict] | None = None
    text: str | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, and why."""

    where: str
    reason: str


def read_rows(source: SourceConfig, field: str = "source") -> Iterator[Row | BadRow]:
    """The rows of a source, in file order.

    The id is the `id` column as text; without one, the place (`train.jsonl:12`).

    Args:
        field: dotted name of the source in the config, for errors.

    Raises:
        BadInput: no such file, unreadable text, unknown form, missing field, wrong type, or an id given
            twice.
    """
    for target in source.columns:
        if target not in FIELDS:
            near = difflib.get_close_matches(target, FIELDS, 1)
            hint = f"Did you mean `{near[0]}`?" if near else ""
            raise BadInput(f"{field}.columns", target, f"among {', '.join(FIELDS)}", hint)
    form: tuple[str, ...] = ()
    seen: dict[str, str] = {}
    for where, record in read_table(source.path, source.split, source.name, source.revision, source.limit, field):
        form = form or _form(record, source, where, field)
        row = _row(where, record, form, source)
        if isinstance(row, Row):
            if row.id in seen:
                remedy = "Make the ids unique, or leave the column out: the place then serves as id."
                raise BadInput(f"{where} id", row.id, f"but stands at {seen[row.id]} too", remedy)
            seen[row.id] = where
        yield row


def _form(record: dict, source: SourceConfig, where: str, field: str) -> tuple[str, ...]:
    """The form of a source, from its first row; `columns` has the first say."""
    for form in FORMS:
        if any(name in source.columns for name in form):
            return form
    for form in FORMS:
        if all(name in record for name in form):
            return form
    raise BadInput(
        where,
        f"a row of {', '.join(map(str, record)) or 'nothing'}",
        "a row of prompt and completion, of messages, or of text",
        f"Name the columns in {field}.columns, for example {{prompt: question, completion: answer}}.",
    )


def _row(where: str, record: dict, form: tuple[str, ...], source: SourceConfig) -> Row | BadRow:
    values = {name: _value(where, record, name, source) for name in form}
    given = record.get(source.columns.get("id", "id"))
    short = where.rsplit("/", 1)[-1] if not where.startswith(STARTER) else where
    row = Row(id=short if is_missing(given) else str(given), where=where, **values)
    if form == ("text",):
        return row if values["text"].strip() else BadRow(where, "empty text")
    taught = values[form[-1]]
    if isinstance(taught, str):
        return row if taught.strip() else BadRow(where, "empty completion")
    answers = [turn for turn in taught if turn["role"] == "assistant"]
    if not answers:
        return BadRow(where, "no assistant turn")
    has_content = any((turn.get("content") or "").strip() or turn.get("tool_calls") for turn in answers)
    return row if has_content else BadRow(where, "empty completion")


def _value(where: str, record: dict, name: str, source: SourceConfig) -> Any:
    column = source.columns.get(name, name)
    value = record.get(column)
    if is_missing(value):
        raise BadInput(f"{where} {column}", "missing", "given in every row", "Fill it or take the row out.")
    if isinstance(value, list) and name in ("prompt", "completion", "messages"):
        for index, turn in enumerate(value):
            _check_turn(f"{where} {column}.{index}", turn)
        return value
    if isinstance(value, str) and name != "messages":
        return value
    kinds = {"text": "text", "messages": "a list of messages"}
    raise BadInput(f"{where} {column}", kind_of(value), kinds.get(name, "text or a list of messages"))


def _check_turn(place: str, turn: Any) -> None:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise BadInput(place, kind_of(turn), "an object of role and content")
    content = turn.get("content")
    if not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
        raise BadInput(f"{place}.content", kind_of(content), "text")
