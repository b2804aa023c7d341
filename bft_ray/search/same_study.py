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
from bft_ray.train import storage

#: a study goes on with a larger budget, unless it is to be the same on every repetition
_BUDGET = ("space.budget.trials", "space.budget.time_s")
#: settings of the config on which no trial depends: where things are, how much is kept; and how a run is laid out over
#: machines, which changes it by rounding alone
_FREE = (*begin.MAY_CHANGE, "checkpoint.keep", "checkpoint.every_steps")
#: of these the layout, which decides the last bits of a result: it stays where every repetition is to be the same
_LAYOUT = (
    *(f"cluster.{name}" for name in ("num_workers", "cpus_per_worker", "gpus_per_worker", "resources_per_worker")),
    *("data.micro_batch", "evaluation.batch_tokens"),
)
_STORAGE = "cluster.storage_path"
#: where a field of the config stands: in the config, or in the space, where the command line puts it
_PLACES = ("config.", "space.fixed.")
MAY_CHANGE = (
    "space.description",
    "space.config",  # where the config lies; what is in it counts
    "config.name",
    *(f"{place}{field}" for place in _PLACES for field in _FREE),
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
    is_exact = bool(new.get("space.deterministic"))
    changed = [
        f"`{field}` was {old.get(field)!r}, and is now {new.get(field)!r}"
        for field in sorted({*old, *new})
        if old.get(field) != new.get(field) and not _may_change(field, is_exact)
    ]
    if changed:
        raise BadConfig(f"the study `{study}` exists with other settings; give it another `name`. It", changed)


def _may_change(field: str, is_exact: bool) -> bool:
    if is_exact:
        return field.startswith(MAY_CHANGE) and not _is_of(field, _LAYOUT)
    return field.startswith(MAY_CHANGE + _BUDGET)


def _is_of(field: str, names: tuple[str, ...]) -> bool:
    return any(field.startswith(f"{place}{name}") for place in _PLACES for name in names)
