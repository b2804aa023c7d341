"""What to do about a table that fits no form, a column that is not used, a cell that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bft_ray.data.canonical import Fault
from bft_ray.data.form_table import FORMS, KINDS
from bft_ray.data.template import names_in
from bft_ray.data.use import FILL, Use
from bft_ray.errors import enumerate_names


def columns_text(record: Mapping[str, Any]) -> str:
    """The names of a row's columns; their number where the names may be cells, as in a table without a line of names."""
    names = [str(column) for column in record]
    if any(map(_is_like_a_cell, names)):
        return f"{len(names)} columns whose names look like cells, or like a title"
    return enumerate_names(names) or "nothing"


def _is_like_a_cell(name: str) -> bool:
    words = name.split()
    has_digit = any(letter.isdigit() for letter in name)
    return len(name) > 40 or len(words) > 5 or (has_digit and (len(words) > 1 or not name.isidentifier()))


def how_to_fit(name: str, field: str, record: Mapping[str, Any]) -> str:
    """Which columns the form of this name has, or which forms there are where none was named."""
    if name != "auto":
        form = next(form for form in FORMS if form.name == name)
        return f"It has the columns {', '.join('/'.join(each) for each in form.needs.values())}."
    forms = "prompt and completion, question and answer, instruction and output, messages, conversations, text, choices"
    is_unnamed = any(_is_like_a_cell(str(column)) for column in record)
    first = (
        "If the first line of the file is a title or a row, let it be the names of the columns. " if is_unnamed else ""
    )
    return f"{first}Known are {forms}; else name the columns in {field}.columns, for example {{prompt: case, completion: note}}."


def remedy_of_unused(use: Use, name: str) -> str:
    """How to use a column that looks like content, as options of `init` and in a config; or how to leave it out."""
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


def remedy_of_fault(fault: Fault, use: Use) -> str:
    """The remedy of a fault, where its kind alone tells one."""
    if fault.remedy:
        return fault.remedy
    if fault.received == "a number":
        return "Write it as text." if fault.inner else _numbers_as_text(use)
    if fault.received in ("a truth value", "bytes", "date", "datetime", "Decimal", "time"):
        return "Write it as the text that the model is to read or to give, such as yes and no, or 2024-11-05."
    if fault.received == "text" and fault.part == "choices":
        return 'Write it as a JSON list, ["a", "b"], or give each option a column of its own: option_a, option_b ...'
    return FILL if fault.received in ("missing", "empty") else ""


def _numbers_as_text(use: Use) -> str:
    """What helps where a column of prompt or completion holds numbers: a template makes text of them."""
    if use.form.kind != "completion":
        return "Write it as text."
    shown = {part: use.used[part] for part in ("prompt", "completion")}
    made = {part: column if names_in(column) else f"{{{column}}}" for part, column in shown.items()}
    options = " ".join(f"--{part} '{template}'" for part, template in made.items())
    return f"Write it as text, or let a template do it: {options} (of `bft-ray init`; in a config, `columns` of the source)."
