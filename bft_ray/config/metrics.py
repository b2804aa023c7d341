"""All metrics in one table: those of training, and those that each kind of task declares."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from bft_ray.config.tasks import KINDS
from bft_ray.errors import BadInput
from bft_ray.metrics import Metric

_TRAIN = (
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
    Metric(
        "train/anchor_kl",
        "nats/token",
        "none",
        "mean KL(p0 || p) from the starting weights over the batch's supervised tokens; with an anchor",
    ),
    Metric("train/confidence_p10", "share", "none", "window confidence of the samples: 10 % quantile"),
    Metric("train/confidence_p50", "share", "none", "window confidence of the samples: median"),
    Metric("train/confidence_p90", "share", "none", "window confidence of the samples: 90 % quantile"),
    Metric("train/sample_weight_p10", "", "none", "sample weight as applied: 10 % quantile"),
    Metric("train/sample_weight_p50", "", "none", "sample weight as applied: median"),
    Metric("train/sample_weight_p90", "", "none", "sample weight as applied: 90 % quantile"),
    Metric("train/capped_share", "share", "none", "share of samples whose weight the cap has cut"),
)


def _table() -> tuple[Metric, ...]:
    """Each metric once: kinds share some."""
    of_sets = dict.fromkeys(metric for kind in KINDS for metric in kind.METRICS)
    return (*_TRAIN, *(replace(metric, name=f"<set>/{metric.name}") for metric in of_sets))


METRICS: tuple[Metric, ...] = _table()


_WORD = "[a-z0-9_]+"
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
        if of is not None and of.is_judged:
            return Metric(name, of.unit, "none", help)
    for metric in METRICS:
        if re.fullmatch(re.escape(metric.name).replace("<set>", _WORD).replace("<tag>", r"\w+"), bare):
            return replace(metric, name=name)
    return None


def is_judged(name: str) -> bool:
    """Whether the metric is known and one way of it is better."""
    metric = describe(name)
    return metric is not None and metric.is_judged


def higher_is_better(name: str) -> bool:
    """Whether a larger value of this metric is the better one.

    Raises:
        BadInput: unknown metric, or one of which neither way is better.
    """
    metric = describe(name)
    if metric is None:
        known = ", ".join(metric.name for metric in METRICS if metric.is_judged)
        raise BadInput("metric", name, "a name of the metrics table", f"Known: {known}.")
    if not metric.is_judged:
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
