"""Values of the columns of a form of choices -> a canonical record: question, choices, and the answer as an index from 0."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bft_ray.data.canonical import Fault, body_of, from_json, text_of
from bft_ray.data.values import is_missing, kind_of

BY_INDEX = "by_index"  # mark of a record whose answer was given as an index, and could count from 1
# `str.isdigit` takes what `int` does not, such as a superscript; tables with an empty cell write 1 as 1.0
_INDEX = re.compile(r"\s*(-?[0-9]{1,9})(?:\.0+)?\s*")
_NUMERIC = re.compile(r"[-+]?[0-9][0-9.,]*")
_MARK = re.compile(r"\s*\(?([A-Z])[.):]\s")  # of an option that holds its own letter


def index_base(value: Any) -> int | None:
    """The first index of four options, as far as one answer shows it: 0 by a 0, 1 by a 4; letters count as 0."""
    if (number := _number(value)) is None or number <= 0:
        return 0
    return 1 if number >= 4 else None


def marks_of(options: Sequence[str]) -> list[str]:
    """The letters with which options begin (`A. yes`, `(B) no`), where these are A, B, C ... in any order; else none."""
    found = [_MARK.match(option) for option in options]
    marks = [match[1] for match in found if match]
    return marks if sorted(marks) == [chr(ord("A") + place) for place in range(len(options))] else []


def lettered(values: dict[str, Any]) -> dict[str, Any]:
    """Options in columns of their own, by letter or by number, the last ones of them empty where a row has fewer."""
    given = {part[-1]: values.get(part) for part in values if part.startswith("option_")}
    there = [label for label in sorted(given) if not _is_blank(given[label])]
    if gap := next((label for label in sorted(given)[: len(there)] if label not in there), None):
        remedy = "Move the options to the left, and name the right one anew where it is a letter; or remove the row."
        raise Fault(f"option_{gap}", "empty", "filled where an option behind it is", remedy)
    if all(map(str.isdigit, there)):  # a number is then the name of a column
        return choice({**values, "choices": {label: given[label] for label in there}})
    return choice({**values, "choices": [given[label] for label in there]})


def are_options(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether columns `a`, `b` ... of a table hold options: one of its answers names one, or none is given. The other answers are then
    wrong keys, which are refused: a table must not become another one by a mistake in one row.

    Numbers beside numbers may be the quantities of a sum, which a result can equal by chance: they are options where there
    are three and more, and every answer is one of them or a place among them.
    """
    given = [row for row in rows if not _is_blank(row.get("answer"))]
    plain = [row for row in given if not _is_numeric(row)]
    if plain and any(_names_option(row) for row in plain):
        return True
    return not plain and all(_names_option(row) for row in given)


def _texts(values: Mapping[str, Any]) -> list[str]:
    options = [value for part, value in values.items() if part.startswith("option_")]
    return [str(value).strip() for value in options if not _is_blank(value)]


def _is_numeric(values: Mapping[str, Any]) -> bool:
    return _NUMERIC.fullmatch(str(values["answer"]).strip()) is not None and all(
        map(_NUMERIC.fullmatch, _texts(values))
    )


def _names_option(values: Mapping[str, Any]) -> bool:
    """By its letter, its text, or an index."""
    texts, said = _texts(values), str(values["answer"]).strip()
    if _is_numeric(values) and len(texts) < 3:
        return False
    num_columns = sum(part.startswith("option_") for part in values)
    if said in texts or _letter(said, num_columns) is not None:
        return True
    number = _number(said)
    return number is not None and (not _is_numeric(values) or 0 <= number <= len(texts))


