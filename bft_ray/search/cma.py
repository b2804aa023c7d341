"""CMA-ES over a search space, as a pure function of the records.

Generations are blocks of trials by number, `popsize` each, so that it does not matter who finished first. Those
blocks at the beginning that have finished are told, one after the other, and the next trial is drawn from what the
strategy has come to. Only ranks matter to CMA-ES, so a stopped trial is told too: complete trials stand before
stopped ones, these by how far they came, and failed ones last. (Optuna's own sampler leaves all but the complete ones
out, of which few are left under ASHA, and keeps its state as a pickle with every trial.)

Source: Hansen, "The CMA Evolution Strategy: A Tutorial" (2016), arXiv 1604.00772; the library is `cmaes`, which
Optuna's sampler uses as well. Parameters are scaled to [0, 1], on a logarithmic scale where the space says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bft_ray.config.ranges import FloatParameter, IntParameter
from bft_ray.config.space import SearchSpace
from bft_ray.search.record import TrialRecord

_SIGMA = 1 / 6  # of the unit interval, as in Optuna


def draw(space: SearchSpace, seed: int, records: Sequence[TrialRecord], order: dict[int, float]) -> dict[str, Any]:
    """The next assignment.

    Args:
        seed: of this draw.
        records: earlier trials, by number.
        order: number -> place among finished trials, the best lowest.
    """
    from cmaes import CMA

    names = list(space.parameters)
    strategy = CMA(
        mean=np.full(len(names), 0.5), sigma=_SIGMA, bounds=np.tile([0.0, 1.0], (len(names), 1)), seed=seed % 2**32
    )
    size = strategy.population_size
    for start in range(0, len(records) - size + 1, size):
        block = records[start : start + size]
        if not all(record.is_finished for record in block):
            break
        told = [
            (
                np.array([_to_unit(space.parameters[name], record.assignment[name]) for name in names]),
                order[record.number],
            )
            for record in block
        ]
        strategy.tell(told)
    point = strategy.ask()
    return {name: _from_unit(space.parameters[name], float(x)) for name, x in zip(names, point, strict=True)}


def _to_unit(parameter: Any, value: float) -> float:
    low, high = _ends(parameter)
    return ((math.log(value) if parameter.log else value) - low) / (high - low)


def _from_unit(parameter: Any, x: float) -> Any:
    low, high = _ends(parameter)
    value = low + x * (high - low)
    value = math.exp(value) if parameter.log else value
    if isinstance(parameter, IntParameter):
        place = round((value - parameter.low) / parameter.step)
        return min(parameter.low + place * parameter.step, parameter.high)
    assert isinstance(parameter, FloatParameter)
    values = parameter.finite()
    if values is not None:
        return min(values, key=lambda known: abs(known - value))
    return min(max(value, parameter.low), parameter.high)


def _ends(parameter: Any) -> tuple[float, float]:
    if parameter.log:
        return math.log(parameter.low), math.log(parameter.high)
    return float(parameter.low), float(parameter.high)
