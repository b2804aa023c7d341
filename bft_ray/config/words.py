"""The rules of pydantic as text for people who write configs."""

from __future__ import annotations

import re
from typing import Any

_LETTERS = {"a-z": "small letters", "A-Z": "capital letters", "0-9": "digits"}
_BOUNDS = {
    "too_short": ("at least", "min_length"),
    "too_long": ("at most", "max_length"),
    "string_too_short": ("at least", "min_length"),
    "string_too_long": ("at most", "max_length"),
}


def rule_of(problem: Any) -> str:
    """What a value must be, to follow "but must be", with a full stop; `problem` is of `ValidationError.errors()`."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return _name_rule(context["pattern"], problem["input"])
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        what, of = ("text", "letter") if kind.startswith("string") else ("a list or mapping", "entry")
        return f"{what} of {words} {_count(context[bound], of)}."
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "a mapping of names to values, as in {name: value}."
    if kind == "list_type":
        return "a list, as in [a, b]."
    if kind == "invalid_key":
        return "the name of a field: a number is none."
    return re.sub(r"^Input should be ", "", problem["msg"]) + "."


def shorten(value: Any) -> str:
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
    near = re.sub(f"[^{others}]+", "_", value if "A-Z" in others else value.lower()).strip(signs)
    example = f" For example {near}." if re.fullmatch(pattern.strip("^$"), near) else ""
    start = " (a letter or digit first)" if pattern.count("[") > 1 else ""
    return f"made of {', '.join(kinds)} and {' '.join(signs)}{start}.{example}"
