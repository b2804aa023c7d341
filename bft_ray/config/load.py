"""YAML file and dotted overrides -> Config; every problem is reported as field, value, rule, remedy."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bft_ray.config.tree import Config, ConfigToMeasure
from bft_ray.config.words import explain
from bft_ray.errors import BadConfig, BadInput, did_you_mean

_Model = typing.TypeVar("_Model", bound=BaseModel)
#: fields that map names of any form to values
_TEXT_BY_NAME = ("tags", "columns", "resources_per_worker")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.2), refuses a key given twice and numbers in base 8 or 60 (010 is 8 to
    YAML 1.1, 1:30 is 90), and raises YAMLError alone.
    """

    def construct_object(self, node, deep=False):
        try:
            value = super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:  # PyYAML's constructors let out whatever int(), datetime.date() or a look-up raises
            kind = node.tag.rpartition(":")[2]
            what = f"{node.value if isinstance(node.value, str) else 'this'}, which is no {kind} that there is"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None
        if node.tag in _NUMBERS and _OTHER_BASE.fullmatch(node.value):
            what = f"{node.value}, which YAML reads as {value} (quote it, or use base 10)"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return value

    def construct_mapping(self, node, deep=False):
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue  # `<<: *other`, whose keys one's own may replace
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict, set)):
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, "a key that is a list or mapping", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"
_MOST_VALUES = 1_000_000  # of a file, each alias counted: a few of them within each other could fill the memory
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_BASE = re.compile(r"[-+]?0[\d_]+|[^:]*:.*")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(
    source: str | Path, overrides: list[str] | tuple[str, ...] = (), *, for_training: bool = True
) -> Config:
    """Read a config file, or a bundled recipe by its name, with overrides such as `loss.window=64`.

    Args:
        for_training: else training data and the rule on the exported checkpoint are not asked for.

    Raises:
        BadInput: no such file or recipe, text that is no YAML mapping, or a search space.
        BadConfig: every unknown key, wrong type and broken rule, at once.
    """
    tree = read_yaml(find_config(source))
    if "parameters" in tree and not tree.keys() & {"model", "data", "loss"}:
        remedy = "Give the config that it names, or the space to `bft-ray search`."
        raise BadInput("config", str(source), "the config of a run, and this is a search space", remedy)
    return _with_overrides(tree, str(source), overrides, for_training)


