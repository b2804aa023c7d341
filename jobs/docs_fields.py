"""The fields of a config section as Markdown: name, values, default, meaning, and the rules that refuse a value.

Types, ranges, defaults and help come from the typed fields; rules come from the `rule(field, value, must_be, remedy)`
calls of a section's validators, as read from their source.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bft_ray.config.base import Section

_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "any value"}
_PLURAL = {int: "whole numbers", float: "numbers", str: "texts", Any: "values", float | None: "numbers or nulls"}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_ELLIPSIS, _NAME = "…", "NAME"  # what only a run knows: a value, a name


def section_text(section: type[BaseModel], links: Mapping[type[BaseModel], str]) -> str:
    """A table of a section's fields, and under it the rules between fields.

    Args:
        links: section -> Markdown link to where it is described.
    """
    rows = ["| field | values | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        cells = [f"`{name}`", values_text(field, links), default_text(field), meaning_text(field)]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    rules = list(dict.fromkeys(f"- `{name}` must be {text}" for name, text in rules_of(section)))
    return "\n".join(rows + (["", "Rules between fields:", "", *rules] if rules else []))


def values_text(field: FieldInfo, links: Mapping[type[BaseModel], str]) -> str:
    """What a field takes: its type in words, and its range."""
    is_many = typing.get_origin(_without_none(field.annotation)) in (list, dict)
    parts = [_type_text(field.annotation, links)]
    for each in field.metadata:
        parts += [text.format(f"{getattr(each, name):g}") for name, text in _BOUNDS.items() if hasattr(each, name)]
        low, high = getattr(each, "min_length", None), getattr(each, "max_length", None)
        what = "entries" if is_many else "characters"
        parts += [f"at least {low} {what}"] * bool(low) + [f"at most {high} {what}"] * bool(high)
        if pattern := getattr(each, "pattern", None):
            parts.append(f"matches `{pattern}`")
    return ", ".join(parts).replace("at least 1 entries", "at least one entry")


def default_text(field: FieldInfo) -> str:
    """The default as YAML; a factory's as its meaning tells, for it may read the environment."""
    if field.is_required():
        return "required"
    if field.default_factory in (list, dict):
        return f"`{field.default_factory()}`"  # type: ignore[misc]
    if field.default is PydanticUndefined:
        return "that of its fields" if _sections_in(field.annotation) and not _is_list(field) else "see meaning"
    if isinstance(field.default, Section):
        given = {} if field.default == type(field.default)() else field.default.model_dump(exclude_unset=True)
        return f"`{_flow(given)}`" if given else "that of its fields"
    return f"`{_flow(field.default)}`"


def meaning_text(field: FieldInfo) -> str:
    """The help of a field; where it is a section, the section's first line."""
    if field.description:
        return field.description
    [section] = _sections_in(field.annotation)
    return first_line(section)


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def rules_of(section: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """(field, what it must be and what helps) of each rule that a section's own validators raise."""
    for owner in section.__mro__:
        if owner in (Section, BaseModel) or not issubclass(owner, Section) or "__module__" not in vars(owner):
            continue
        module = sys.modules[owner.__module__]
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                yield from _rules_in(function, vars(module), {})


# ---- types and defaults ------------------------------------------------------------------------------------------------


def _type_text(annotation: Any, links: Mapping[type[BaseModel], str]) -> str:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_text(inside[0], links)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        parts = [_type_text(part, links) for part in inside if part is not type(None)]
        return " or ".join([*parts, "null"] if type(None) in inside else parts)
    if origin is list:
        return f"list of {_PLURAL.get(inside[0]) or _type_text(inside[0], links)}"
    if origin is dict:
        return f"mapping of {_type_text(inside[0], links)} to {_type_text(inside[1], links)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return links[annotation]
    return _PLAIN[annotation]


def _without_none(annotation: Any) -> Any:
    inside = [part for part in typing.get_args(annotation) if part is not type(None)]
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return inside[0] if is_union and len(inside) == 1 else annotation


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is list


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_in(part)]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()
    return text.removesuffix("...").strip()


