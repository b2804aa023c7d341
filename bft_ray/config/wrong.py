"""Wrong answers on purpose."""

from __future__ import annotations

from pydantic import Field

from bft_ray.config.base import Section


class WrongConfig(Section):
    """Wrong answers on purpose, known by id: what they do to a training, and whether they are found, can then be measured."""

    share: float = Field(0.0, ge=0, lt=1, description="share of the rows that get the completion of another row")
    drop: bool = Field(False, description="leave those rows out instead: what finding all of them would gain")
