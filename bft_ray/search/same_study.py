"""What makes a study the same study, so that a driver goes on with it and mixes no other trials into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bft_ray.config import Config, flatten
from bft_ray.config.space import SearchSpace
from bft_ray.errors import BadConfig
from bft_ray.tracking import begin
from bft_ray.tracking.server import redact

#: a study goes on with a larger budget, unless it is to be the same on every repetition
_BUDGET = ("space.budget.trials", "space.budget.time_s")
#: settings on which no trial depends: a study goes on with others
MAY_CHANGE = (
    "space.description",
    "space.config",  # where the config lies; what is in it counts
    "config.name",
    *(f"config.{field}" for field in begin.MAY_CHANGE),
)


def study_settings(space: SearchSpace, base: Config, data: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides what the trials of a study are, flat; without passwords.

    Args:
        data: use (train, validation ...) -> fingerprint of the tokenised data.
    """
    flat = {f"space.{name}": value for name, value in flatten(space).items()}
    flat |= {f"config.{name}": value for name, value in flatten(base).items()}
    flat |= {f"data.{use}": fingerprint for use, fingerprint in data.items()}
    return json.loads(redact(json.dumps(flat)))


def refuse_others(study: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise BadConfig with each setting that has changed and may not."""
    may_change = MAY_CHANGE if new.get("space.deterministic") else MAY_CHANGE + _BUDGET
    changed = [
        f"`{field}` was {old.get(field)!r}, and is now {new.get(field)!r}"
        for field in sorted({*old, *new})
        if old.get(field) != new.get(field) and not field.startswith(may_change)
    ]
    if changed:
        raise BadConfig(f"the study `{study}` exists with other settings; give it another `name`. It", changed)
