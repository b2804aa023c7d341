"""Generated answers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bft_ray.config.tasks.base import Decoding, ItemKey, RowsTask
from bft_ray.config.tasks.shared import NUM_EMPTY, NUM_ITEMS, ROUGE_L
from bft_ray.metrics import Metric


class GenerationTask(RowsTask):
    """Generated answers against gold ones: rows of prompt and completion, or of messages that end with an answer."""

    METRICS: ClassVar = (
        Metric("exact_match", "share", "higher", "share of generated answers that equal the gold answer"),
        Metric("token_f1", "share", "higher", "F1 of the words that generated and gold answer share (SQuAD)"),
        ROUGE_L,
        Metric("answer_tokens", "tokens", "none", "mean tokens of a generated answer"),
        Metric("num_unparsed", "items", "none", "generated answers without a final answer; they count as wrong"),
        NUM_ITEMS,
        NUM_EMPTY,
    )
    KEY: ClassVar = ItemKey("question")

    kind: Literal["generation"] = Field("generation", description="what this task is")
    answer: Literal["final", "yes_no_maybe", "text"] = Field(
        "text",
        description="what exact match compares: the number after ####, the first yes/no/maybe, or the whole text",
    )
    decoding: Decoding = Field(Decoding(), description="how its answers are generated")
