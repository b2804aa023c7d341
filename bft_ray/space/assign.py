"""A search space and an assignment of its parameters -> the config of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bft_ray.config.load import make_config, set_field
from bft_ray.config.loss import METHODS
from bft_ray.config.tree import Config
from bft_ray.errors import BadInput
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import Baseline

#: fields of the loss that a method decides, so that choosing one takes its whole form
_OF_METHOD = {field for fields in METHODS.values() for field in fields} | {"normalise", "weight_cap"}
#: fields whose defaults follow from the form of the sample weight
_OF_FORM = {"normalise", "weight_cap"}

Assignment = Mapping[str, Any]


def config_of(base: Config, space: SearchSpace, assignment: Assignment, seed: int | None = None) -> Config:
    """The config of a trial: `base`, then `fixed`, `domain` and `budget.steps` of the space, then the assignment.

    Where one of these sets `loss.method`, the loss gets all fields of that method: those that a method decides (token and
    sample weight, confidence, aggregate, normalise, weight_cap) keep nothing from `base`. Where `loss.sample_weight` is
    set, `normalise` and `weight_cap` follow it in the same way.

    Args:
        assignment: dotted field -> value, for exactly the parameters that are active.
        seed: of the run; None: the config's own.

    Raises:
        BadInput: a parameter that is missing, unknown, inactive or out of its range.
        BadConfig: settings that the config refuses.
    """
    check_assignment(space, assignment)
    return _lay(base, space, {**space.fixed, **assignment}, seed, shown(assignment))


def baseline_config(
    base: Config, space: SearchSpace, baseline: Baseline, assignment: Assignment, seed: int | None = None
) -> Config:
    """The config of a baseline: as `config_of`, but the loss has only the baseline's fields and defaults.

    Args:
        assignment: values of the parameters outside of the loss: one of `bft_ray.space.grid.baseline_assignments`.

    Raises:
        BadConfig: settings that the config refuses.
    """
    bare = base.model_copy(update={"loss": type(base.loss)()})
    outside = {name: value for name, value in space.fixed.items() if name.partition(".")[0] != "loss"}
    values = {**outside, **assignment, "loss.method": DEFAULT_METHOD, **baseline.overrides}
    return _lay(bare, space, values, seed, f"baseline {baseline.name}")


def with_overrides(config: Config, overrides: Mapping[str, Any], source: str) -> Config:
    """A config with dotted fields set: of a run, for the confirmation or the test split.

    Raises:
        BadInput, BadConfig: an unknown field, or settings that the config refuses.
    """
    tree = config.model_dump()
    for name, value in overrides.items():
        set_field(tree, name, value)
    return make_config(tree, source)


#: method of a baseline that names none
DEFAULT_METHOD = "bft"


def _lay(base: Config, space: SearchSpace, values: Assignment, seed: int | None, source: str) -> Config:
    tree = base.model_dump()
    decided = _OF_METHOD if "loss.method" in values else _OF_FORM if "loss.sample_weight" in values else set()
    tree["loss"] = {field: value for field, value in tree["loss"].items() if field not in decided}
    for name, value in values.items():
        set_field(tree, name, value)
    if space.domain is not None:
        tree["domain"] = space.domain
    if space.budget.steps is not None:
        tree["schedule"]["steps"] = space.budget.steps
    elif "schedule.epochs" in values:
        tree["schedule"]["steps"] = None  # otherwise the epochs would have no effect
    if seed is not None:
        tree["seed"] = seed
    return make_config(tree, source)


def check_assignment(space: SearchSpace, assignment: Assignment) -> None:
    """Raise BadInput unless exactly the active parameters have values, each of its range."""
    needed = active(space, assignment)
    for name, value in assignment.items():
        if name not in space.parameters:
            raise BadInput(name, value, "left out: the space does not vary it")
        if name not in needed:
            raise BadInput(name, value, f"left out unless {_condition(space, name)}")
        if not space.parameters[name].holds(value):
            raise BadInput(name, value, f"one of the values of the space: {space.parameters[name].ends()}")
    for name in needed:
        if name not in assignment:
            raise BadInput(name, None, "given: the space varies it here")


def active(space: SearchSpace, assignment: Assignment) -> list[str]:
    """Names of the parameters that exist under the values of those that conditions name, parents first."""
    found: list[str] = []
    for name in space.ordered():
        when = space.parameters[name].when
        if all(parent in found and assignment.get(parent) in wanted for parent, wanted in when.items()):
            found.append(name)
    return found


def shown(assignment: Assignment) -> str:
    """`loss.window=64, optimizer.learning_rate=0.001`."""
    return ", ".join(f"{name}={value}" for name, value in assignment.items()) or "the config as it is"


def _condition(space: SearchSpace, name: str) -> str:
    return " and ".join(f"{parent} is in {wanted}" for parent, wanted in space.parameters[name].when.items())
