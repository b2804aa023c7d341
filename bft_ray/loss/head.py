"""The language-model head on blocks of rows and words: the primitives of `bft_ray.loss.fused`.

The target is kept apart from the other words `v != t`:

    logp_t = logsigmoid(z_t - log sum_v e^z_v)        d(-logp_t)/dx = sum_v p_v (W_v - W_t)

so a token that the model is sure of has an exact small gradient, where `softmax - onehot` subtracts two
nearly equal numbers. Words come in blocks, and their sum is rescaled when a larger logit turns up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: exp of less than this is taken as exp of this, 2e-35: it adds nothing, and CPUs are slow where exp underflows.
LEAST_EXPONENT = -80.0
#: Words whose rows of the weight's gradient are made at once where the product is not in the dtype of the sum.
WORDS_AT_ONCE = 4096


@dataclass(frozen=True)
class Head:
    """Logits of rows x: `z = cap(scale (x W^T + bias))` with `cap(a) = softcap tanh(a / softcap)`."""

    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    scale: float
    softcap: float | None

    def logits(self, x: Tensor, words: slice, buffer: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [n, b] of a block of words, and their slope `dz/da` [n, b] under a soft cap.

        Args:
            x: [n, D], in the dtype of the matmul.
            words: block of b words.
            buffer: [at least n b] fp32 (fp64 for fp64), where the logits are put.
        """
        weight = self.weight[words].to(x.dtype).t()
        z = buffer[: len(x) * weight.shape[1]].view(len(x), -1)
        if z.dtype == x.dtype:
            torch.mm(x, weight, out=z)
        else:
            z.copy_(product(x, weight, z.dtype))
        if self.bias is not None:
            z += self.bias[words]
        if self.scale != 1:
            z *= self.scale
        if self.softcap is None:
            return z, None
        z.div_(self.softcap).tanh_()
        slope = 1 - z.square()
        return z.mul_(self.softcap), slope


class OtherWords:
    """log-sum-exp of n rows over all words but the target, which come in blocks.

    A device kernel that fuses the passes over a block would take the place of `add`.
    """

    def __init__(self, target: Tensor, dtype: torch.dtype):
        self.target = target  # [n] int64
        self.target_logit = torch.full_like(target, torch.nan, dtype=dtype)
        self.peak = torch.full_like(target, torch.finfo(dtype).min, dtype=dtype)  # largest logit so far
        self.total = torch.zeros_like(target, dtype=dtype)  # sum of e^(z - peak) so far

    def add(self, z: Tensor, first_word: int) -> Tensor:
        """Turn a block of logits [n, b], in place, into `e^(z - peak)` with (next to) 0 at the target.

        Returns:
            [n] the factor that brings what was summed over earlier blocks to the new peak.
        """
        column = self.target - first_word
        inside = (column >= 0) & (column < z.shape[1])
        column = column.clamp(0, z.shape[1] - 1)[:, None]
        here = z.gather(1, column).squeeze(1)
        self.target_logit = torch.where(inside, here, self.target_logit)
        z.scatter_(1, column, torch.where(inside, -torch.inf, here)[:, None])

        peak = torch.maximum(self.peak, z.amax(1))
        shrink = (self.peak - peak).clamp(min=LEAST_EXPONENT).exp()
        z.sub_(peak[:, None]).clamp_(min=LEAST_EXPONENT).exp_()
        self.total = self.total * shrink + z.sum(1)
        self.peak = peak
        return shrink

    def logp(self) -> Tensor:
        """[n] log-probability of the target."""
        return F.logsigmoid(self.target_logit - self.peak - self.total.log())

    def factor(self) -> Tensor:
        """[n] what makes a probability of `e^(z - peak)`."""
        return (self.peak - self.target_logit + self.logp()).exp()

    def correct(self) -> Tensor:
        """[n] whether the target has the largest logit; in a tie nobody has."""
        return self.target_logit > self.peak


def row_gradient(total: Tensor, others: OtherWords, head: Head, slope: Tensor | None) -> Tensor:
    """[n, D] `sum_v p_v (slope_v W_v) - slope_t W_t` over other words, scaled: the gradient of -logp to a row. In place.

    Args:
        total: [n, D] sum of `e^(z - peak) slope W` over the other words.
        slope: [n] of the soft cap at the target.
    """
    at_target = others.total if slope is None else others.total * slope
    total.addcmul_(at_target[:, None], head.weight[others.target].to(total.dtype), value=-1)
    return total.mul_((others.factor() * head.scale)[:, None])


def residual(z: Tensor, others: OtherWords) -> Tensor:
    """[n, V] `p - onehot` from `e^(z - peak)` of all words, in place."""
    z.scatter_(1, others.target[:, None], -others.total[:, None])
    return z.mul_(others.factor()[:, None])


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a @ b` in `dtype`; of 16-bit matrices rounded once, or not at all where the device can."""
    if a.dtype != dtype and a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out += a @ b`, in the dtype of `out`."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
        return
    for part, rows in zip(out.split(WORDS_AT_ONCE), a.split(WORDS_AT_ONCE), strict=True):
        part += product(rows, b, out.dtype)
