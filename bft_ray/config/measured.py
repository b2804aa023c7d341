"""Which metrics a config measures, and on which data each."""

from __future__ import annotations

import json
from typing import Any

from bft_ray.config.tree import Config

VALIDATION = "validation"
_LIKELIHOOD = ("nll", "perplexity", "token_accuracy", "bits_per_byte")
#: kind of task -> judged metrics of its set
_OF_KIND: dict[str, tuple[str, ...]] = {
    "text": _LIKELIHOOD,
    "choice": ("probability", "accuracy", "macro_accuracy", "calibration_error"),
    "pairs": ("auroc", "auprc"),
    "generation": ("exact_match", "token_f1", "rouge_l"),
    "names": ("probability", "accuracy"),
    "embedding_pairs": ("embedding_auroc", "embedding_auprc", "embedding_auroc_mlp", "embedding_auprc_mlp"),
    "cells": ("knn_accuracy", "knn_macro_f1", "ari", "nmi"),
    "rubric": ("rubric_score",),
}
#: of these, the ones that are no mean over items, nor can be linearised to one: no interval can be paired by item
_WHOLE = {
    *("perplexity", "calibration_error", "auprc", "embedding_auprc", "embedding_auprc_mlp"),
    *("knn_macro_f1", "ari", "nmi", "batch_silhouette", "ilisi", "kbet"),
}


def has_item_scores(metric: str) -> bool:
    """Whether a metric can be confirmed: told item by item (`bft_ray.search.items`)."""
    return metric.rpartition("/")[2] not in _WHOLE


def measured_names(config: Config) -> list[str]:
    """Names of the judged metrics that a run of this config has; of a harness task `<name>/`, for all of its own."""
    names = [f"{VALIDATION}/{name}" for name in _LIKELIHOOD] if config.data.validation else []
    for task in config.evaluation.tasks:
        if task.kind == "harness":
            names.append(f"{task.name}/")
            continue
        own = _OF_KIND[task.kind]
        if task.kind == "names" and task.generate:
            own += ("rouge_l", "rouge_1", *(("name_similarity", "name_percentile") if task.encoder else ()))
        if task.kind == "cells" and task.batch:
            own += ("batch_silhouette", "ilisi", "kbet")
        names += [f"{task.name}/{name}" for name in own]
    return names


def is_measured(config: Config, metric: str) -> bool:
    """Whether a run of this config measures the metric."""
    return any(metric == name or (name.endswith("/") and metric.startswith(name)) for name in measured_names(config))


def source_of(config: Config, metric: str) -> str:
    """The data that a metric is measured on, as text that is equal for equal files; "" where it is not measured.

    How many of their items are used does not count: two looks at parts of one file may see the same items.
    """
    if not is_measured(config, metric):
        return ""
    of = metric.split("/")[0]
    if of == VALIDATION:
        return json.dumps([_place(source) for source in config.data.validation])
    task = next(task for task in config.evaluation.tasks if task.name == of)
    return json.dumps(task.tasks if task.kind == "harness" else _place(task))


def _place(source: Any) -> list[str | None]:
    return [getattr(source, name, None) for name in ("path", "split", "config_name", "revision")]
