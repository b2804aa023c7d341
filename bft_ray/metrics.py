"""Every metric's name, unit, direction and meaning, in one table; needs neither torch nor ray."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from bft_ray.errors import BadInput


@dataclass(frozen=True)
class Metric:
    """What a metric means.

    Args:
        name: full name, or a pattern in which `<set>` stands for the name of an evaluation set ([a-z0-9_]+).
        unit: of the value; "" for a pure number, "share" for a number in [0, 1].
        direction: which way is better; "none" where neither is.
        help: one line.
    """

    name: str
    unit: str
    direction: Literal["higher", "lower", "none"]
    help: str


METRICS: tuple[Metric, ...] = (
    Metric(
        "train/loss",
        "",
        "none",
        "the loss that is optimised; its meaning changes with the loss settings: never compare it",
    ),
    Metric(
        "train/nll",
        "nats/token",
        "none",
        "unweighted negative log-likelihood of the batch's supervised tokens",
    ),
    Metric("train/token_accuracy", "share", "none", "share of the batch's supervised tokens that are the argmax"),
    Metric("train/grad_norm", "", "none", "global L2 norm of the gradient before clipping"),
    Metric("train/learning_rate", "", "none", "learning rate of the step"),
    Metric("train/supervised_tokens_per_s", "tokens/s", "higher", "supervised tokens of all workers a second"),
    Metric("train/step_s", "s", "none", "wall time of the step"),
    Metric("train/epoch", "epochs", "none", "passes over the training data so far"),
    Metric("train/token_weight_mean", "", "none", "mean token weight over the batch's supervised tokens"),
    Metric("train/confidence_p10", "share", "none", "window confidence of the samples: 10 % quantile"),
    Metric("train/confidence_p50", "share", "none", "window confidence of the samples: median"),
    Metric("train/confidence_p90", "share", "none", "window confidence of the samples: 90 % quantile"),
    Metric("train/sample_weight_p10", "", "none", "sample weight as applied: 10 % quantile"),
    Metric("train/sample_weight_p50", "", "none", "sample weight as applied: median"),
    Metric("train/sample_weight_p90", "", "none", "sample weight as applied: 90 % quantile"),
    Metric("train/capped_share", "share", "none", "share of samples whose weight the cap has cut"),
    Metric("<set>/nll", "nats/token", "lower", "mean negative log-likelihood of the supervised tokens"),
    Metric("<set>/perplexity", "", "lower", "exp of the mean negative log-likelihood"),
    Metric("<set>/token_accuracy", "share", "higher", "share of supervised tokens whose argmax is the target"),
    Metric(
        "<set>/bits_per_byte",
        "bits/byte",
        "lower",
        "negative log2-likelihood of the supervised text, per UTF-8 byte",
    ),
    Metric(
        "<set>/accuracy",
        "share",
        "higher",
        "share of items whose likeliest option (length-normalised) is the right one",
    ),
    Metric(
        "<set>/probability",
        "share",
        "higher",
        "softmax over length-normalised option log-likelihoods, of the right one",
    ),
    Metric("<set>/accuracy_se", "share", "none", "standard error of the accuracy over items"),
    Metric("<set>/probability_se", "share", "none", "standard error of the choice probability over items"),
    Metric(
        "<set>/accuracy_detectable",
        "share",
        "none",
        "smallest difference of two such accuracies that stands out, unpaired: 1.96 sqrt(2) se",
    ),
    Metric(
        "<set>/probability_detectable",
        "share",
        "none",
        "smallest difference of two such probabilities that stands out, unpaired: 1.96 sqrt(2) se",
    ),
    Metric("<set>/num_items", "items", "none", "items measured"),
    Metric(
        "<set>/num_truncated",
        "items",
        "none",
        "items whose prompt lost its beginning, to fit into data.max_length",
    ),
    Metric("<set>/auroc", "share", "higher", "area under the ROC curve of the yes/no likelihood over pairs"),
    Metric(
        "<set>/embedding_auroc",
        "share",
        "higher",
        "area under the ROC curve of the similarity of embeddings over pairs",
    ),
    Metric("<set>/name_similarity", "share", "higher", "similarity of the generated name with the gold name"),
    Metric("<set>/exact_match", "share", "higher", "share of generated answers that equal the gold answer"),
    Metric(
        "<set>/knn_accuracy",
        "share",
        "higher",
        "accuracy of k-nearest-neighbour classification on embeddings",
    ),
)


def describe(name: str) -> Metric | None:
    """What a metric means, `<set>` filled in; None if unknown. `final/` may stand before any name."""
    bare = name.removeprefix("final/")
    for metric in METRICS:
        if re.fullmatch(metric.name.replace("<set>", "[a-z0-9_]+"), bare):
            return replace(metric, name=name)
    return None


def is_judged(name: str) -> bool:
    """Whether the metric is known and one way of it is better."""
    metric = describe(name)
    return metric is not None and metric.direction != "none"


def higher_is_better(name: str) -> bool:
    """Whether a larger value of this metric is the better one.

    Raises:
        BadInput: unknown metric, or one of which neither way is better.
    """
    metric = describe(name)
    if metric is None:
        known = ", ".join(metric.name for metric in METRICS if metric.direction != "none")
        raise BadInput("metric", name, "a name of the metrics table", f"Known: {known}.")
    if metric.direction == "none":
        raise BadInput("metric", name, "a metric with a better and a worse direction", "For example validation/nll.")
    return metric.direction == "higher"


def is_better(name: str, a: float, b: float) -> bool:
    """Whether value `a` is strictly better than `b`. A NaN is never better; any number is better than NaN.

    Raises:
        BadInput: unknown metric, or one of which neither way is better.
    """
    higher = higher_is_better(name)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(b) and not math.isnan(a)
    return a > b if higher else a < b


def format_value(name: str, value: float) -> str:
    """The value as text for a table: counts whole, shares with 3 decimals, the rest with 4 significant
    digits.
    """
    metric = describe(name)
    unit = metric.unit if metric else ""
    if not math.isfinite(value):
        return str(value)
    if unit in ("items", "tokens/s"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if unit == "share" else f"{value:.4g}"
