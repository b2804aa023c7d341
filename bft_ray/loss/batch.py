"""The loss of one whole batch, for people with a training loop of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bft_ray.config import LossConfig
from bft_ray.errors import BadInput
from bft_ray.loss.reference import IGNORE, check_words, combine, loss_sums, normalisation

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


@dataclass(frozen=True)
class BftLoss:
    """The loss of a batch of S samples and what it was made of; only `loss` carries a gradient."""

    loss: Tensor  # []   fp32 (fp64 for fp64 logits)
    confidence: Tensor  # [S]  c_s in 0..1; NaN without a supervised token
    sample_weight: Tensor  # [S]  r_s as applied: capped and normalised; NaN without a supervised token
    nll: Tensor  # []   mean of -logp over the supervised tokens, unweighted, in nats
    num_samples: Tensor  # []   samples with a supervised token
    num_tokens: Tensor  # []   supervised tokens


def bft_loss(
    logits: Tensor,
    labels: Tensor,
    config: LossConfig,
    *,
    start_logits: Tensor | None = None,
    start_logp: Tensor | None = None,
) -> BftLoss:
    """Balanced Fine-Tuning (arXiv 2511.21075) of one whole batch, each row one sample.

        loss = 1/S sum_s r_s 1/L_s sum_t w_t (-logp_t)          `aggregate: sample`
        loss = sum_s r_s sum_t w_t (-logp_t) / sum_s L_s        `aggregate: token`

    over the S samples that have a supervised token; rows without one count in nothing. The weights are
    constants to the gradient: `LossConfig` names them, `bft_ray.loss.weights` defines them. A batch
    without any supervised token has a loss of 0, attached to the graph, and zero gradient.

        result = bft_loss(model(**inputs).logits, labels, LossConfig(method="bft", window=256))
        result.loss.backward()

    `anchor` and `token_weight: prior` read the weights that training starts from: give `start_logits`, computed without
    gradient by a frozen copy of the model (LoRA: by the model with its adapters off). `prior` can do with numbers that
    were computed once: `start_logp`.

    The batch must be the whole of what one optimizer step sees. Under gradient accumulation or on several
    ranks use `loss_sums` and `combine`, or with transformers' Trainer `CountSamplesMixin`.

    Args:
        logits: [B, T, V], any floating dtype.
        labels: [B, T] integers, *not* shifted: position t is predicted from t - 1; -100 is not supervised.
        config: the loss settings.
        start_logits: [B, T, V] under the starting weights.
        start_logp: [B, T] log-probability of each label under them, at the place of the label.

    Raises:
        BadInput: settings that read the starting weights, of which nothing is given; shapes that do not match, wrong dtypes, a
            label outside 0..V-1 that is not -100.
    """
    check_batch(logits, labels)
    check_config(config)
    for name, given, shape in (("start_logits", start_logits, logits.shape), ("start_logp", start_logp, labels.shape)):
        if given is not None and not (isinstance(given, Tensor) and given.shape == shape and given.is_floating_point()):
            raise BadInput(name, _describe(given), f"a floating-point tensor {list(shape)}")
    sums = loss_sums(
        logits,
        labels,
        row_index(labels),
        len(labels),
        config,
        start_logits=start_logits,
        start_logp=start_logp,
    )
    scale = normalisation(sums.weight_sum, sums.num_samples, config)
    return BftLoss(
        loss=combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config),
        confidence=sums.confidence,
        sample_weight=sums.sample_weight * scale.to(sums.sample_weight.dtype),
        nll=(sums.nll_sum / sums.num_tokens.clamp(min=1)).to(sums.loss_sum.dtype),
        num_samples=sums.num_samples,
        num_tokens=sums.num_tokens,
    )


def row_index(labels: Tensor) -> Tensor:
    """[B, T] sample of each position where each row is one sample."""
    return torch.arange(len(labels), device=labels.device)[:, None].expand(labels.shape)


def check_config(config: object) -> None:
    """Raise BadInput for what is no LossConfig."""
    if not isinstance(config, LossConfig):
        raise BadInput("config", _describe(config), "a LossConfig", 'For example LossConfig(method="bft").')


def check_batch(logits: Tensor, labels: Tensor) -> None:
    """Raise BadInput unless logits are [B, T, V] floats and labels [B, T] integers, -100 or in 0..V-1."""
    if not isinstance(logits, Tensor) or logits.dim() != 3 or not logits.is_floating_point() or not logits.shape[-1]:
        raise BadInput("logits", _describe(logits), "a floating-point tensor [batch, positions, vocabulary]")
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        raise BadInput("labels", _describe(labels), "an integer tensor", "Use int64; -100 is not supervised.")
    if labels.shape != logits.shape[:2] or labels.shape[1] == 0:
        raise BadInput(
            "labels",
            _describe(labels),
            f"of shape {list(logits.shape[:2])}, with at least one position, for logits {list(logits.shape)}",
            "Pass the labels as the model takes them: not shifted, not flattened.",
        )
    check_words(labels[labels != IGNORE], logits.shape[-1])


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
