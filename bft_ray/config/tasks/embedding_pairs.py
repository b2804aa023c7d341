"""Gene interaction from embeddings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import file_field, rule, seed_field
from bft_ray.config.tasks.base import FILE, NAME, Decoding, TaskBase
from bft_ray.config.tasks.pairs import PAIR
from bft_ray.config.tasks.shared import NUM_EMPTY, NUM_ITEMS
from bft_ray.metrics import Area, Metric


class EmbeddingPairsTask(TaskBase):
    """Gene interaction from embeddings: pairs of described genes, split by genes."""

    METRICS: ClassVar = (
        Metric(
            "embedding_auroc",
            "share",
            "higher",
            "area under the ROC curve of a logistic regression on embeddings of pairs, split by genes",
            Area("score"),
        ),
        Metric(
            "embedding_auprc",
            "share",
            "higher",
            "average precision of the same logistic regression",
            Area("score", curve="precision_recall"),
        ),
        Metric(
            "embedding_auroc_mlp",
            "share",
            "higher",
            "area under the ROC curve of an MLP in its place",
            Area("score_mlp"),
        ),
        Metric(
            "embedding_auprc_mlp",
            "share",
            "higher",
            "average precision of the MLP",
            Area("score_mlp", curve="precision_recall"),
        ),
        Metric("num_train_pairs", "items", "none", "pairs that the classifiers were fitted to"),
        Metric("num_dropped", "items", "none", "training pairs left out because a gene of theirs is tested on"),
        Metric("num_undescribed", "items", "none", "pairs left out because a gene of theirs has no text"),
        Metric("num_self_pairs", "items", "none", "pairs left out because they are of a gene with itself"),
        NUM_ITEMS,
        NUM_EMPTY,
    )
    KEY: ClassVar = PAIR

    kind: Literal["embedding_pairs"] = Field("embedding_pairs", description="what this task is")
    name: str = Field("described_pairs", pattern=NAME, description="prefix of its metrics")
    descriptions: str = file_field(description=f"{FILE}; rows of gene and description")
    train: str = file_field(description=f"{FILE}; pairs (gene_a, gene_b, label) to fit the classifiers on")
    path: str = file_field(description=f"{FILE}; pairs to test them on; no gene of theirs is trained on")
    source: Literal["hidden", "generated"] = Field(
        "hidden", description="hidden: the model's hidden states; generated: `encoder` over the model's descriptions"
    )
    encoder: str | None = file_field(
        None, description="text encoder (folder, hub id, or `minilm`) for source generated"
    )
    template: str = Field("Describe the gene {gene}.", description="prompt with {gene}, for source generated")
    seed: int = seed_field(description="of the classifiers")
    decoding: Decoding = Field(Decoding(max_new_tokens=128), description="how its answers are generated")

    @model_validator(mode="after")
    def _encoder_given(self) -> EmbeddingPairsTask:
        if self.source == "generated" and self.encoder is None:
            raise rule("encoder", None, "a text encoder when source is generated", "Give a folder or hub id.")
        return self
