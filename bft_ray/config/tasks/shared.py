"""Metrics that several kinds of task measure."""

from __future__ import annotations

import math

from bft_ray.metrics import Metric, Ratio

LIKELIHOOD = (
    Metric(
        "nll",
        "nats/token",
        "lower",
        "mean negative log-likelihood of the supervised tokens",
        Ratio("nll", "num_tokens"),
    ),
    Metric("perplexity", "", "lower", "exp of the mean negative log-likelihood", items=None),
    Metric(
        "token_accuracy",
        "share",
        "higher",
        "share of supervised tokens whose argmax is the target",
        Ratio("num_correct", "num_tokens"),
    ),
    Metric(
        "bits_per_byte",
        "bits/byte",
        "lower",
        "negative log2-likelihood of the supervised text, per UTF-8 byte",
        Ratio("nll", "num_bytes", 1 / math.log(2)),
    ),
)
NUM_ITEMS, NUM_TRUNCATED, NUM_LEFT_OUT, NUM_EMPTY = (
    Metric("num_items", "items", "none", "items measured"),
    Metric(
        "num_truncated",
        "items",
        "none",
        "items whose prompt lost its beginning, to fit into data.max_length",
    ),
    Metric("num_left_out", "items", "none", "rows without text, which are not measured"),
    Metric("num_empty", "items", "none", "generated answers without text; they count as wrong"),
)
ROUGE_L, ROUGE_1 = (
    Metric("rouge_l", "share", "higher", "ROUGE-L of the generated text: F1 of the longest common subsequence"),
    Metric("rouge_1", "share", "higher", "ROUGE-1 of the generated text: F1 of the shared tokens"),
)
