"""Parameters of a search space as Optuna's distributions, and the conversion of their values."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from bft_ray.space.definition import SearchSpace
from bft_ray.space.ranges import CategoricalParameter, FloatParameter, Parameter, same


def distributions_of(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Name of each parameter -> its distribution, in the order of the space."""
    return {name: _distribution_of(parameter) for name, parameter in space.parameters.items()}


def encode(parameter: Parameter, value: Any) -> Any:
    """A value of the parameter as a value of its distribution: as text where Optuna would treat two of them as one (true and
    1, false and 0).
    """
    if isinstance(parameter, CategoricalParameter) and len(set(parameter.values)) < len(parameter.values):
        return repr(value)
    return value


def draw(trial: Trial, name: str, parameter: Parameter) -> Any:
    """What the trial's sampler suggests for the parameter."""
    if isinstance(parameter, CategoricalParameter):
        return decode(
            parameter, trial.suggest_categorical(name, [encode(parameter, value) for value in parameter.values])
        )
    if isinstance(parameter, FloatParameter):
        value = trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)
        return decode(parameter, value)
    return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def decode(parameter: Parameter, value: Any) -> Any:
    """A value of the distribution as a value of the parameter: exactly one of those that the space names, if it names any."""
    if isinstance(parameter, CategoricalParameter):
        return next(known for known in parameter.values if same(encode(parameter, known), value))
    if isinstance(parameter, FloatParameter):
        values = parameter.finite()  # 0.3, where steps of 0.1 come to 0.30000000000000004
        return float(value) if values is None else min(values, key=lambda known: abs(known - value))
    return int(value)


def _distribution_of(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, CategoricalParameter):
        return CategoricalDistribution([encode(parameter, value) for value in parameter.values])
    if isinstance(parameter, FloatParameter):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
