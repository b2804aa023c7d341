"""The result of a check of the doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from bft_ray.errors import BadConfig, BadInput
from bft_ray.places.addresses import redact

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check: a `fail` would stop a run, a `warn` may be unexpected; both have a remedy."""

    check: str
    status: Status
    detail: str
    remedy: str = ""


def from_error(name: str, error: Exception) -> Finding:
    """A failing finding from an error with field, value, rule and remedy."""
    text, remedy = redact(str(error)), getattr(error, "remedy", "")
    return Finding(name, "fail", text.removesuffix(f" {redact(remedy)}") if remedy else text, redact(remedy))


def alone(name: str, check: Callable[[], str]) -> Iterable[Finding]:
    """Run one of several checks of a kind: its error must not hide those of the others."""
    try:
        yield Finding(name, "ok", check())
    except (BadInput, BadConfig) as error:
        yield from_error(name, error)
