"""Statements about arms of a confirmation, which a study judges beside its choice."""

from __future__ import annotations

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule


class Claim(Section):
    """A statement about two baselines. Its verdict changes neither the choice nor what runs."""

    better: str = Field(description="name of the baseline that is said to be better")
    than: str = Field(description="name of the other one")
    by_at_most: float | None = Field(
        None,
        gt=0,
        description="null: it is better beyond noise; a bound, in the metric's unit: it is better by no more than this",
    )
    metric: str | None = Field(
        None,
        description="null: that of the objective; another metric that the runs measure, such as general/bits_per_byte",
    )

    @model_validator(mode="after")
    def _two(self) -> Claim:
        if self.better == self.than:
            raise rule("than", self.than, "another baseline than `better`")
        return self

    def __str__(self) -> str:
        bound = "" if self.by_at_most is None else f" by {self.by_at_most:g} at most"
        where = "" if self.metric is None else f" in {self.metric}"
        return f"`{self.better}` is better than `{self.than}`{bound}{where}"
