"""Rows of a source, checked and named: JSON Lines, JSON, CSV, Parquet, a saved `datasets` folder or a hub id.

The first rows decide of which form of `bft_ray.data.forms` a source is. A row is then canonical: `prompt` and
`completion`, `messages` or `text`; or, for a file of choices, `question`, `choices` and `answer` (see `read_choices`).

Nothing is passed over in silence. A broken line, a missing field or a wrong type aborts and names the place
(`file.jsonl:12`, lines from 1; `file.parquet[11]`, rows from 0). An empty completion comes back as a `BadRow`
for the caller to count. Errors never quote the row's text.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import regex

from bft_ray.config import SourceConfig
from bft_ray.config.tasks import NamesTask, RowsTask
from bft_ray.data.choices import BY_INDEX
from bft_ray.data.form_table import FIELDS
from bft_ray.data.forms import MissingCell, apply, recognise
from bft_ray.data.nested import dotted_in, with_nested
from bft_ray.data.record import BadRow, ChoiceRow, Row, turns_of
from bft_ray.data.tables import read_table, resolve_path
from bft_ray.data.use import Use
from bft_ray.data.values import Ids, row_id
from bft_ray.data.wrong import with_wrong
from bft_ray.errors import BadInput

__all__ = [
    "FIELDS", "BadRow", "ChoiceRow", "Row", "asks_nothing", "canonical_rows", "choice_rows", "look", "question_key", "read_choices",
    "read_rows", "read_table", "resolve_path", "row_key", "source_of", "text_key",
]  # fmt: skip

NOT_TAUGHT = "only assistant turns of weight 0"
_BEFORE_MARKS = re.compile(r" ([?!.,:;])")
#: what Unicode says is drawn as nothing, format characters, and control characters but white space
_UNSEEN = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}]|(?!\s)\p{Cc}")
_BLANK = "\u2800"  # the cell of Braille without a dot
_RARE = 1e-3  # chance that no index of a file is 0, below which they seem to count from 1: 25 rows of four options
NUM_LOOKED_AT = 200  # first rows, which decide the form


def source_of(task: RowsTask | NamesTask) -> SourceConfig:
    """What a task is measured on, as a source."""
    fields = ("path", "split", "config_name", "revision", "limit", "form", "columns", "wrong")
    return SourceConfig(**{name: getattr(task, name) for name in fields if hasattr(task, name)})


def look(source: SourceConfig, field: str = "source") -> Use | None:
    """How the rows of a source are read, from its first ones; None where it has no rows. Raises as `read_rows`."""
    return _looked_at(source, field)[0]


def read_rows(source: SourceConfig, field: str = "source") -> Iterator[Row | BadRow]:
    """The rows of a source to train on or to measure likelihood with, in file order.

    The id is the `id` column as text; without one, the place (`train.jsonl:12`).

    Args:
        field: dotted name of the source in the config, for errors.

    Raises:
        BadInput: no such file, unreadable text, unknown form, a column that looks like content and is not used, missing
            field, wrong type, an id given twice, a file of choices, or wrong answers asked for where none can be made.
    """
    rows = canonical_rows(source, field, _refuse_choices)
    read = (record if isinstance(record, BadRow) else _row(where, record) for where, record in rows)
    yield from with_wrong(read, source.wrong, field)


def read_choices(source: SourceConfig, field: str = "source") -> Iterator[ChoiceRow]:
    """The questions of a multiple-choice set, in file order.

    Raises:
        BadInput: as `read_rows`; a file of another kind, an empty cell, or after the last row indices that seem to count
            from 1.
    """
    for row in choice_rows(source, field, _refuse_all_but_choices):
        if isinstance(row, BadRow):
            raise BadInput(row.where, row.reason, "a row with a question, choices and an answer", "Remove the row.")
        yield row


def choice_rows(source: SourceConfig, field: str, check: Any = None) -> Iterator[ChoiceRow | BadRow]:
    """The same with rows that have an empty cell; `check` as for `canonical_rows`."""
    by_index: list[ChoiceRow] = []
    for where, record in canonical_rows(source, field, check):
        if isinstance(record, BadRow):
            yield record
            continue
        is_by_index = record.pop(BY_INDEX, False)
        own = {"id": row_id(record.get("id"), where), **_different(record, where)}
        row = ChoiceRow(where=where, **record | own)
        by_index += [row] if is_by_index else []
        yield row
    _check_indices(by_index, source, field)


def _different(record: dict[str, Any], where: str) -> dict[str, Any]:
    """Choices and answer with each choice once: the same one twice would have two scores, one of them wrong."""
    choices = tuple(dict.fromkeys(record["choices"]))
    if len(choices) < 2:
        rule, remedy = "at least two different choices", "Mend or remove the row."
        raise BadInput(where, "the same choice in each place", rule, remedy)
    return {"choices": choices, "answer": choices.index(record["choices"][record["answer"]])}


def _check_indices(rows: list[ChoiceRow], source: SourceConfig, field: str) -> None:
    """Refuse a file none of whose indices is 0, where chance hardly does that: from 1 each answer would be off by one. An
    index of n for n options is refused in its row.
    """
    chance = math.prod(1 - 1 / len(row.choices) for row in rows)  # where each option is right equally often
    if chance < _RARE and all(row.answer > 0 for row in rows):
        raise BadInput(
            f"{field}.path",
            source.path,
            f"a file whose indices of right options count from 0; of its {len(rows)} indices none is 0, as if they counted from 1",
            "Subtract 1 from each; or where the first option is really never right, write letters (A for the first option).",
        )


def canonical_rows(
    source: SourceConfig, field: str, check: Any = None
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """(place, canonical record) of each row; `check(use, source, where, field)` may refuse a form."""
    use, rows = _looked_at(source, field)
    ids = Ids(remedy="Make the ids unique, or leave the column out: the place then serves as id.")
    is_first = True
    for where, raw in rows:
        assert use is not None
        if is_first and check is not None:
            check(use, source, where, field)
        is_first = False
        try:
            record = apply(use, raw, where)
        except MissingCell as missing:
            yield where, BadRow(where, missing.reason)
            continue
        own = row_id(record.get("id"), where)
        ids.add(own, where)
        yield where, record


def question_key(row: Row | ChoiceRow) -> str:
    """What is asked, as a key that two spellings of one question share: 32 hexadecimal digits.

    Unicode's caseless match under compatibility (NFKD and case folding, as its standard has it in section 3.13), since a
    question copied from a PDF or typed on another system differs in ligatures, full width and kinds of space, which NFC
    would leave apart; then each run of white space is one blank, and none is at the ends.
    Options of a choice and what else is not asked play no part in it. Nor do the system's and the developer's turns of a
    conversation, which say how to answer: under another system message it is the same question.
    """
    if isinstance(row, ChoiceRow):
        asked: Any = [row.context, row.question]
    elif row.text is not None:
        asked = row.text
    else:
        given = row.prompt if row.prompt is not None else row.messages or []
        asked = given if isinstance(given, str) else [turn["content"] for turn in _asked(given)]
    return text_key(asked)


def asks_nothing(row: Row) -> bool:
    """Whether a row of prompt and completion has nothing but white space to ask, as where the cells of its template are empty."""
    if row.prompt is None:
        return False
    return not any(str(turn.get("content") or "").strip() for turn in turns_of(row.prompt, "user"))


def row_key(row: Row | ChoiceRow) -> str:
    """The same for the whole row, with its answers, in any form; the options may be in any order."""
    if isinstance(row, ChoiceRow):
        return text_key([row.context, row.question, sorted(map(text_key, row.choices))])
    if row.text is not None:
        return text_key(row.text)
    turns = row.messages or [*turns_of(row.prompt, "user"), *turns_of(row.completion, "assistant")]
    return text_key([{name: value for name, value in turn.items() if name != "weight" and value} for turn in turns])


def text_key(asked: Any) -> str:
    """`question_key` of text, or of lists and objects of text."""
    return blake2b(json.dumps(_normal(asked), sort_keys=True).encode(), digest_size=16).hexdigest()


def _normal(value: Any) -> Any:
    if isinstance(value, str):
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", value).casefold()).casefold()
        shown = _UNSEEN.sub("", unicodedata.normalize("NFKD", folded)).replace(_BLANK, " ")
        return _BEFORE_MARKS.sub(r"\1", " ".join(shown.split()))  # French puts a space before them
    if isinstance(value, dict):
        return {name: _normal(each) for name, each in value.items()}
    return [_normal(each) for each in value] if isinstance(value, list | tuple) else value


def _asked(turns: list[dict]) -> list[dict]:
    """The turns that ask: of a conversation without any, those that are not the assistant's."""
    others = [turn for turn in turns if turn["role"] != "assistant"]
    return [turn for turn in others if turn["role"] not in ("system", "developer")] or others


