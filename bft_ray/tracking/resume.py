"""What may change when a run or a study is resumed, and what has changed: one rule for `train`, `search` and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Fields of the config on which no result depends: where things are, how much is kept, and how a run is laid out over
#: machines (which changes it by rounding alone).
MAY_CHANGE = (
    "cluster.",
    "deepspeed.preset",
    "deepspeed.offload",
    "tracking.",
    "data.cache_dir",
    "data.keep_tokens",
    "data.micro_batch",
    "evaluation.batch_tokens",
    "checkpoint.keep",
    "checkpoint.every_steps",
)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], may_change: tuple[str, ...]) -> list[str]:
    """Names of the fields that differ, sorted, without those that begin with one of `may_change`."""
    differ = (field for field in {*old, *new} if old.get(field) != new.get(field))
    return sorted(field for field in differ if not field.startswith(may_change))


def describe_change(field: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """One changed field as a line of an error; fingerprints with their first digits alone."""
    return f"`{field}` was {_shown(_at(field, old))}, and is now {_shown(_at(field, new))}"


def _at(field: str, flat: Mapping[str, Any]) -> Any:
    """The value of a field; of a mapping, which stands there field by field, those below it."""
    below = {name[len(field) + 1 :]: value for name, value in flat.items() if name.startswith(f"{field}.")}
    return flat.get(field, below or None)


def _shown(value: Any) -> str:
    is_digest = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
    return repr(f"{value[:12]}..." if is_digest else value)
