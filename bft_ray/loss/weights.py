"""Token and sample weights, all constants to the gradient (`sg[...]`, stop-gradient).

They depend on one or two numbers of each supervised token alone, its log-probability and at most one more (`signal`), so
that a loss which never holds the [tokens, vocabulary] matrix can use them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bft_ray.config import LossConfig
from bft_ray.loss.confidence import prefix_sums, span_means, spans, window_confidence


@dataclass(frozen=True)
class Weights:
    """What multiplies the loss of each of N supervised tokens, and the pieces it is made of (S samples).

    `row[t] = r_s w_t / L_s` with `aggregate: sample`, `r_s w_t` with `aggregate: token`: the loss sum is
    `sum_t row[t] * (-logp_t)`. `sample` is capped and not yet normalised. `confidence` and `sample` are
    NaN where a sample has no supervised token.
    """

    row: Tensor  # [N]
    token: Tensor  # [N]  w_t
    sample: Tensor  # [S]  r_s
    confidence: Tensor  # [S]  c_s
    num_supervised: Tensor  # [S]  L_s, int64
    num_capped: Tensor  # []   samples whose weight the cap lowered, int64


@torch.no_grad()
def weigh(logp: Tensor, sample: Tensor, num_samples: int, config: LossConfig, signal: Tensor | None = None) -> Weights:
    """All weights of the supervised tokens of one micro-batch.

    Args:
        logp: [N] natural log-probabilities (fp32; fp64 is kept), in order within each sample.
        sample: [N] their samples, sorted, in 0..S-1.
        num_samples: S.
        config: the loss settings.
        signal: [N] what the token weight reads beside logp. `prob`: probabilities from a softmax in the dtype of the
            logits; `prior`: log-probabilities under the starting weights; `entropy`: relative entropies in 0..1
            (`bft_ray.loss.entropy`).
    """
    _, length = spans(sample, num_samples)
    token = token_weights(logp, sample, num_samples, config, signal)
    confidence = window_confidence(logp, sample, num_samples, config.window, config.confidence)
    weight, capped = sample_weights(confidence, config)
    row = weight[sample] * token
    if config.aggregate == "sample":
        row = row / length[sample]
    dtype = logp.dtype
    return Weights(row.to(dtype), token, weight.to(dtype), confidence.to(dtype), length, capped.sum())


def token_weights(
    logp: Tensor, sample: Tensor, num_samples: int, config: LossConfig, signal: Tensor | None = None
) -> Tensor:
    """Weight `w_t` of each supervised token: [N], in the dtype of `logp`; arguments as for `weigh`.

        none        1
        prob        p_t, as given                          arXiv 2508.05629 and 2511.21075, their code
        exp_nll     exp(logp_t)                            the same from the fp32 log-probability
        group       min(p_t / (C_t(g) + token_epsilon), token_cap)       `group_weights`
        power       p_t^a                                  arXiv 2510.00526
        threshold   1 where p_t >= token_threshold, else 0        arXiv 2510.00526
        prior       p0_t^a, p0 under the starting weights         arXiv 2606.09396 (PriFT)
        entropy     (H_t / log k)^a                        arXiv 2601.02151 (EAFT), `bft_ray.loss.entropy`

    with a = `token_power`. What is known of the sources:

    - `power`, `threshold`: abstract and public code of 2510.00526 were seen. Its family `(1 - p^a) / a` has the gradient
      `p^a` times that of -logp, which `power` gives; the loss that is shown differs. Its thresholded objective
      `-log p` where p >= q is `threshold`. Its models that know the domain did best with a large a or a threshold, those
      that do not with a = 0.
    - `prior`: only the abstract of 2606.09396 was seen, which names the "pretrained token probability" as one of two
      weights (a = 1). The exponent is this project's.
    - `entropy`: see `bft_ray.loss.entropy`; the code of 2601.02151 has the exponent too.

    Raises:
        ValueError: a token weight without the signal that it reads.
    """
    kind, power = config.token_weight, config.token_power
    if kind == "none" or (kind == "prior" and not config.reads_prior):
        return torch.ones_like(logp)
    if kind == "exp_nll":
        return logp.exp()
    if kind == "group":
        return group_weights(logp, sample, num_samples, config).to(logp.dtype)
    if kind == "power":
        return (power * logp).exp()
    if kind == "threshold":
        return (logp.exp() >= config.token_threshold).to(logp.dtype)
    if signal is None:
        raise ValueError(f"`token_weight: {kind}` needs its signal")
    signal = signal.to(logp.dtype)
    if kind == "prior":
        return (power * signal).exp()
    return signal.clamp(min=0) ** power if kind == "entropy" else signal


def group_weights(logp: Tensor, sample: Tensor, num_samples: int, config: LossConfig) -> Tensor:
    """Weight of a token relative to its group of up to g neighbours in the same sample: [N] float64.

        w_t = min( p_t / (C_t(g) + token_epsilon), token_cap ),   C_t(g) = mean of p over the group of t

    The group is the last g supervised tokens up to and with t (`trailing`), or `t - g//2 .. t + (g-1)//2`
    (`centered`); at the ends of a sample it is what is left of that. So an isolated unsure token counts
    little, while a token among other unsure tokens keeps its signal.

    This is meant to be the third version of the paper (arXiv 2511.21075, May 2026), **known here only
    from a secondary source**, which reports it as "proportional to c / (C_loc + eps), clipped to [0,1],
    detached, g=256". Its text was not seen; alignment, epsilon and the treatment of the ends are this
    project's reading.
    """
    p = logp.double().exp()
    here = torch.arange(len(p), device=p.device)
    start, length = spans(sample, num_samples)
    ahead = (config.window - 1) // 2 if config.window_alignment == "centered" else 0
    first = torch.maximum(here - (config.window - 1 - ahead), start[sample])
    stop = torch.minimum(here + ahead + 1, (start + length)[sample])
    group = span_means(prefix_sums(p), first, stop)
    return (p / (group + config.token_epsilon)).clamp(max=config.token_cap)


def sample_weights(confidence: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Weight `r_s` of each sample from its confidence `c_s`, capped and not normalised.

        none        1
        complement  1 - c_s^gamma                  official code of arXiv 2511.21075 (gamma 1)
        inverse     1 / (c_s^gamma + epsilon)      its text: weights inverse to "minimum group confidence"

    then `min(r_s, weight_cap)`.

    Returns:
        [S] weights in the dtype of `confidence` (NaN stays NaN) and [S] whether the cap lowered them.
    """
    if config.sample_weight == "complement":
        weight = 1 - confidence**config.gamma
    elif config.sample_weight == "inverse":
        weight = 1 / (confidence**config.gamma + config.epsilon)
    else:
        weight = torch.ones_like(confidence).masked_fill(confidence.isnan(), torch.nan)
    if config.weight_cap is None:
        return weight, torch.zeros_like(weight, dtype=torch.bool)
    return weight.clamp(max=config.weight_cap), weight > config.weight_cap
