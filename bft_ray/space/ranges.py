"""The values that a parameter of a search space can take."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule

_SCALARS = (bool, int, float, str, type(None))
_LARGEST = 10_000  # an int range with more values counts as endless: nobody runs its grid


class _ParameterBase(Section):
    """What all parameters have."""

    when: dict[str, list[Any]] = Field(
        default_factory=dict, description="other parameters -> their values under which this one exists"
    )

    @model_validator(mode="after")
    def _when_says_something(self) -> _ParameterBase:
        for parent, values in self.when.items():
            if not values:
                raise rule(f"when.{parent}", values, "a list of values", "Leave the condition out.")
        return self


class CategoricalParameter(_ParameterBase):
    """One of some values, in no order."""

    kind: Literal["categorical"] = Field("categorical", description="what this parameter is")
    values: list[Any] = Field(min_length=1, description="text, numbers, true, false or null")

    @model_validator(mode="after")
    def _scalars_that_differ(self) -> CategoricalParameter:
        for index, value in enumerate(self.values):
            if not isinstance(value, _SCALARS) or (isinstance(value, float) and not math.isfinite(value)):
                raise rule(f"values.{index}", value, "text, a finite number, true, false or null")
            if any(same(value, earlier) for earlier in self.values[:index]):
                raise rule(f"values.{index}", value, "given once")
        return self

    def finite(self) -> list[Any] | None:
        """All values."""
        return list(self.values)

    def ends(self) -> list[Any]:
        """Values that stand for all: every one."""
        return list(self.values)

    def holds(self, value: Any) -> bool:
        """Whether it is a value of this parameter."""
        return any(same(value, known) for known in self.values)


class IntParameter(_ParameterBase):
    """A whole number of a range, both ends included."""

    kind: Literal["int"] = Field("int", description="what this parameter is")
    low: int = Field(description="smallest value")
    high: int = Field(description="largest value")
    log: bool = Field(False, description="draw evenly on a logarithmic scale")
    step: int = Field(1, ge=1, description="distance of two values")

    @model_validator(mode="after")
    def _is_a_range(self) -> IntParameter:
        _check_range(self.low, self.high, self.log, None if self.step == 1 else self.step)
        return self

    def finite(self) -> list[int] | None:
        """All values; None where there are too many to run them all."""
        values = range(self.low, self.high + 1, self.step)
        return list(values) if len(values) <= _LARGEST else None

    def ends(self) -> list[int]:
        """Values that stand for all: the least and the largest."""
        return [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Whether it is a value of this parameter."""
        return type(value) is int and self.low <= value <= self.high and (value - self.low) % self.step == 0


class FloatParameter(_ParameterBase):
    """A number of a range, both ends included."""

    kind: Literal["float"] = Field("float", description="what this parameter is")
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    log: bool = Field(False, description="draw evenly on a logarithmic scale")
    step: float | None = Field(None, gt=0, description="distance of two values; null: any value of the range")

    @model_validator(mode="after")
    def _is_a_range(self) -> FloatParameter:
        _check_range(self.low, self.high, self.log, self.step)
        return self

    def finite(self) -> list[float] | None:
        """All values, in decimal arithmetic (0.3, not 0.30000000000000004); None without a `step`."""
        if self.step is None:
            return None
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        count = int((high - low) / step) + 1
        return [float(low + place * step) for place in range(count)] if count <= _LARGEST else None

    def ends(self) -> list[float]:
        """Values that stand for all: the least and the largest."""
        return [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Whether it is a value of this parameter; with a `step`, to rounding."""
        if not is_number(value) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        place = (value - self.low) / self.step
        return math.isclose(place, round(place), abs_tol=1e-6)


Parameter = Annotated[CategoricalParameter | IntParameter | FloatParameter, Field(discriminator="kind")]


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    if not low < high:
        raise rule("high", high, f"above low ({low})", "Give one value as a field of `fixed`.")
    if log and low <= 0:
        raise rule("low", low, "above 0 on a logarithmic scale", "Raise it, or leave `log` out.")
    if log and step is not None:
        raise rule("step", step, "left out on a logarithmic scale", "Give `values` of a categorical parameter.")
    if step is not None and (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) != 0:
        raise rule("step", step, f"a whole part of high - low ({high} - {low})", "Move `high`.")


def same(a: Any, b: Any) -> bool:
    """Equal and of one kind: `true` is not 1, while 1 is 1.0."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def is_number(value: Any) -> bool:
    """Whether it is a number; `true` is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
