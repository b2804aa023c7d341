"""Single cells."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bft_ray.config.base import file_field, seed_field
from bft_ray.config.tasks.base import FILE, NAME, ItemKey, TaskBase
from bft_ray.config.tasks.shared import NUM_ITEMS
from bft_ray.metrics import Metric


class CellsTask(TaskBase):
    """Single cells as ranked gene lists: rows of cell, label, a list of genes, optional batch and group (a donor)."""

    METRICS: ClassVar = (
        Metric(
            "knn_accuracy",
            "share",
            "higher",
            "accuracy of k-nearest-neighbour classification on embeddings",
        ),
        Metric("knn_macro_f1", "share", "higher", "mean over labels of the F1 of the same classification", items=None),
        Metric(
            "ari",
            "",
            "higher",
            "adjusted Rand index of k-means clusters of embeddings and labels; 0 by chance",
            items=None,
        ),
        Metric("nmi", "share", "higher", "normalised mutual information of the same clusters and labels", items=None),
        Metric(
            "batch_silhouette",
            "share",
            "higher",
            "mixing of batches within labels: 1 - |silhouette of batches|, mean over labels",
            items=None,
        ),
        Metric(
            "ilisi", "share", "higher", "mixing of batches among neighbours: graph iLISI of scib-metrics", items=None
        ),
        Metric(
            "kbet", "share", "higher", "mixing of batches among neighbours: kBET acceptance of scib-metrics", items=None
        ),
        NUM_ITEMS,
    )
    KEY: ClassVar = ItemKey("columns", ("{genes}",))

    kind: Literal["cells"] = Field("cells", description="what this task is")
    name: str = Field("cells", pattern=NAME, description="prefix of its metrics")
    path: str = file_field(description=FILE)
    genes: str = Field("top_expressed", description="column of the ranked gene list")
    num_genes: int = Field(50, ge=1, description="genes taken from the top of the list")
    template: str = Field("A cell that expresses {genes}.", description="text of a cell, with {genes}")
    num_neighbours: int = Field(10, ge=1, description="k of the k-NN classifier")
    batch: str | None = Field(None, description="column of the batch, for the integration score")
    seed: int = seed_field(description="of folds and clusters")

    def has(self, metric: Metric) -> bool:
        """Metrics of how batches mix are measured only where `batch` names their column."""
        return self.batch is not None or metric.name not in ("batch_silhouette", "ilisi", "kbet")
