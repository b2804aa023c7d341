"""Errors of pydantic as text for people who write configs: field, value, rule, remedy."""

from __future__ import annotations

import re
import types
import typing
import unicodedata
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bft_ray.config.renamed import renamed
from bft_ray.errors import did_you_mean

_QUOTE = "'"
_LETTERS = {"a-z": "small letters", "A-Z": "capital letters", "0-9": "digits"}
_BOUNDS = {
    "too_short": ("at least", "min_length"),
    "too_long": ("at most", "max_length"),
    "string_too_short": ("at least", "min_length"),
    "string_too_long": ("at most", "max_length"),
}


def explain(problem: Any, model: type[BaseModel]) -> str:
    """A sentence with field, value, rule and remedy.

    Args:
        problem: of `ValidationError.errors()`.
        model: the section that was validated.
    """
    loc, section = _place(model, problem["loc"])
    name = ".".join(loc)
    if problem["type"] == "extra_forbidden":
        if new_name := renamed(name):
            return f"`{name}` was renamed: it is `{new_name}` now."
        known = {key: ".".join([*loc[:-1], key]) for key in (section.model_fields if section else ())}
        elsewhere = _keys_of(model)
        hint = did_you_mean(loc[-1], known, known) or did_you_mean(loc[-1], elsewhere, elsewhere, cutoff=0.8)
        return f"`{name}` is not a known key. {hint or 'Known: ' + ', '.join(known) + '.'}"
    if problem["type"] == "missing":
        field = section.model_fields.get(loc[-1]) if section else None
        return f"`{name}` is missing: {(field.description if field else None) or 'give it in the config'}."
    if problem["type"] == "union_tag_not_found":
        return f"`{name}.{problem['ctx']['discriminator'].strip(_QUOTE)}` is missing: it decides what this entry is."
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        field_name = f"{name}.{context['discriminator'].strip(_QUOTE)}"
        return f"`{field_name}` is {_shorten(context['tag'])}, but must be one of {context['expected_tags']}."
    if problem["type"] == "bft_rule":
        context = problem["ctx"]
        field_name = context["field"] if context["field"].startswith(name + ".") else ".".join([*loc, context["field"]])
        return f"`{field_name}` is {context['value']}, but must be {context['must_be']}. {context['remedy']}".rstrip()
    text = f"`{name}` is {_shorten(problem['input'])}, but must be {_rule_of(problem)}"
    shows_what_to_write = problem["type"] in ("literal_error", "string_pattern_mismatch")
    if section is None or shows_what_to_write:
        return text
    return f"{text} {_remedy_of(section.model_fields.get(loc[-1]))}".rstrip()


def _keys_of(model: type[BaseModel], above: str = "") -> dict[str, str]:
    """The dotted name of each key below the top, by the key: `epochs` alone is how a Trainer has it."""
    found: dict[str, str] = {}
    for key, field in model.model_fields.items():
        inner = _sections_in(field.annotation)
        if len(inner) == 1 and typing.get_origin(field.annotation) not in (list, dict):
            found = _keys_of(inner[0], f"{above}{key}.") | found
        elif above:
            found.setdefault(key, above + key)
    return found


def _remedy_of(field: FieldInfo | None) -> str:
    """The number that a field has where it is left out, or what it means; the defaults of other kinds hang on more."""
    if field is None:
        return ""
    if isinstance(field.default, int | float) and not isinstance(field.default, bool):
        return f"Leave it out for its default, {field.default}."
    return f"That is: {field.description}." if field.description else ""


def _place(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """The dotted place of a problem, and the section that holds its last key.

    pydantic puts the branch of a union into it: "list[str]" or "literal[...]", and the tag of a tagged one.
    """
    names: list[str] = []
    section: type[BaseModel] | None = model
    inside: list[type[BaseModel]] = [model]  # sections that may hold the next key
    is_mapping = False  # whether the next key is one of a mapping: any text
    for key in map(str, loc):
        if is_mapping:
            names.append(key)
            is_mapping = False
            continue
        if re.search(r"[\[\]'()]", key):
            continue
        tagged = [choice for choice in inside if len(inside) > 1 and _tag_of(choice) == key]
        if tagged:
            inside = tagged
            continue
        names.append(key)
        if key.isdigit():
            continue
        section = inside[0] if len(inside) == 1 else None
        field = section.model_fields.get(key) if section else None
        inside = _sections_in(field.annotation) if field else []
        is_mapping = field is not None and typing.get_origin(field.annotation) is dict
    return names, section


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The config sections inside an annotation such as `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, dict, typing.Annotated):
        return [section for part in typing.get_args(annotation) for section in _sections_in(part)]
    return []


def _tag_of(section: type[BaseModel]) -> str | None:
    field = section.model_fields.get("kind")
    return field.default if field else None


def _rule_of(problem: Any) -> str:
    """What a value must be, to follow "but must be", with a full stop."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return _name_rule(context["pattern"], problem["input"])
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        what, of = ("text", "letter") if kind.startswith("string") else ("a list or mapping", "entry")
        return f"{what} of {words} {_count(context[bound], of)}."
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "a mapping of names to values, as in {name: value}."
    if kind == "string_type" and isinstance(problem["input"], dict | list):
        return (
            """text. Where it holds braces or brackets, quote it: "{name}" in a file, '"{name}"' on a command line."""
        )
    if kind == "string_type" and problem["input"] is not None:
        return """text, which YAML does not take this for. Quote it: "7" in a file, '"7"' on a command line."""
    if kind == "list_type":
        return "a list, as in [a, b]."
    if kind == "invalid_key":
        return "the name of a field: a number is none."
    return re.sub(r"^Input should be ", "", problem["msg"]) + "."


def _shorten(value: Any) -> str:
    """A value for a message: its beginning."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _count(number: int, of: str) -> str:
    return f"{number} {of if number == 1 else {'entry': 'entries'}.get(of, of + 's')}"


def _name_rule(pattern: str, value: str) -> str:
    """The rule of a name, from a pattern such as `^[a-z0-9][a-z0-9_]*$`, with the name that is nearest to the value."""
    others = re.findall(r"\[(.*?)\]", pattern)[-1]
    kinds = [word for part, word in _LETTERS.items() if part in others]
    signs = re.sub("|".join(_LETTERS), "", others)
    plain = without_accents(value)
    near = re.sub(f"[^{others}]+", "_", plain if "A-Z" in others else plain.lower()).strip(signs)
    example = f" For example {near}." if re.fullmatch(pattern.strip("^$"), near) else ""
    start = " (a letter or digit first)" if pattern.count("[") > 1 else ""
    return f"made of {', '.join(kinds)} and {' '.join(signs)}{start}.{example}"


def without_accents(text: str) -> str:
    """The text with its letters alone: u for the letter with two dots; what has no such letter stays."""
    parted = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in parted if not unicodedata.combining(letter))