def _looked_at(source: SourceConfig, field: str) -> tuple[Use | None, Iterable[tuple[str, dict]]]:
    table = read_table(source.path, source.split, source.config_name, source.revision, source.limit, field)
    if dotted := dotted_in(source.columns):
        table = with_nested(table, dotted)
    first = list(itertools.islice(table, NUM_LOOKED_AT))
    if not first:
        return None, ()
    where, record = first[0]
    return recognise(record, where, source.columns, source.form, first[1:], field), itertools.chain(first, table)


def _refuse_choices(use: Use, source: SourceConfig, where: str, field: str) -> None:
    if use.form.kind == "choice":
        task = f"evaluation.tasks: [{{kind: choice, path: {source.path}}}]"
        raise BadInput(
            where,
            f"a row of choices ({use.form.name})",
            "a row of prompt and completion, of messages, or of text",
            f"Measure with it: {task}. To train on it, name what is asked and answered in {field}.columns, for example "
            '{prompt: "{question}", completion: "{answer}"}.',
        )


def _refuse_all_but_choices(use: Use, source: SourceConfig, where: str, field: str) -> None:
    if use.form.kind != "choice":
        raise BadInput(
            where,
            f"a row of {', '.join(use.used)} ({use.form.name})",
            "a row of question, choices and answer",
            f"Options may be a list or stand by letter; name other columns in {field}.columns.",
        )


def _row(where: str, record: dict[str, Any]) -> Row | BadRow:
    row = Row(where=where, **{**record, "id": row_id(record.get("id"), where)})
    if row.text is not None:
        return row if row.text.strip() else BadRow(where, "empty text")
    taught = row.completion if row.completion is not None else row.messages
    if isinstance(taught, str):
        return row if taught.strip() else BadRow(where, "empty completion")
    said = [turn for turn in taught or [] if turn["role"] == "assistant"]
    answers = [turn for turn in said if turn.get("weight", 1)]
    if not answers:
        return BadRow(where, NOT_TAUGHT if said else "no assistant turn")
    has_content = any(turn["content"].strip() or turn.get("tool_calls") for turn in answers)
    return row if has_content else BadRow(where, "empty completion")