def _is_blank(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def choice_by_columns(values: dict[str, Any], base: int) -> dict[str, Any]:
    """Four options in columns of their own; the answer an index from `base`, or a letter."""
    options = [text_of(values, f"option_{letter}") for letter in "abcd"]
    answer = _number(values["answer"])
    if answer == -1:
        remedy = "A public test split has no answers: use the validation split."
        raise Fault("answer", -1, "the right option; -1 means that it is not given", remedy)
    at = answer - base if answer is not None else _letter(values["answer"], 4)
    return _choice(values, options, at)


def choice(values: dict[str, Any], *, is_key: bool = False) -> dict[str, Any]:
    """Options as a list, by label ({A: ...}, or {text: [...], label: [...]}, or [{label, text}]); the answer as a label,
    an index from 0 (marked `BY_INDEX`), or the text of the option.

    Args:
        is_key: the answer is a label where it can be one, also where it is the text of another option.
    """
    options, labels = _options(from_json(values["choices"]))
    given = values["answer"]
    said = given.strip() if isinstance(given, str) else given
    by_label = [index for index, label in enumerate(labels) if str(said).casefold() == label.casefold()]
    by_text = [index for index, option in enumerate(options) if isinstance(said, str) and option.strip() == said]
    found = by_label or by_text
    if by_label and by_text and not is_key and not set(by_label) & set(by_text):
        remedy = "Give the text of the right option another form than the labels have, or label the options by other letters."
        raise Fault("answer", "a label and the text of another option", "one of the two", remedy)
    if not labels:
        number, letter = _number(said), _letter(said, len(options))
        found = by_text or [index for index in (number, letter) if index is not None]
        marks = marks_of(options)
        if letter is not None and marks and marks[letter] != chr(ord("A") + letter):
            received = "a letter that is the place of one option, and with which another one begins"
            raise Fault(
                "answer", received, "one of the two", "Put the options in the order of their letters, or give the text."
            )
        if by_text and letter is not None and letter not in by_text:
            raise Fault("answer", "a letter and the text of another option", "one of the two", "Give the index.")
        is_index = number is not None and 0 <= number < len(options) and "." not in str(said)
        if by_text and is_index and number not in by_text:
            remedy = "Give the letter of the right option: A for the first."
            raise Fault("answer", "an index and the text of another option", "one of the two", remedy)
    if not found and isinstance(said, str) and said and _number(said) is None and len(said) > 1:
        rule = "the right option: its letter or label, its index from 0, or its text, the same as in the options"
        remedy = "Compare the two letter by letter, or give the index."
        raise Fault("answer", f"a text that is none of the {len(options)} options", rule, remedy)
    if labels and not found:
        shown = ", ".join(labels) if max(map(len, labels)) < 3 else f"{len(labels)} of them"
        remedy = "The text of the option will do as well, the same as in the options."
        raise Fault("answer", _shown(given), f"the label of an option: {shown}", remedy)
    made = _choice(values, options, found[0] if found else None)
    if not labels and not by_text and _number(said) is not None:
        made[BY_INDEX] = True
    stated = values.get("stated")
    if isinstance(stated, str) and stated.strip() not in ("", options[made["answer"]].strip(), str(said)):
        remedy = "Correct the one that is wrong, or remove the column."
        raise Fault("stated", "another text than the option that the answer names", "the text of that option", remedy)
    return made


def arc(values: dict[str, Any]) -> dict[str, Any]:
    """The same, where the question may be {stem, choices}."""
    question = from_json(values["question"])
    if isinstance(question, Mapping):
        values = {**values, "question": question.get("stem"), "choices": question.get("choices", values.get("choices"))}
    return choice({"choices": None, **values}, is_key=True)


def _options(given: Any) -> tuple[list[str], list[str]]:
    """(texts, labels); no labels where the options are a plain list."""
    if isinstance(given, Mapping) and isinstance(given.get("text"), list) and isinstance(given.get("label"), list):
        given = [{"label": a, "text": b} for a, b in zip(given["label"], given["text"], strict=False)]
    elif isinstance(given, Mapping):
        given = [{"label": name, "text": value} for name, value in given.items() if value is not None]
    if not isinstance(given, list) or len(given) < 2:
        value = f"a list of {len(given)}" if isinstance(given, list) else kind_of(given)
        raise Fault("choices", value, "a list of at least 2 options")
    labels = [_first(option, "label", "key", "id") for option in given if isinstance(option, Mapping)]
    texts = [_first(option, "text", "value", "content") if isinstance(option, Mapping) else option for option in given]
    for index, option in enumerate(texts):
        if not isinstance(option, str) or not option.strip():
            raise Fault("choices", _kind(option), "text that is not empty", inner=f".{index}")
    return texts, [str(label) for label in labels] if len(labels) == len(texts) else []


def _first(option: Mapping[str, Any], *names: str) -> Any:
    return next((option[name] for name in names if name in option), None)


def _choice(values: Mapping[str, Any], options: list[str], answer: int | None) -> dict[str, Any]:
    question = values["question"]
    if not isinstance(question, str) or not question.strip():
        raise Fault("question", _kind(question), "text that is not empty")
    for index, option in enumerate(options):
        if not option.strip():
            raise Fault("choices", "empty", "text that is not empty", inner=f".{index}")
    if answer is None or not 0 <= answer < len(options):
        given = values["answer"]
        raise Fault(
            "answer",
            _shown(given),
            f"the index of the right option, 0 to {len(options) - 1}",
            "Indices count from 0: write 0 for option A, 1 for B. A letter or the option's text will do as well.",
        )
    made: dict[str, Any] = {"question": question, "choices": options, "answer": answer}
    if context := body_of(values, "context"):
        made["context"] = context
    if subject := values.get("subject"):
        if not isinstance(subject, str):
            raise Fault("subject", _kind(subject), "text, or left out")
        made["subject"] = subject
    return made


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        return int(found[1]) if (found := _INDEX.fullmatch(value)) else None
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value == int(value) else None


def _letter(value: Any, num: int) -> int | None:
    said = value.strip().strip("().").upper() if isinstance(value, str) else ""
    return ord(said) - ord("A") if len(said) == 1 and "A" <= said < chr(ord("A") + num) else None


def _shown(answer: Any) -> Any:
    """A truth value or a whole number as it is, which quotes no text of a row; of all else what it is."""
    if isinstance(answer, bool) or (number := _number(answer)) is None:
        return answer if isinstance(answer, bool) else _kind(answer)
    return number


def _kind(value: Any) -> str:
    """What a value is, without quoting it."""
    return "empty" if isinstance(value, str) and not value.strip() else kind_of(value)
