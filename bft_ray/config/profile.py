"""What a profile compares."""

from __future__ import annotations

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule


class ProfileConfig(Section):
    """The windows, epsilons and caps whose starting weights a profile compares."""

    windows: list[int] = Field(
        [16, 32, 64, 128, 256, 512, 1024, 2048], min_length=1, description="windows, in supervised tokens"
    )
    epsilons: list[float] = Field([0.01, 0.05, 0.2], min_length=1, description="epsilons of the `inverse` weight")
    caps: list[float | None] = Field(
        [2.0, 4.0, 8.0, None], min_length=1, description="caps of the `inverse` weight; null: no cap"
    )
    near: float = Field(
        0.01, gt=0, lt=1, description="settings are near when this share of the weight or less would have to move"
    )

    @model_validator(mode="after")
    def _in_range(self) -> ProfileConfig:
        for name, values in (("windows", self.windows), ("epsilons", self.epsilons), ("caps", self.caps)):
            if any(value is not None and value <= 0 for value in values):
                raise rule(name, values, "numbers above 0")
            if len(set(values)) < len(values):
                raise rule(name, values, "different numbers")
        return self
