"""What makes a study the same study, so that a driver goes on with it and mixes no other trials into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bft_ray.config import Config, flatten
from bft_ray.errors import BadConfig
from bft_ray.places import storage
from bft_ray.space.definition import SearchSpace
from bft_ray.tracking import resume
from bft_ray.tracking.server import redact

#: a study goes on with a larger budget, unless it is to be the same on every repetition
_BUDGET = ("space.budget.trials", "space.budget.time_s")
#: what may change in a run and yet decides the last bits of a result: it stays where every repetition is to be the same
_LAYOUT_FIELDS = (
    *(f"cluster.{name}" for name in ("num_workers", "cpus_per_worker", "gpus_per_worker", "resources_per_worker")),
    *("data.micro_batch", "evaluation.batch_tokens"),
)
_STORAGE = "cluster.storage_path"
#: where a field of the config stands: in the config, or in the space, where the command line puts it
_PLACES = ("config.", "space.fixed.")
_LAYOUT = tuple(f"{place}{field}" for place in _PLACES for field in _LAYOUT_FIELDS)
MAY_CHANGE = (
    "space.description",
    "space.config",  # where the config lies; what is in it counts
    "config.name",
    *(f"{place}{field}" for place in _PLACES for field in resume.MAY_CHANGE),
)


def study_settings(space: SearchSpace, base: Config, data: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides what the trials of a study are, flat; without passwords.

    Where its files lie (`cluster.storage_path`, absolute) stands there as it holds, wherever it was given: weights
    and paused trials lie there, and would be lost elsewhere.

    Args:
        data: use (train, validation, model ...) -> fingerprint of the tokenised data, of the base weights.
    """
    flat = {f"space.{name}": value for name, value in flatten(space).items()}
    flat |= {f"config.{name}": value for name, value in flatten(base).items()}
    flat.pop("space.fixed", None)  # that nothing is fixed: some of what may be may change
    flat |= {f"data.{use}": fingerprint for use, fingerprint in data.items()}
    flat[_STORAGE] = storage.absolute(flat.get(f"space.fixed.{_STORAGE}", base.cluster.storage_path))
    return json.loads(redact(json.dumps(flat)))


def refuse_others(study: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise BadConfig with each setting that has changed and may not."""
    if new.get("space.deterministic"):
        layout = {field for field in {*old, *new} if field.startswith(_LAYOUT) and old.get(field) != new.get(field)}
        changed = sorted({*resume.changed_fields(old, new, MAY_CHANGE), *layout})
    else:
        changed = resume.changed_fields(old, new, MAY_CHANGE + _BUDGET)
    if changed:
        lines = [resume.describe_change(field, old, new) for field in changed]
        raise BadConfig(f"the study `{study}` exists with other settings; give it another `name`. It", lines)
