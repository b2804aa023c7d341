"""Yes or no about pairs of genes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import file_field, rule
from bft_ray.config.tasks.base import FILE, NAME, ItemKey, TaskBase
from bft_ray.config.tasks.shared import NUM_ITEMS, NUM_TRUNCATED
from bft_ray.metrics import Area, Metric

#: the order of the two genes does not change the question
PAIR = ItemKey("columns", ("gene_a", "gene_b"), is_unordered=True)


class PairsTask(TaskBase):
    """A yes/no question about pairs: rows of gene_a, gene_b, label (0 or 1)."""

    METRICS: ClassVar = (
        Metric(
            "auroc", "share", "higher", "area under the ROC curve of the yes/no likelihood over pairs", Area("score")
        ),
        Metric(
            "auprc",
            "share",
            "higher",
            "average precision of the yes/no likelihood over pairs",
            Area("score", curve="precision_recall"),
        ),
        NUM_ITEMS,
        NUM_TRUNCATED,
    )
    KEY: ClassVar = PAIR

    kind: Literal["pairs"] = Field("pairs", description="what this task is")
    name: str = Field("pairs", pattern=NAME, description="prefix of its metrics")
    path: str = file_field(description=FILE)
    question: str = Field(
        "Do the genes {gene_a} and {gene_b} interact?", description="template with {gene_a} and {gene_b}"
    )
    yes: str = Field("yes", min_length=1, description="answer of label 1")
    no: str = Field("no", min_length=1, description="answer of label 0")

    @model_validator(mode="after")
    def _both_genes(self) -> PairsTask:
        if "{gene_a}" not in self.question or "{gene_b}" not in self.question:
            raise rule("question", self.question, "a template with {gene_a} and {gene_b}")
        if self.yes.strip() == self.no.strip():
            raise rule("no", self.no, "another answer than `yes`: the same one says nothing of a pair")
        return self
