"""What every config section shares: strict types, frozen values, no unknown keys, rules with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A frozen, strict part of the config: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def rule(field: str, value: Any, must_be: str, remedy: str = "") -> PydanticCustomError:
    """The error of a rule between fields; `field` is relative to the section that raises it."""
    return PydanticCustomError(
        "bft_rule",
        "{must_be}",
        {"field": field, "value": repr(value), "must_be": must_be, "remedy": remedy},
    )


#: below it is every seed: what scikit-learn and numpy's RandomState take
MAX_SEED = 2**32


def seed_field(default: int = 0, *, description: str) -> Any:
    """A field that is a seed."""
    return Field(default, ge=0, lt=MAX_SEED, description=description)


def file_field(default: Any = ..., *, description: str) -> Any:
    """A field that names a file or folder to read (or something of the hub)."""
    return Field(default, description=description, json_schema_extra={"format": "path"})


def folder_field(default: Any = ..., *, description: str) -> Any:
    """A field that names a folder to write to."""
    return Field(default, description=description, json_schema_extra={"format": "directory-path"})


def inputs_of(section: Section) -> list[str]:
    """Names of the fields of a section that name what is read, sorted."""
    return _of_format(section, "path")


def paths_of(section: Section) -> list[str]:
    """Names of the fields of a section that name files or folders, sorted."""
    return _of_format(section, "path", "directory-path")


def _of_format(section: Section, *formats: str) -> list[str]:
    extras = {name: field.json_schema_extra for name, field in type(section).model_fields.items()}
    return sorted(
        name for name, extra in extras.items() if isinstance(extra, Mapping) and extra.get("format") in formats
    )
