"""Biomedical sub-domains: what each is judged by; needs neither torch nor ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Domain:
    """A sub-domain.

    Args:
        name: as in configs and MLflow experiments (`bft/<name>`).
        title: for people.
        headline: name of the metric that decides (see `bft_ray.metrics`).
        metrics: names of the further metrics of its evaluation.
    """

    name: str
    title: str
    headline: str
    metrics: tuple[str, ...] = ()


def domain(name: str) -> Domain:
    """The domain of this name; for a user's own one a generic domain, judged by its validation token
    accuracy.
    """
    if name in DOMAINS:
        return DOMAINS[name]
    return Domain(
        name=name,
        title=name.replace("_", " "),
        headline="validation/token_accuracy",
        metrics=("validation/nll", "validation/bits_per_byte"),
    )


DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Domain(
                name="medical_qa",
                title="medical question answering",
                headline="choices/probability",
                metrics=("choices/accuracy", "validation/token_accuracy", "validation/nll"),
            ),
            Domain(
                name="gene_interaction",
                title="gene functions and interactions",
                headline="pairs/auroc",
                metrics=("described_pairs/embedding_auroc", "validation/token_accuracy"),
            ),
            Domain(
                name="biological_process",
                title="naming the process of a gene set",
                headline="names/probability",
                metrics=("names/name_similarity", "validation/token_accuracy"),
            ),
            Domain(
                name="cell_type",
                title="cell type annotation",
                headline="cell_types/probability",
                metrics=("validation/token_accuracy", "cells/knn_accuracy"),
            ),
            Domain(
                name="math",
                title="mathematics word problems",
                headline="validation/token_accuracy",
                metrics=("solutions/exact_match", "validation/nll"),
            ),
        )
    }
)
