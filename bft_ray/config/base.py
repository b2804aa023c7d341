"""What every config section shares: strict types, frozen values, no unknown keys, rules with a remedy."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
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
