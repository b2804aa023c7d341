"""A user's data: their form, the columns used and not used, and each row as `init` writes it."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bft_ray.config import SourceConfig
from bft_ray.data.choices import marks_of
from bft_ray.data.nested import dotted_in, with_nested
from bft_ray.data.rows import NOT_TAUGHT, BadRow, Row, choice_rows, look, question_key, read_rows
from bft_ray.data.tables import read_table
from bft_ray.data.template import check_braces, column_of, names_in
from bft_ray.data.use import Use
from bft_ray.errors import BadInput, did_you_mean, enumerate_names
from bft_ray.operate.init.request import Request
from bft_ray.operate.init.split import CONFIRMATION, TEST, VALIDATION

CHARACTERS_PER_TOKEN = 3.5  # of English text, roughly
log = logging.getLogger(__name__)
#: split -> names of its file beside train.csv
_BESIDE = {
    VALIDATION: ("validation", "valid", "val", "dev", "eval"),
    CONFIRMATION: ("confirmation", "confirm"),
    TEST: ("test",),
}
_FIELDS = ("prompt", "completion", "messages", "tools", "text")
_NO_ID = "-"  # a column that no file has
#: field of a source in an error -> the option of the command that sets it
_FLAGS = {"form": "--form", "split": "--split", "config_name": "--config-name", "limit": "--limit", "path": "DATA"}
_Rows = TypeVar("_Rows")


@dataclass(frozen=True)
class Found:
    """A usable row.

    Args:
        where: its place in the file.
        key: its normalised question.
        group: see `Row.group`.
        record: the row as a file of `init` has it.
        taught: the same for training; another one for a choice row, which is taught as prompt and completion.
        answer_tokens, row_tokens: estimated.
    """

    where: str
    key: str
    group: str | None
    record: dict[str, Any]
    taught: dict[str, Any]
    answer_tokens: int
    row_tokens: int


@dataclass(frozen=True)
class Look:
    """The contents of a source.

    Args:
        path: as it was given.
        form: name of the form in the table of forms.
        kind: completion, messages, text or choice.
        used: canonical field -> column or template.
        unused: columns that were left out; none has content that could be trained on.
        rows: usable ones.
        left_out: reason -> how many rows.
        labels: the options of every row, where the answers are labels (`bft_ray.operate.init.labels`); else none.
    """

    path: str
    form: str
    kind: str
    used: Mapping[str, str]
    unused: list[str]
    rows: list[Found]
    left_out: Mapping[str, int]
    labels: tuple[str, ...] = ()


def inspect(source: SourceConfig, field: str = "DATA") -> Look:
    """Recognise the form by the first rows, then read and check all rows in it.

    Raises:
        BadInput: no such data, columns that mean nothing or that would be dropped with their content, a broken row,
            no usable row.
    """
    _check_columns(source, field)
    use = _recognised(source, field)
    if use is None:
        raise BadInput(field, source.path, "data with rows", "This file has none: check it, or give another one.")
    found = list(_choices(source, field) if use.form.kind == "choice" else _rows(source, field))
    rows = [row for row in found if isinstance(row, Found)]
    left_out = Counter(row.reason for row in found if isinstance(row, BadRow))
    if not rows:
        reasons = ", ".join(f"{count:,} with {reason}" for reason, count in left_out.items())
        remedy = "Check the first rows, or name the columns with --prompt and --completion."
        if NOT_TAUGHT in left_out:
            remedy = "Set `weight` to 1 in the turns that are to be taught, or leave it out there."
        raise BadInput(field, f"{len(found):,} rows: {reasons}", "data with rows that can be taught", remedy)
    return Look(source.path, use.form.name, use.form.kind, dict(use.used), list(use.unused), rows, left_out)


def _check_columns(source: SourceConfig, field: str) -> None:
    """Check that the columns which the command names are in a row.

    Raises:
        BadInput: names the option and the columns that there are.
    """
    if not source.columns:
        return
    table = read_table(source.path, source.split, source.config_name, source.revision, source.limit, field)
    rows = with_nested(table, dotted_in(source.columns))
    wanted = [(option, name) for option, column in source.columns.items() for name in names_in(column) or [column]]
    there: tuple[str, ...] = ()
    for _, row in rows:  # no further than to the row that has the last of them
        there = tuple(dict.fromkeys((*there, *map(str, row))))
        if all(column_of(name, there) is not None for _, name in wanted):
            return
    for option, name in wanted:
        if there and column_of(name, there) is None:
            check_braces(name, f"--{option}")
            hint = did_you_mean(name, there) or f"There are: {enumerate_names(there)}."
            raise BadInput(f"--{option}", name, f"a column of {Path(source.path).name}", hint)


def _recognised(source: SourceConfig, field: str) -> Use | None:
    """How the rows are read; errors name the flags of the command in place of fields of a config.

    Raises:
        BadInput: see `inspect`.
    """
    try:
        return look(source, field)
    except BadInput as error:
        for named, flag in _FLAGS.items():
            if error.field == f"{field}.{named}":
                raise BadInput(flag, error.value, error.rule, error.remedy) from None
        if error.remedy.startswith(f"Set {field}.form: "):
            remedy = error.remedy.replace(f"Set {field}.form:", "Add --form", 1)
            raise BadInput(error.field, error.value, error.rule, remedy) from None
        if f"{field}.columns" not in error.remedy:
            raise
        remedy = (
            "Name the columns to use: --prompt COLUMN --completion COLUMN; a template joins several "
            "(--prompt '{question} {context}'), and what these do not name is left out."
        )
        raise BadInput(error.field, error.value, error.rule, remedy) from None


#: in a file's name: as a word of its own where there is one, for a strain may be trained on
_TRAIN = re.compile(r"(?<![a-z])train(ing)?(?![a-z])|train(ing)?(?!.*(?<![a-z])train(ing)?(?![a-z]))", re.I)


def beside(data: Path, look: Look, request: Request) -> tuple[dict[str, Look], list[str]]:
    """(split -> contents of its file beside the training file, lines on such files).

    `heart_train.csv` -> `heart_validation.csv`, `heart_test.csv` ...; a file of another form is not used, with a line.

    Raises:
        BadInput: a broken row in one of them.
    """
    found: dict[str, Look] = {}
    notes = []
    for split, names in _BESIDE.items():
        for name in names:
            path = data.with_name(_TRAIN.sub(name, data.stem, count=1) + data.suffix)
            if path == data or not path.is_file():
                continue
            source = request.source(path)
            try:
                use = _recognised(source, str(path))
            except BadInput as error:
                notes.append(f"{'not used':<13}{path}: {error}")
                continue
            if not use or use.form.kind != look.kind:
                is_kind = f"rows of the kind {use.form.kind}, not {look.kind}" if use else "no rows"
                notes.append(f"{'not used':<13}{path}: {is_kind}")
                continue
            found[split] = inspect(source, str(path))
            notes.append(f"{split:<13}{len(found[split].rows):,} rows of {path}, found beside the data")
            break
    return found, notes


def _rows(source: SourceConfig, field: str) -> Iterator[Found | BadRow]:
    """Rows of prompt and completion, messages or text."""
    for row in _with_own_ids(source, lambda given: list(read_rows(given, field))):
        if isinstance(row, BadRow):
            yield row
            continue
        record = {name: value for name in _FIELDS if (value := getattr(row, name)) is not None}
        whole = _head(row.id, row.group) | record
        asked, answered = _asked(row), _answered(row)
        yield Found(
            where=row.where,
            key=question_key(row),
            group=row.group,
            record=whole,
            taught=whole,
            answer_tokens=_num_tokens(answered),
            row_tokens=_num_tokens(asked + answered),
        )


def _choices(source: SourceConfig, field: str) -> Iterator[Found | BadRow]:
    """Choice rows. The options stand in the question, with letters, where it is taught as where it is measured: the
    question alone often says nothing (which of the following ...).
    """
    for row in _with_own_ids(source, lambda given: list(choice_rows(given, field))):
        if isinstance(row, BadRow):
            yield row
            continue
        options = [f"{_letter(place)}. {option}" for place, option in enumerate(row.choices)]
        if marks_of(row.choices) == sorted(marks_of(row.choices)) != []:  # they hold their letters already
            options = list(row.choices)
        asked = "\n".join([row.question, *options])
        right = row.choices[row.answer]
        prompt = f"{row.context}\n\n{asked}" if row.context else asked
        item = {"question": asked} | options_of(row.choices, row.answer)
        item |= {name: value for name in ("context", "subject") if (value := getattr(row, name))}
        yield Found(
            where=row.where,
            key=question_key(row),
            group=row.group,
            record=_head(row.id, row.group) | item,
            taught=_head(row.id, row.group) | {"prompt": prompt, "completion": right},
            answer_tokens=_num_tokens(right),
            row_tokens=_num_tokens(prompt + right),
        )


def options_of(choices: Sequence[str], answer: int) -> dict[str, Any]:
    """Options and the right one, under names that are no option's text. Indices would not do: a file of which none is 0 is
    refused, as if they counted from 1, and a split that keeps groups together may have no item of the first option.
    """
    name = "option"
    while any(choice.casefold().startswith(name) for choice in choices):
        name = f"_{name}"
    return {"choices": {f"{name} {n}": choice for n, choice in enumerate(choices, 1)}, "answer": f"{name} {answer + 1}"}


def _with_own_ids(source: SourceConfig, read: Callable[[SourceConfig], list[_Rows]]) -> list[_Rows]:
    """All rows; where ids repeat or cannot be taken, the places of the rows become their ids, and a line says so."""
    try:
        return read(source)
    except BadInput as error:
        if not error.field.endswith(" id"):
            raise
        log.warning("%s is there twice, or no text or number: the places of the rows are their ids", error.field)
        return read(source.model_copy(update={"columns": source.columns | {"id": _NO_ID}}))


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _head(name: str, group: str | None) -> dict[str, Any]:
    return {"id": name} | ({} if group is None else {"group": group})


def _asked(row: Row) -> str:
    """The question as text; "" for plain text."""
    asked = row.prompt or ""
    if row.messages is not None:
        asked = [turn for turn in row.messages if turn["role"] != "assistant"]
    return _text(asked) + (json.dumps(row.tools) if row.tools else "")


def _answered(row: Row) -> str:
    if row.messages is not None:
        return _text([turn for turn in row.messages if turn["role"] == "assistant"])
    return _text(row.completion or row.text or "")


def _text(value: str | list[dict]) -> str:
    if isinstance(value, str):
        return value
    parts = [part for turn in value for name, part in turn.items() if name not in ("role", "weight") and part]
    return "\n".join(part if isinstance(part, str) else json.dumps(part) for part in parts)


def _num_tokens(text: str) -> int:
    return max(1, math.ceil(len(text) / CHARACTERS_PER_TOKEN))
