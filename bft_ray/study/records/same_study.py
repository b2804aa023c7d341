"""What makes a study the same study, so that a driver resumes it and adds no trials of other settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bft_ray.config import Config, flatten
from bft_ray.errors import BadConfig
from bft_ray.places import storage
from bft_ray.places.addresses import redact_tree
from bft_ray.space.definition import SearchSpace
from bft_ray.tracking import resume

#: a study can be resumed with a larger budget, unless every repetition must give the same result
_BUDGET = ("space.budget.trials", "space.budget.time_s", "space.budget.worker_hours")
#: fields that a run may change, though they change the last bits of a result: not where every repetition must be the same
_LAYOUT_FIELDS = (
    "cluster.num_workers",
    "cluster.min_workers",
    "cluster.cpus_per_worker",
    "cluster.gpus_per_worker",
    "cluster.resources_per_worker",
    "data.micro_batch",
    "evaluation.batch_tokens",
    "deepspeed.preset",
    "deepspeed.offload",
)
_STORAGE = "cluster.storage_path"
#: a field of the config is set in the config, or in the space, where the command line sets it
_PLACES = ("config.", "space.fixed.")
_LAYOUT = tuple(f"{place}{field}" for place in _PLACES for field in _LAYOUT_FIELDS)
MAY_CHANGE = (
    "space.description",
    "space.claims",  # judged when all runs have ended
    "space.confirmation.register_champion",
    "space.config",  # the path of the config; its contents count
    "config.name",
    *(f"{place}{field}" for place in _PLACES for field in resume.MAY_CHANGE),
)


def study_settings(space: SearchSpace, base: Config, data: Mapping[str, str]) -> dict[str, Any]:
    """Every setting that decides what the trials of a study are, as flat fields without passwords.

    `cluster.storage_path` is among them, as an absolute path, wherever it was given: the folder holds weights and paused
    trials, which a study with another path would lose.

    Args:
        data: use (train, validation, model ...) -> fingerprint of the tokenised data, of the base weights.
    """
    flat = {f"space.{name}": value for name, value in flatten(space).items()}
    flat |= {f"config.{name}": value for name, value in flatten(base).items()}
    flat.pop("space.fixed", None)  # an empty mapping: a field that may change may be added
    flat |= {f"data.{use}": fingerprint for use, fingerprint in data.items()}
    flat[_STORAGE] = storage.absolute(flat.get(f"space.fixed.{_STORAGE}", base.cluster.storage_path))
    return redact_tree(flat)


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
