"""What a task of an evaluation is: its fields, and what else its kind declares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import Section, file_field, rule
from bft_ray.metrics import Metric

NAME = r"^[a-z0-9_]+$"
FILE = "JSONL, JSON, CSV or Parquet file, or starter:DOMAIN/SPLIT"


@dataclass(frozen=True)
class ItemKey:
    """What makes two items of a kind the same, so that two splits of a study may not both hold them.

    Args:
        of: `row`: all that the row holds; `question`: what is asked; `columns`: the text of these columns.
        columns: of the table; a name in braces is a field of the task, whose value is the column.
        is_unordered: the columns may change places.
    """

    of: Literal["row", "question", "columns"]
    columns: tuple[str, ...] = ()
    is_unordered: bool = False


class TaskBase(Section):
    """What all tasks have, and what a kind declares: its metrics, and the key of its items."""

    METRICS: ClassVar[tuple[Metric, ...]]
    KEY: ClassVar[ItemKey | None] = None  # None: what is measured is no file of the user's

    name: str = Field(pattern=NAME, description="prefix of its metrics")
    limit: int | None = Field(None, ge=1, description="use at most this many items")

    def judged(self) -> list[str]:
        """Full names of the metrics with a better and a worse direction that these settings measure."""
        return [f"{self.name}/{metric.name}" for metric in self.METRICS if metric.is_judged and self.has(metric)]

    def has(self, metric: Metric) -> bool:
        """Whether these settings measure the metric of this kind."""
        return True

    def measured_on(self) -> list[Any]:
        """What is measured, equal for equal files. How many items are used does not count: two looks at parts of one
        file may see the same ones.
        """
        return [getattr(self, name, None) for name in ("path", "split", "config_name", "revision")]


class RowsTask(TaskBase):
    """A task over rows of the forms that training reads."""

    path: str = file_field(description=f"{FILE}, saved datasets folder or hub id")
    split: str | None = Field(None, description="split of a hub dataset or saved DatasetDict")
    config_name: str | None = Field(None, description="configuration name of a hub dataset")
    revision: str | None = Field(None, description="hub revision of the dataset")
    form: str = Field(
        "auto", description="form of the rows, such as medqa or sharegpt; auto: recognised by the columns"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="canonical field -> column of the file, or a template; as in data.train"
    )


class Decoding(Section):
    """How text is generated."""

    max_new_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    temperature: float = Field(0.0, ge=0, description="of sampling; 0 takes the likeliest token (greedy)")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens of this total probability")
    num_samples: int = Field(1, ge=1, description="answers an item; metrics are means over them")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="what generates; vllm when installed")

    @model_validator(mode="after")
    def _samples_differ(self) -> Decoding:
        if self.num_samples > 1 and self.temperature == 0:
            raise rule("num_samples", self.num_samples, "1 when temperature is 0", "Greedy answers are all the same.")
        return self
