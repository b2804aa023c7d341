"""What a profile compares."""

from __future__ import annotations

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule


class ProfileConfig(Section):
    """The windows, epsilons, caps and token weights whose starting weights a profile compares."""

    windows: list[int] = Field(
        [16, 32, 64, 128, 256, 512, 1024, 2048], min_length=1, description="windows, in supervised tokens"
    )
    epsilons: list[float] = Field([0.01, 0.05, 0.2], min_length=1, description="epsilons of the `inverse` weight")
    caps: list[float | None] = Field(
        [2.0, 4.0, 8.0, None], min_length=1, description="caps of the `inverse` weight; null: no cap"
    )
    powers: list[float] = Field(
        [0.25, 0.5, 1.0, 2.0, 4.0], min_length=1, description="exponents of the `power` token weight (and of `prior`)"
    )
    thresholds: list[float] = Field(
        [0.03, 0.1, 0.3], min_length=1, description="thresholds of the `threshold` token weight"
    )
    low_confidence: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="tokens whose probability is below are of low confidence: their share and longest run",
    )
    near: float = Field(
        0.01, gt=0, lt=1, description="settings are near when this share of the weight or less would have to move"
    )

    @model_validator(mode="after")
    def _in_range(self) -> ProfileConfig:
        for name in ("windows", "epsilons", "caps", "powers", "thresholds"):
            values = getattr(self, name)
            if any(value is not None and value <= 0 for value in values):
                raise rule(name, values, "numbers above 0")
            if len(set(values)) < len(values):
                raise rule(name, values, "different numbers")
        if max(self.powers) > 4:
            raise rule("powers", self.powers, "numbers up to 4, as `loss.token_power` is")
        if max(self.thresholds) >= 1:
            raise rule("thresholds", self.thresholds, "numbers below 1: probabilities")
        return self
