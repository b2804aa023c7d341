"""The rows of a run: where they come from, and how they become tokens and batches."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bft_ray.config.base import Section, file_field, rule
from bft_ray.config.wrong import WrongConfig


class SourceConfig(Section):
    """One source of rows."""

    path: str = file_field(
        description="JSONL, JSON, CSV or Parquet file, saved datasets folder, hub id, or starter:DOMAIN/SPLIT"
    )
    split: str | None = Field(None, description="split of a hub dataset or saved DatasetDict")
    config_name: str | None = Field(None, description="configuration name of a hub dataset")
    revision: str | None = Field(None, description="hub revision of the dataset")
    ratio: float = Field(
        1.0, gt=0, le=1e6, description="times that this source is seen in one epoch of the mixture (0.5: half of it)"
    )
    form: str = Field(
        "auto", description="form of the rows, such as alpaca or sharegpt; auto: recognised by the columns"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="canonical field (id, group, prompt, completion, messages, tools, text, ...) -> column of the file, "
        'or a template such as "{Question}\\n\\nContext: {context}"',
    )
    limit: int | None = Field(None, ge=1, description="read at most this many rows")
    wrong: WrongConfig = Field(WrongConfig(), description="wrong answers on purpose, for studies of noise")


class DataConfig(Section):
    """The rows, how they become tokens, and how a global batch is cut into micro-batches."""

    train: list[SourceConfig] = Field(min_length=1, description="training sources")
    validation: list[SourceConfig] = Field(default_factory=list, description="sources of the validation NLL")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="chat: the tokenizer's template; plain: prompt, newline, completion; auto: chat if there is one",
    )
    max_length: int = Field(2048, ge=2, description="longest sample, in tokens")
    too_long: Literal["truncate", "drop", "error"] = Field("truncate", description="what to do with longer samples")
    global_batch_size: int = Field(16, ge=1, description="samples a step, over all workers")
    micro_batch_tokens: int = Field(
        8192, ge=2, description="token budget of a micro-batch (memory); results do not depend on it"
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="at most this many samples a micro-batch; null: no limit"
    )
    packing: bool | None = Field(
        None,
        description="lay samples end to end in one row without padding; null: where that is exact for this model, and "
        "faster (on a GPU); the choice is kept with the run or study",
    )
    shuffle: bool = Field(True, description="draw a new order each epoch, from `seed`")
    date: str | None = Field(
        None,
        description="today's date for a chat template that shows it, YYYY-MM-DD; null: that of the first start",
    )
    cache_dir: str | None = Field(None, description="folder of the tokenised data; null: ~/.cache/bft_ray")
    keep_tokens: bool = Field(
        True,
        description="keep the tokenised data there for later commands; false: nothing of the rows stays: they are in a "
        "temporary folder (in cache_dir, or else in TMPDIR) until the command ends; each command tokenises them again, and "
        "each process of another machine for itself",
    )

    @field_validator("date", mode="before")
    @classmethod
    def _date_as_text(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime.date) else value  # as YAML reads it

    @model_validator(mode="after")
    def _date_is_one(self) -> DataConfig:
        try:
            is_one = self.date is None or datetime.date.fromisoformat(self.date).isoformat() == self.date
        except ValueError:
            is_one = False
        if not is_one:
            raise rule("date", self.date, "a day of the calendar, as YYYY-MM-DD")
        return self

    @model_validator(mode="after")
    def _budget_holds_a_sample(self) -> DataConfig:
        if self.micro_batch_tokens < self.max_length:
            raise rule(
                "micro_batch_tokens",
                self.micro_batch_tokens,
                f"at least data.max_length ({self.max_length}), so that the longest sample fits into a micro-batch",
                "Raise it, or lower data.max_length.",
            )
        return self


class DataToMeasure(DataConfig):
    """The rows of an evaluation: nothing is trained on."""

    train: list[SourceConfig] = Field(default_factory=list, description="training sources; not read")
