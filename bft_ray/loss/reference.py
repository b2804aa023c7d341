"""The loss as its definition reads: the reference that faster paths are compared with.

Losses return sums and counts. `combine` divides, by counts of the *global* batch, and is the one place that
does: so how a batch is cut into micro-batches, packed, padded or spread over ranks cannot change the loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bft_ray.config import LossConfig
from bft_ray.errors import BadInput
from bft_ray.loss.entropy import largest, relative_entropy
from bft_ray.loss.weights import Weights, weigh

#: The label of a position that is not supervised.
IGNORE = -100


class Supervised(NamedTuple):
    """The N supervised tokens of a micro-batch, sorted by sample."""

    position: Tensor  # [N] place in the flattened [B, T]; the hidden state before it predicts it
    sample: Tensor  # [N] in 0..S-1
    target: Tensor  # [N] the token, int64
    lengths: list[int] | None = None  # [S] supervised tokens of each sample, where the host knows them
    start_logp: Tensor | None = (
        None  # [N] log-probability under the starting weights, which `token_weight: prior` reads
    )


class LossSums(NamedTuple):  # a tuple, because DeepSpeed looks for tensors in those
    """Sums over one micro-batch (S samples). Only `loss_sum` carries a gradient; add up, then `combine`."""

    loss_sum: Tensor  # []   sum_t row_t (-logp_t), see `loss_sums`
    weight_sum: Tensor  # []   sum of r_s over the samples with a supervised token, float64
    num_samples: Tensor  # []   samples with a supervised token, int64
    num_tokens: Tensor  # []   supervised tokens, int64
    nll_sum: Tensor  # []   sum of -logp_t, unweighted, float64
    num_correct: Tensor  # []   supervised tokens whose argmax is the target, int64
    token_weight_sum: Tensor  # []   sum of w_t, float64
    num_capped: Tensor  # []   samples whose weight the cap lowered, int64
    confidence: Tensor  # [S]  c_s; NaN without a supervised token
    sample_weight: Tensor  # [S]  r_s, capped, not normalised; NaN without a supervised token
    num_supervised: Tensor  # [S]  L_s, int64
    divergence_sum: Tensor  # []   sum of KL(p0_t || p_t), unweighted, float64; 0 without an anchor


def loss_sums(
    logits: Tensor,
    labels: Tensor,
    sample_index: Tensor,
    num_samples: int,
    config: LossConfig,
    *,
    start_logits: Tensor | None = None,
    start_logp: Tensor | None = None,
) -> LossSums:
    """Balanced Fine-Tuning (arXiv 2511.21075) over one micro-batch, as sums.

        aggregate sample   loss_sum = sum_s r_s 1/L_s sum_t w_t (-logp_t)
        aggregate token    loss_sum = sum_s r_s       sum_t w_t (-logp_t)

    with `logp_t` in fp32 (fp64 for fp64 logits), token weights `w_t` and sample weights `r_s` (capped,
    not normalised) of `bft_ray.loss.weights`, both constants to the gradient. `w_t` of `prob` comes from
    a softmax in the dtype of the logits. Without any supervised token the sum is a zero that is attached
    to the graph.

    With an anchor `-logp_t` becomes `-logp_t + anchor KL(p0_t || p_t)`, p0 under the starting weights:
    `bft_ray.loss.start`.

    Args:
        logits: [B, T, V], any floating dtype.
        labels: [B, T] int64, not yet shifted: position t is predicted by `logits[:, t - 1]`; -100 is not
            supervised, nor is the first position of a row. In a packed row the first label of every
            sample must be -100.
        sample_index: [B, T] int64, sample of each position in 0..S-1; read at supervised positions only.
        num_samples: S.
        config: the loss settings.
        start_logits: [B, T, V] under the starting weights; `anchor` reads them.
        start_logp: [B, T] log-probability of each label under the starting weights, at the place of the label; read at
            supervised positions, by `token_weight: prior` alone. None: from `start_logits`.

    Raises:
        BadInput: settings that read the starting weights, of which nothing is given.
    """
    position, sample, target, _, prior = supervised_positions(labels, sample_index, start_logp)
    rows = _full(logits.flatten(0, 1)[position - 1])  # [N, V]
    nll = F.cross_entropy(rows, target, reduction="none")
    start = None if start_logits is None else _full(start_logits.detach().flatten(0, 1)[position - 1])
    if config.reads_prior and prior is None and start is not None:
        prior = -F.cross_entropy(start, target, reduction="none")
    check_start(config, prior, "start_logits", start)

    signal = prior
    if config.token_weight == "prob":
        own = logits.detach().flatten(0, 1)[position - 1]
        signal = own.softmax(-1).gather(1, target[:, None]).squeeze(1)
    elif config.token_weight == "entropy":
        signal = relative_entropy(largest(rows.detach(), config.entropy_top_k))
    weights = weigh(-nll, sample, num_samples, config, signal)
    correct = rows.detach().argmax(-1) == target
    if not config.anchor:
        return gather_sums((weights.row * nll).sum(), -nll.detach(), correct, weights)
    assert start is not None
    divergence = kl_divergence(start, rows)
    loss_sum = (weights.row * (nll + config.anchor * divergence)).sum()
    return gather_sums(loss_sum, -nll.detach(), correct, weights, divergence.detach())


def kl_divergence(start: Tensor, rows: Tensor) -> Tensor:
    """`KL(p0 || p)` in nats of logits [N, V] under the starting weights and logits [N, V]: [N]."""
    logp0, logp = start.log_softmax(-1), rows.log_softmax(-1)
    p0 = logp0.exp()
    return (p0 * torch.where(p0 > 0, logp0 - logp, 0)).sum(-1)


def check_start(config: LossConfig, start_logp: object, name: str, start: object) -> None:
    """Raise BadInput where the loss reads the starting weights, and they are not given.

    Args:
        name: of the argument that `anchor` reads.
    """
    if config.reads_prior and start_logp is None:
        rule = "given with `loss.token_weight: prior`, which reads the log-probabilities under the starting weights"
        raise BadInput("start_logp", None, rule, "Compute them once, before training, and keep them with the batches.")
    if config.anchor and start is None:
        remedy = "Compute them without gradient with the weights that training starts from (LoRA: adapters off)."
        raise BadInput(name, None, f"given with an anchor (loss.anchor is {config.anchor:g})", remedy)


def check_words(tokens: Tensor, num_words: int) -> None:
    """Raise BadInput where a supervised token is none of the words 0..num_words - 1."""
    wrong = (tokens < 0) | (tokens >= num_words)
    if wrong.any():
        rule = f"{IGNORE} or a token of the vocabulary, 0..{num_words - 1}"
        raise BadInput("labels", int(tokens[wrong][0]), rule, "Check that tokenizer and model belong together.")


def _full(rows: Tensor) -> Tensor:
    """In fp32; fp64 stays."""
    return rows if rows.dtype == torch.float64 else rows.float()


def supervised_positions(labels: Tensor, sample_index: Tensor, start_logp: Tensor | None = None) -> Supervised:
    """The supervised tokens of `labels` [B, T] and `sample_index` [B, T], as `loss_sums` takes them."""
    supervised = labels != IGNORE
    supervised[:, 0] = False
    position = supervised.flatten().nonzero().squeeze(1)  # the only wait for the device
    sample, order = sample_index.flatten()[position].sort(stable=True)
    position = position[order]
    prior = None if start_logp is None else start_logp.detach().flatten()[position]
    return Supervised(position, sample, labels.flatten()[position].long(), start_logp=prior)


def gather_sums(
    loss_sum: Tensor, logp: Tensor, correct: Tensor, weights: Weights, divergence: Tensor | None = None
) -> LossSums:
    """`LossSums` from log-probabilities [N], whether the target has the largest logit [N], the weights, and with an anchor
    KL(p0 || p) [N].
    """
    has_token = weights.num_supervised > 0
    return LossSums(
        loss_sum=loss_sum,
        weight_sum=weights.sample.double().masked_fill(~has_token, 0).sum(),
        num_samples=has_token.sum(),
        num_tokens=weights.num_supervised.sum(),
        nll_sum=-logp.double().sum(),
        num_correct=correct.sum(),
        token_weight_sum=weights.token.double().sum(),
        num_capped=weights.num_capped,
        confidence=weights.confidence,
        sample_weight=weights.sample,
        num_supervised=weights.num_supervised,
        divergence_sum=logp.new_zeros((), dtype=torch.float64) if divergence is None else divergence.double().sum(),
    )


def normalisation(weight_sum: Tensor, num_samples: Tensor, config: LossConfig) -> Tensor:
    """Factor that makes the mean sample weight of the global batch 1: `num_samples / weight_sum`, [] float64.

    1 when `normalise` is off, and when all weights are 0 (they are left as they are).
    """
    if not config.normalise:
        return torch.ones((), dtype=torch.float64, device=weight_sum.device)
    weight_sum = weight_sum.double()
    return torch.where(weight_sum > 0, num_samples / weight_sum, 1.0)


def combine(
    loss_sum: Tensor, weight_sum: Tensor | None, num_samples: Tensor, num_tokens: Tensor, config: LossConfig
) -> Tensor:
    """The loss from its sums: the one place that divides.

        aggregate sample   loss = loss_sum / num_samples * normalisation
        aggregate token    loss = loss_sum / num_tokens  * normalisation

    Args:
        loss_sum: [] of a micro-batch or of all; the losses of micro-batches add up.
        weight_sum: [] of the *global* batch, or None where it is not known yet: then nothing is normalised,
            and the caller multiplies by `normalisation` when it is.
        num_samples: [] of the *global* batch.
        num_tokens: [] of the *global* batch.
        config: the loss settings.

    Returns:
        [] in the dtype of `loss_sum`; 0 for a global batch without a supervised token.
    """
    count = num_samples if config.aggregate == "sample" else num_tokens
    scale = 1 / count.double().clamp(min=1)
    if weight_sum is not None:
        scale = scale * normalisation(weight_sum, num_samples, config)
    return loss_sum * scale.to(loss_sum.dtype)
