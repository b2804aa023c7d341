"""Window confidence: how sure the model is in the least sure window of a sample.

Everything here works on the flat list of the N supervised tokens, sorted by sample, however the samples
lay in their batch: padded, packed or one by one. One pass of prefix sums serves every window; nothing
waits for the device.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

#: the least value in a prefix sum. A window of log-probabilities that holds it has confidence 0 up to 10,000 tokens, and one
#: below 1e-43 up to 100,000; it takes 1e-9 from the accuracy of later sums
_LEAST = -1e7


def spans(sample: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The place of each sample in the flat list.

    Args:
        sample: [N] sample of each supervised token, sorted, in 0..S-1.
        num_samples: S; samples without a supervised token have length 0.

    Returns:
        start [S] and length [S], both int64.
    """
    bounds = torch.searchsorted(sample, torch.arange(num_samples + 1, device=sample.device))
    return bounds[:-1], bounds.diff()


def prefix_sums(values: Tensor) -> Tensor:
    """[N] -> [N + 1] float64, with `prefix[j] - prefix[i]` the sum of `values[i:j]`.

    In float64, because a difference of long float32 sums has lost the digits of a short window; here the
    absolute error of a difference is of the order of 1e-16 times the sum of all N values.

    What is below -1e7 counts as that, and NaN as 0: else a token of one sample (a probability of 0, say) would be in the sums of all
    samples behind it.
    """
    return F.pad(values.double().nan_to_num(nan=0.0).clamp(min=_LEAST).cumsum(0), (1, 0))


def span_means(prefix: Tensor, first: Tensor, stop: Tensor) -> Tensor:
    """Mean of the values at `first`..`stop - 1`, for index tensors of one shape with `first < stop`."""
    return (prefix[stop] - prefix[first]) / (stop - first)


def window_confidence(
    logp: Tensor,
    sample: Tensor,
    num_samples: int,
    window: int,
    mean: Literal["geometric", "arithmetic"] = "geometric",
) -> Tensor:
    """Confidence of each sample: the least mean over its windows of g tokens, stride 1.

        geometric   c_s(g) = exp( min_j mean(logp_j .. logp_{j+g-1}) )      official code of arXiv 2511.21075
        arithmetic  c_s(g) = min_j mean(p_j .. p_{j+g-1})                   text of arXiv 2511.21075

    A sample of `L_s <= g` tokens has one window: all of it.

    Args:
        logp: [N] natural log-probabilities of the supervised tokens, in order within each sample.
        sample: [N] their samples, sorted, in 0..S-1.
        num_samples: S.
        window: g >= 1, in tokens.
        mean: which mean of a window.

    Returns:
        [S] float64 in 0..1, without gradient; NaN for samples without a supervised token, or with one whose log-probability is NaN.
    """
    values = logp.detach().double()
    if mean == "arithmetic":
        values = values.exp()
    start, length = spans(sample, num_samples)
    first = torch.arange(len(values), device=values.device)
    stop = first + length.clamp(max=window)[sample]
    inside = stop <= (start + length)[sample]
    means = span_means(prefix_sums(values), first, stop.clamp(max=len(values)))
    least = torch.full((num_samples,), torch.inf, dtype=values.dtype, device=values.device)
    least = least.scatter_reduce(0, sample, means.masked_fill(~inside, torch.inf), "amin")
    confidence = least.exp() if mean == "geometric" else least
    unknown = torch.zeros_like(least).scatter_reduce(0, sample, values.isnan().double(), "amax")
    return confidence.masked_fill((length == 0) | (unknown > 0), torch.nan)
