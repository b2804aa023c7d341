"""What a proposed space varies, named so that its runs read what was profiled from wherever the space is run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from bft_ray.config import METHODS, Config, load_config
from bft_ray.config.base import Section
from bft_ray.config.measured import VALIDATION
from bft_ray.data.tables import resolve_path
from bft_ray.errors import BadConfig, BadInput
from bft_ray.places.addresses import redact
from bft_ray.train.pins import pin_paths

#: fields that a space has in places of its own, and those that the method of each trial decides
_NOT_FIXED = {"name", "seed", "domain", "loss.normalise", "loss.weight_cap"} | {
    f"loss.{field}" for fields in METHODS.values() for field in fields
}


def config_and_fixed(config: Config, source: str, parameters: Collection[str]) -> tuple[str, dict[str, Any]]:
    """`config` and `fixed` of a search space whose runs are those of `config`, except for its parameters.

    A file is named by its absolute path. Fixed is whatever the config has otherwise than its source: overrides, another
    model, and paths of data and models, made absolute where they exist. A value that holds a password or key is left
    out: it stays with the command that needs it.

    Args:
        source: where the config came from: recipe or YAML file. One that cannot be read without its overrides is
            replaced by the recipe `starter`, and then everything that differs from that is fixed.
        parameters: fields that the space varies.
    """
    try:
        base = load_config(source)
    except (BadConfig, BadInput):
        source, base = "starter", load_config("starter")
    if Path(source).is_file():
        source = str(Path(source).resolve())
    # results and records go where the next command sets it, as with any config
    pinned = pin_paths(config).model_copy(update={"cluster": config.cluster, "tracking": config.tracking})
    fixed = {
        name: value
        for name, value in differences(base, pinned).items()
        if name not in _NOT_FIXED and name not in parameters and redact(repr(value)) == repr(value)
    }
    return source, fixed


def differences(before: Any, after: Any, name: str = "") -> dict[str, Any]:
    """Dotted field -> plain value of `after`, wherever two configs differ."""
    if before == after:
        return {}
    if isinstance(after, Section) and type(before) is type(after):
        inner = [(field, getattr(before, field), getattr(after, field)) for field in type(after).model_fields]
    elif _are_like(before, after):
        inner = [(str(index), before[index], after[index]) for index in range(len(after))]
    else:
        return {name: _plain(after)}
    found: dict[str, Any] = {}
    for part, old, new in inner:
        found |= differences(old, new, f"{name}.{part}" if name else part)
    return found


def _are_like(before: Any, after: Any) -> bool:
    """Whether two lists hold sections of the same types, so that single fields of them can be set."""
    if not (isinstance(before, list) and isinstance(after, list)) or len(before) != len(after):
        return False
    return all(isinstance(b, Section) and type(a) is type(b) for a, b in zip(before, after, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return [_plain(each) for each in value] if isinstance(value, list) else value


def path_measured(config: Config, metric: str) -> tuple[str, str]:
    """(dotted field, path) of the one file that a metric is measured on; ("", "") where it is not one file's."""
    of = metric.split("/")[0]
    if of == VALIDATION:
        sources = config.data.validation
        return ("data.validation.0.path", sources[0].path) if len(sources) == 1 else ("", "")
    for index, task in enumerate(config.evaluation.tasks):
        if task.name == of and task.kind != "harness":
            return f"evaluation.tasks.{index}.path", task.path
    return "", ""


def sibling(path: str, split: str) -> str | None:
    """The file of another split beside one of the validation split, with the same kind of name:
    `choices_validation.jsonl` -> `choices_test.jsonl`; None where there is none.
    """
    folder, slash, name = path.rpartition("/")
    other = f"{folder}{slash}{name.replace('validation', split)}"
    if other == path:
        return None
    try:
        return other if Path(resolve_path(other)).is_file() else None
    except BadInput:  # no such starter data
        return None