# ---- rules, from the source of validators --------------------------------------------------------------------------------


def _rules_in(function: ast.FunctionDef, module: Mapping[str, Any], given: Mapping[str, list[str]]) -> Iterator[Any]:
    """Rules of a function, and of the module's functions that it calls.

    Args:
        given: parameter of the function -> texts that it may be.
    """
    known = {**given, **_texts_of_names(function, module)}
    tables = {name: value for name, value in module.items() if isinstance(value, dict)} | _dicts_of(function)
    for call in ast.walk(function):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        if call.func.id == "rule":
            for names in _for_each_key(call, tables, known):
                must_be = _text(call.args[2], module, names)[0]
                remedy = _text(call.args[3], module, names)[0] if len(call.args) > 3 else ""
                told = must_be if _ELLIPSIS in remedy or not remedy else f"{must_be}. {remedy}"
                for field in _text(call.args[0], module, names, hole=_NAME):
                    yield field, _without_values(told).rstrip(".") + "."
        elif inspect.isfunction(called := module.get(call.func.id)) and called.__module__ == module["__name__"]:
            inner = _tree_of(called)
            texts = [_text(argument, module, known, hole=_NAME) for argument in call.args]
            passed = zip([each.arg for each in inner.args.args], texts, strict=False)
            yield from _rules_in(inner, module, {name: text for name, text in passed if text != [_NAME]})


def _for_each_key(
    call: ast.Call, tables: Mapping[str, Any], names: Mapping[str, list[str]]
) -> Iterator[Mapping[str, list[str]]]:
    """The names, once for each key of a table in which the rule looks its remedy up, else once."""
    for node in ast.walk(call):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Name):
            for key, value in tables.get(node.value.id, {}).items():
                yield {**names, node.slice.id: [key], ast.unparse(node): [value]}
            if node.value.id in tables:
                return
    yield names


def _dicts_of(function: ast.FunctionDef) -> dict[str, Any]:
    """Local name -> the dict that is written out for it."""
    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
        if isinstance(node.value, ast.Dict) and all(isinstance(v, ast.Constant) for v in node.value.values)
    }


@cache
def _tree_of(function: Any) -> ast.FunctionDef:
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree


def _texts_of_names(function: ast.FunctionDef, module: Mapping[str, Any]) -> dict[str, list[str]]:
    """Local name -> the texts that it stands for: of an assignment, or of a loop over written-out pairs."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
            parts = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
            if all(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts):
                found[target.id] = [" / ".join(str(part.value) for part in parts)]  # type: ignore[attr-defined]
            elif isinstance(node.value, ast.JoinedStr):
                found[target.id] = _text(node.value, module, found, hole=_NAME)
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple) and isinstance(node.target, ast.Tuple):
            for place, name in enumerate(node.target.elts):
                values = [each.elts[place] for each in node.iter.elts if isinstance(each, ast.Tuple)]
                texts = [value.value for value in values if isinstance(value, ast.Constant)]
                if isinstance(name, ast.Name) and texts:
                    found[name.id] = [str(text) for text in texts]
    return found


def _text(
    node: ast.expr, module: Mapping[str, Any], names: Mapping[str, list[str]], hole: str = _ELLIPSIS
) -> list[str]:
    """The texts that an expression may be, with `hole` for what only a run knows."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.Name | ast.Subscript) and (known := names.get(ast.unparse(node))):
        return known
    if isinstance(node, ast.IfExp):
        return [" / ".join(_text(part, module, names, hole)[0] for part in (node.body, node.orelse))]
    if isinstance(node, ast.Name) and isinstance(module.get(node.id), (str, int)):
        return [str(module[node.id])]
    if isinstance(node, ast.JoinedStr):
        texts = [""]
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            texts = [left + right for left in texts for right in _text(inner, module, names, hole)]
        return texts
    return [hole]


def _without_values(text: str) -> str:
    return re.sub(rf" \({_ELLIPSIS}\)|: {_ELLIPSIS}(?=\.|$)", "", text)
