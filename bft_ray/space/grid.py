"""All combinations of a finite search space, those that stand for an endless one, and what baselines are tuned over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from bft_ray.space.assign import active
from bft_ray.space.definition import LEARNING_RATE, SearchSpace


def grid(space: SearchSpace) -> Iterator[dict[str, Any]]:
    """Every assignment of a finite space, in the order of its parameters and their values; conditions are applied."""
    assert all(one.finite() is not None for one in space.parameters.values()), "SearchSpace refuses such a grid"
    yield from _assignments(space)


def num_combinations(space: SearchSpace) -> int | None:
    """How many assignments `grid` has, computed without listing them; None where a parameter is continuous."""
    if any(parameter.finite() is None for parameter in space.parameters.values()):
        return None
    parents = _parents(space)
    sizes = {name: len(parameter.finite() or []) for name, parameter in space.parameters.items()}
    return sum(
        math.prod(sizes[name] for name in active(space, chosen) if name not in parents)
        for chosen in _assignments(space, only=parents)
    )


def num_trials(space: SearchSpace) -> int:
    """How many trials the search proposes, duplicates included: the budget, or the whole grid if that is smaller."""
    trials = space.budget.trials
    if trials is not None and space.sampler.kind != "grid":
        return trials
    combinations = num_combinations(space)
    assert combinations is not None  # a grid is finite, and only it may be without a number of trials
    return combinations if trials is None else min(trials, combinations)


def representatives(space: SearchSpace, at_most: int) -> list[dict[str, Any]]:
    """All assignments where they are at most so many; else, under each value of the conditions, every parameter at
    each of its ends while the others stand at their first.
    """
    count = num_combinations(space)
    if count is not None and count <= at_most:
        return list(grid(space))
    found: list[dict[str, Any]] = []
    for chosen in _assignments(space, only=_parents(space)):
        names = active(space, chosen)
        first = {name: chosen.get(name, space.parameters[name].ends()[0]) for name in names}
        found.append(first)
        for name in names:
            if name not in chosen:
                found += [first | {name: value} for value in space.parameters[name].ends()[1:]]
    return found


def baseline_assignments(space: SearchSpace) -> list[dict[str, Any]]:
    """What each baseline is tuned over: all combinations of the parameters outside of the loss, the learning rate
    from `learning_rates` where those are given.
    """
    outside = [name for name in space.parameters if not name.startswith("loss.")]

    def values(name: str) -> list[Any]:
        if name == LEARNING_RATE and space.learning_rates is not None:
            return space.learning_rates
        return space.parameters[name].finite() or []

    found = []
    for combination in itertools.product(*(values(name) for name in outside)):
        chosen = dict(zip(outside, combination, strict=True))
        names = [name for name in active(space, chosen) if name in outside]
        kept = {name: chosen[name] for name in names}
        if kept not in found:
            found.append(kept)
    return found


def _parents(space: SearchSpace) -> set[str]:
    return {parent for parameter in space.parameters.values() for parent in parameter.when}


def _assignments(space: SearchSpace, only: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Assignments of all parameters, or of `only` some that holds all parents of its members; an endless parameter has
    its two ends.
    """
    names = [name for name in space.ordered() if only is None or name in only]

    def extend(place: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if place == len(names):
            yield chosen
            return
        name = names[place]
        if name not in active(space, chosen):
            yield from extend(place + 1, chosen)
            return
        parameter = space.parameters[name]
        for value in parameter.finite() or parameter.ends():
            yield from extend(place + 1, chosen | {name: value})

    yield from extend(0, {})
