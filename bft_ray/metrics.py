"""What a metric is: its name, unit, direction, meaning, and how the records of items make it. All metrics together are in
`bft_ray.config.metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Mean:
    """The mean over items of a column of their records.

    Args:
        column: null: of the metric's own name.
        may_lack: items may be without it, because another model did not judge them; see `bft_ray.study.confirm.items`.
    """

    column: str | None = None
    may_lack: bool = False


@dataclass(frozen=True)
class Ratio:
    """factor * sum(top) / sum(bottom), of two columns."""

    top: str
    bottom: str
    factor: float = 1.0


@dataclass(frozen=True)
class Area:
    """Area under a curve of a column of scores, for a column of labels 0 and 1: the ROC curve, or that of precision and recall
    (as the average precision)."""

    score: str
    label: str = "label"
    curve: Literal["roc", "precision_recall"] = "roc"


@dataclass(frozen=True)
class MeanOfMeans:
    """Mean over the values of `by` of the mean of a column."""

    column: str
    by: str


@dataclass(frozen=True)
class Metric:
    """What a metric means.

    Args:
        name: full name, or a pattern in which `<set>` is the name of an evaluation set and `<tag>` one of its tags
            ([a-z0-9_]+; a tag has letters of all scripts). A kind of task declares it without its own set's name.
        unit: of the value; "" for a pure number, "share" for a number in [0, 1].
        direction: which way is better; "none" where neither is.
        help: one line.
        items: how records of items make it; None where they cannot, so that no interval can be paired by item.
    """

    name: str
    unit: str
    direction: Literal["higher", "lower", "none"]
    help: str
    items: Mean | Ratio | Area | MeanOfMeans | None = Mean()

    @property
    def is_judged(self) -> bool:
        """Whether one way of it is better."""
        return self.direction != "none"