def config_from_yaml(text: str, source: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """A config from its YAML text, with overrides; `source` names it in errors, which are those of `load_config`."""
    return _with_overrides(parse_yaml(text, source), source, overrides)


def _with_overrides(
    tree: dict[str, Any], source: str, overrides: list[str] | tuple[str, ...], for_training: bool = True
) -> Config:
    for override in overrides:
        set_field(tree, *parse_override(override))
    return make_config(tree, source, for_training=for_training)


def find_config(source: str | Path) -> Path:
    """The path of a config: a file, or the name of a recipe that comes with the package."""
    path = Path(source)
    if os.path.isfile(path):  # false also for a name that is too long
        return path
    recipe = recipes().get(str(source).removesuffix(".yaml"))
    if recipe is None:
        hint = did_you_mean(str(source), recipes()) or f"Recipes: {', '.join(sorted(recipes()))}."
        raise BadInput("config", str(source), "a YAML file or the name of a recipe", hint)
    return recipe


def recipes() -> dict[str, Path]:
    """Bundled configs by name."""
    folder = Path(str(resources.files("bft_ray") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; BadInput names the line of a syntax error."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(str(path), "not UTF-8 text", "valid YAML") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A YAML mapping from its text; `source` names it in errors."""
    try:
        tree = _construct(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        raise BadInput(where, getattr(error, "problem", None) or "unreadable", "valid YAML") from None
    if not isinstance(tree, dict):
        raise BadInput(source, tree, "a YAML mapping of config sections", "`bft-ray config --schema` lists them.")
    return tree


def parse_override(override: str) -> tuple[str, Any]:
    """`loss.window=64` -> ("loss.window", 64); BadInput for text of another form."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise BadInput("override", override, "of the form section.field=value", "For example loss.window=64.")
    try:
        return name, _construct(text) if text else None
    except yaml.constructor.ConstructorError as error:
        twice = f" A text with braces is quoted twice: {name}='\"{{a}} {{b}}\"'." if "{" in text else ""
        remedy = f"It holds {error.problem}.{twice}"
        raise BadInput(name, text, "a YAML value", remedy) from None
    except yaml.YAMLError:
        raise BadInput(name, text, "a YAML value", "Quote it twice if it has special characters.") from None


def _construct(text: str) -> Any:
    """The value of YAML text, in which an alias is a copy: to set a field there changes no other. YAMLError for invalid text."""
    left = itertools.repeat(None, _MOST_VALUES)

    def copied(value: Any) -> Any:
        next(left)
        if isinstance(value, dict):
            return {key: copied(each) for key, each in value.items()}
        return [copied(each) for each in value] if isinstance(value, list) else value

    try:
        return copied(yaml.load(text, Loader=_Loader))  # _Loader is a SafeLoader
    except RecursionError:
        raise yaml.error.MarkedYAMLError(problem="nested too deep") from None
    except StopIteration:
        raise yaml.error.MarkedYAMLError(problem=f"of more than {_MOST_VALUES:,} values") from None


def scalar(text: str) -> str:
    """The text as YAML: quoted where YAML would take it for something else, such as 2024 or no."""
    try:
        is_plain = _construct(text) == text
    except yaml.YAMLError:
        is_plain = False
    return text if is_plain else json.dumps(text)


def set_field(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set one dotted field of the tree in place, such as `data.train.0.limit`, to a copy of a value; BadInput where there can be
    no such field.
    """
    value = copy.deepcopy(value)  # or a later field within it would be set for whoever gave it
    *parents, last = _keys(name)
    place: Any = tree
    for key in parents:
        place = _descend(place, key, name)
    if isinstance(place, list):
        place[_index(place, last, name)] = value
        return
    _section(place, name)[last] = value


def _keys(name: str) -> list[str]:
    """The keys of a dotted field. What stands behind a mapping of text is one key, dots included: `tracking.tags.team.name`."""
    keys = name.split(".")
    for at, key in enumerate(keys):
        if key in _TEXT_BY_NAME and len(keys) > at + 1:
            return [*keys[: at + 1], ".".join(keys[at + 1 :])]
    return keys


def _descend(place: Any, key: str, name: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, name)]
    section = _section(place, name)
    if section.get(key) is None:
        section[key] = {}
    return section[key]


def _section(place: Any, name: str) -> dict[str, Any]:
    if not isinstance(place, dict):
        raise BadInput(name, place, "but its parent is a value, not a section", "Look at `bft-ray config --schema`.")
    return place


def _index(place: list[Any], key: str, name: str) -> int:
    if not (key.isascii() and key.isdecimal()) or int(key[:9]) >= len(place):
        if not place:
            rule = "given with the whole list, because the list is empty"
            whole = name.split(f".{key}")[0]
            raise BadInput(name, key, rule, f"For example {whole}='[{{...}}]', an entry between the brackets.")
        raise BadInput(name, key, f"an index from 0 to {len(place) - 1}, because it names an entry of a list")
    return int(key)


def make_config(tree: dict[str, Any], source: str = "the config", *, for_training: bool = True) -> Config:
    """Validate a plain tree; raises BadConfig with every problem."""
    return validate(Config if for_training else ConfigToMeasure, tree, source)


def validate(model: type[_Model], tree: dict[str, Any], source: str) -> _Model:
    """A plain tree as a section of this type; raises BadConfig with every problem."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [explain(problem, model) for problem in error.errors(include_url=False)]
        raise BadConfig(source, list(dict.fromkeys(problems))) from None


def schema() -> str:
    """The JSON schema of the config, as text (for editors: `# yaml-language-server: $schema=...`)."""
    return json.dumps(Config.model_json_schema(), indent=2)


def to_yaml(config: BaseModel | Mapping[str, Any]) -> str:
    """A config, resolved, or the tree of one, as YAML that loads to the same config."""
    tree = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def flatten(config: BaseModel, *, only_given: bool = False) -> dict[str, Any]:
    """Dotted field -> value, lists and mappings of values as JSON text: what MLflow stores as params.

    Args:
        only_given: leave out what has its default.
    """
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
            for index, inner in enumerate(value):
                walk(f"{prefix}.{index}", inner)
        else:
            flat[prefix] = json.dumps(value) if isinstance(value, (list, dict)) else value

    walk("", config.model_dump(mode="json", exclude_defaults=only_given))
    return flat
