"""Multiple choice."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bft_ray.config.tasks.base import NAME, ItemKey, RowsTask
from bft_ray.config.tasks.shared import NUM_ITEMS, NUM_TRUNCATED
from bft_ray.metrics import Mean, MeanOfMeans, Metric

PROBABILITY = Metric(
    "probability",
    "share",
    "higher",
    "softmax over length-normalised option log-likelihoods, of the right one",
)
#: its items have a column of the metric's own name where they are no choice rows
ACCURACY = Metric(
    "accuracy",
    "share",
    "higher",
    "share of items whose likeliest option (length-normalised) is the right one",
    items=Mean("correct"),
)


class ChoiceTask(RowsTask):
    """A multiple-choice set: a question, its options as a list or by letter, the answer as index, letter or text."""

    METRICS: ClassVar = (
        PROBABILITY,
        ACCURACY,
        Metric(
            "macro_accuracy", "share", "higher", "mean over subjects of the accuracy", MeanOfMeans("correct", "subject")
        ),
        Metric(
            "calibration_error",
            "share",
            "lower",
            "expected calibration error of the predicted option's probability, 10 bins",
            items=None,
        ),
        NUM_ITEMS,
        NUM_TRUNCATED,
    )
    KEY: ClassVar = ItemKey("row")

    kind: Literal["choice"] = Field("choice", description="what this task is")
    name: str = Field("choices", pattern=NAME, description="prefix of its metrics")
