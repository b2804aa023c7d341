"""Likelihood of text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bft_ray.config.base import file_field
from bft_ray.config.tasks.base import FILE, ItemKey, RowsTask
from bft_ray.config.tasks.shared import LIKELIHOOD, NUM_ITEMS, NUM_LEFT_OUT, NUM_TRUNCATED


class TextTask(RowsTask):
    """Likelihood of plain text or of completions: NLL, perplexity, bits per byte, token accuracy."""

    METRICS: ClassVar = (*LIKELIHOOD, NUM_ITEMS, NUM_TRUNCATED, NUM_LEFT_OUT)
    KEY: ClassVar = ItemKey("row")

    kind: Literal["text"] = Field("text", description="what this task is")
    path: str = file_field(description=f"{FILE}; rows of text, or of prompt and completion")
