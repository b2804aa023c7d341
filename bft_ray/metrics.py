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
    Metric(
        "train/peak_memory_bytes", "bytes", "none", "most memory so far, of the worker with the most: GPU, or process"
    ),
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
    Metric("<set>/macro_accuracy", "share", "higher", "mean over subjects of the accuracy"),
    Metric(
        "<set>/calibration_error",
        "share",
        "lower",
        "expected calibration error of the predicted option's probability, 10 bins",
    ),
    Metric("<set>/num_items", "items", "none", "items measured"),
    Metric(
        "<set>/num_truncated",
        "items",
        "none",
        "items whose prompt lost its beginning, to fit into data.max_length",
    ),
    Metric("<set>/num_left_out", "items", "none", "rows without text, which are not measured"),
    Metric("<set>/auroc", "share", "higher", "area under the ROC curve of the yes/no likelihood over pairs"),
    Metric("<set>/auprc", "share", "higher", "average precision of the yes/no likelihood over pairs"),
    Metric(
        "<set>/embedding_auroc",
        "share",
        "higher",
        "area under the ROC curve of a logistic regression on embeddings of pairs, split by genes",
    ),
    Metric("<set>/embedding_auprc", "share", "higher", "average precision of the same logistic regression"),
    Metric("<set>/embedding_auroc_mlp", "share", "higher", "area under the ROC curve of an MLP in its place"),
    Metric("<set>/embedding_auprc_mlp", "share", "higher", "average precision of the MLP"),
    Metric("<set>/num_train_pairs", "items", "none", "pairs that the classifiers were fitted to"),
    Metric("<set>/num_dropped", "items", "none", "training pairs left out because a gene of theirs is tested on"),
    Metric("<set>/num_undescribed", "items", "none", "pairs left out because a gene of theirs has no text"),
    Metric("<set>/num_self_pairs", "items", "none", "pairs left out because they are of a gene with itself"),
    Metric(
        "<set>/name_similarity",
        "",
        "higher",
        "cosine similarity of the generated name with the gold name under a text encoder",
    ),
    Metric(
        "<set>/name_percentile",
        "share",
        "higher",
        "share of the other candidate names that are less similar to the generated name than the gold name is",
    ),
    Metric("<set>/exact_match", "share", "higher", "share of generated answers that equal the gold answer"),
    Metric("<set>/token_f1", "share", "higher", "F1 of the words that generated and gold answer share (SQuAD)"),
    Metric("<set>/rouge_l", "share", "higher", "ROUGE-L of the generated text: F1 of the longest common subsequence"),
    Metric("<set>/rouge_1", "share", "higher", "ROUGE-1 of the generated text: F1 of the shared tokens"),
    Metric("<set>/answer_tokens", "tokens", "none", "mean tokens of a generated answer"),
    Metric("<set>/num_empty", "items", "none", "generated answers without text; they count as wrong"),
    Metric("<set>/num_unparsed", "items", "none", "generated answers without a final answer; they count as wrong"),
    Metric(
        "<set>/rubric_score",
        "share",
        "higher",
        "points of the criteria met, of the positive points; mean over items, clipped to [0, 1]",
    ),
    Metric("<set>/criteria_met", "share", "none", "share of the judged criteria that are met, wanted or not"),
    Metric("<set>/judge_agreement", "share", "none", "share of the criteria on which two judges agree"),
    Metric("<set>/judge_kappa", "", "none", "agreement of two judges beyond chance: Cohen's kappa"),
    Metric("<set>/num_unjudged", "items", "none", "criteria without a verdict; their items are left out of the score"),
    Metric(
        "<set>/knn_accuracy",
        "share",
        "higher",
        "accuracy of k-nearest-neighbour classification on embeddings",
    ),
    Metric("<set>/knn_macro_f1", "share", "higher", "mean over labels of the F1 of the same classification"),
    Metric("<set>/ari", "", "higher", "adjusted Rand index of k-means clusters of embeddings and labels; 0 by chance"),
    Metric("<set>/nmi", "share", "higher", "normalised mutual information of the same clusters and labels"),
    Metric(
        "<set>/batch_silhouette",
        "share",
        "higher",
        "mixing of batches within labels: 1 - |silhouette of batches|, mean over labels",
    ),
    Metric("<set>/ilisi", "share", "higher", "mixing of batches among neighbours: graph iLISI of scib-metrics"),
    Metric("<set>/kbet", "share", "higher", "mixing of batches among neighbours: kBET acceptance of scib-metrics"),
    Metric(
        "<set>/<set>/acc", "share", "higher", "lm-evaluation-harness: share of items whose likeliest option is right"
    ),
    Metric(
        "<set>/<set>/acc_norm",
        "share",
        "higher",
        "lm-evaluation-harness: the same, log-likelihoods divided by characters",
    ),
    Metric("<set>/<set>/acc_bytes", "share", "higher", "lm-evaluation-harness: the same, divided by bytes"),
    Metric(
        "<set>/<set>/exact_match", "share", "higher", "lm-evaluation-harness: share of answers that are the gold one"
    ),
    Metric("<set>/<set>/exact_match_<set>", "share", "higher", "lm-evaluation-harness: the same, after its filter"),
    Metric("<set>/<set>/f1", "share", "higher", "lm-evaluation-harness: F1"),
    Metric("<set>/<set>/mcc", "", "higher", "lm-evaluation-harness: Matthews correlation"),
    Metric("<set>/<set>/bleu", "", "higher", "lm-evaluation-harness: BLEU, 0 to 100"),
    Metric("<set>/<set>/brier_score", "", "lower", "lm-evaluation-harness: Brier score"),
    Metric("<set>/<set>/bits_per_byte", "bits/byte", "lower", "lm-evaluation-harness: bits per byte of text"),
    Metric("<set>/<set>/byte_perplexity", "", "lower", "lm-evaluation-harness: perplexity a byte"),
    Metric("<set>/<set>/word_perplexity", "", "lower", "lm-evaluation-harness: perplexity a word"),
    Metric("<set>/<set>/perplexity", "", "lower", "lm-evaluation-harness: perplexity"),
    Metric("<set>/<set>/<set>", "", "none", "lm-evaluation-harness: another metric; ask its task which way is better"),
)


#: what may stand behind the name of a metric of a set
_SUFFIXES = {
    "_se": "standard error over items",
    "_detectable": "smallest true difference of two such values, unpaired, that 8 of 10 comparisons show",
}


def describe(name: str) -> Metric | None:
    """What a metric means, `<set>` filled in; None if unknown. `final/` may stand before any name."""
    bare = name.removeprefix("final/")
    for suffix, help in _SUFFIXES.items():
        of = describe(bare.removesuffix(suffix)) if bare.endswith(suffix) else None
        if of is not None and of.direction != "none":
            return Metric(name, of.unit, "none", help)
    for metric in METRICS:
        if re.fullmatch(re.escape(metric.name).replace("<set>", "[a-z0-9_]+"), bare):
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
