"""Likelihood of text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import file_field, rule
from bft_ray.config.tasks.base import FILE, ItemKey, RowsTask
from bft_ray.config.tasks.shared import LIKELIHOOD, NUM_ITEMS, NUM_LEFT_OUT, NUM_TRUNCATED
from bft_ray.config.wrong import WrongConfig
from bft_ray.metrics import Area, Metric

WRONG_AUROC = Metric(
    "wrong_auroc",
    "share",
    "higher",
    "area under the ROC curve of the mean NLL of a row, for rows with a wrong answer against the others",
    Area("mean_nll", "is_wrong"),
)


class TextTask(RowsTask):
    """Likelihood of plain text or of completions: NLL, perplexity, bits per byte, token accuracy."""

    METRICS: ClassVar = (*LIKELIHOOD, WRONG_AUROC, NUM_ITEMS, NUM_TRUNCATED, NUM_LEFT_OUT)
    KEY: ClassVar = ItemKey("row")

    kind: Literal["text"] = Field("text", description="what this task is")
    wrong: WrongConfig = Field(WrongConfig(), description="wrong answers on purpose: are they the hard ones?")
    path: str = file_field(description=f"{FILE}; rows of text, or of prompt and completion")

    @model_validator(mode="after")
    def _wrong_are_there(self) -> TextTask:
        if self.wrong.drop:
            raise rule("wrong.drop", True, "false in a task: rows that are left out cannot be found")
        return self

    def has(self, metric: Metric) -> bool:
        """Whether these settings measure the metric of this kind."""
        return metric is not WRONG_AUROC or self.wrong.share > 0
