"""Naming the process of a gene set."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bft_ray.config.base import file_field, seed_field
from bft_ray.config.tasks.base import FILE, NAME, Decoding, ItemKey, TaskBase
from bft_ray.config.tasks.choice import ACCURACY, PROBABILITY
from bft_ray.config.tasks.shared import NUM_EMPTY, NUM_ITEMS, NUM_TRUNCATED, ROUGE_1, ROUGE_L
from bft_ray.metrics import Metric


class NamesTask(TaskBase):
    """Naming the process of a gene set: rows of prompt and gold_name."""

    METRICS: ClassVar = (
        PROBABILITY,
        ACCURACY,
        ROUGE_L,
        ROUGE_1,
        Metric(
            "name_similarity",
            "",
            "higher",
            "cosine similarity of the generated name with the gold name under a text encoder",
        ),
        Metric(
            "name_percentile",
            "share",
            "higher",
            "share of the other candidate names that are less similar to the generated name than the gold name is",
        ),
        NUM_ITEMS,
        NUM_TRUNCATED,
        NUM_EMPTY,
    )
    KEY: ClassVar = ItemKey("question")

    kind: Literal["names"] = Field("names", description="what this task is")
    name: str = Field("names", pattern=NAME, description="prefix of its metrics")
    path: str = file_field(description=FILE)
    num_choices: int = Field(10, ge=2, description="the gold name and drawn ones, for the name choice probability")
    seed: int = seed_field(description="of the drawn names")
    prefix: str = Field("Process: ", description="text before the name in a completion")
    candidates: str | None = file_field(None, description="file of candidate names (column name); null: all gold names")
    encoder: str | None = file_field(
        None, description="text encoder (folder, hub id, or `minilm`) of the name similarity; null: ROUGE alone"
    )
    generate: bool = Field(True, description="also generate a name and score it")
    decoding: Decoding = Field(Decoding(max_new_tokens=32), description="how its answers are generated")

    @property
    def columns(self) -> dict[str, str]:
        """As of rows that training reads: the completion is the gold name."""
        return {"completion": "gold_name"}

    def has(self, metric: Metric) -> bool:
        """ROUGE needs generated names, their similarity an encoder as well; the other metrics need neither."""
        if metric.name in ("rouge_l", "rouge_1"):
            return self.generate
        return self.generate and self.encoder is not None if metric.name.startswith("name_") else True
