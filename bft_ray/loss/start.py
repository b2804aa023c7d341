"""The anchor: how far the model has moved, token by token, from the weights that training starts from.

    KL(p0 || p) = sum over words v of p0_v (log p0_v - log p_v)

p0 under the starting weights. Its gradient to the logits is `p - p0`, the difference of the gradients of two negative
log-likelihoods, `(p - onehot) - (p0 - onehot)`: so the primitives of `bft_ray.loss.head` serve both.

Source: Anchored Supervised Fine-Tuning (ASFT, arXiv 2509.23753). Seen: its abstract and its public code, which adds
`kl_weight` (0.1) times KL(p0 || p) to DFT's loss of a token, the same direction as here; LLaMA-Factory's copy too.
**One difference**: the code does not multiply the KL by DFT's token weight. Here a token's KL has the weights of the
token's loss, `r_s w_t`, so with `token_weight: none` the two agree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bft_ray.loss.head import Head, OtherWords, add_product, residual, row_gradient


class Start(NamedTuple):
    """Hidden states and head under the weights that training starts from; no gradient goes there."""

    hidden: Tensor  # [B, T, D'], or for `fused_row_sums` [B T, D']
    weight: Tensor  # [V, D']
    bias: Tensor | None = None  # [V]


class StartWords:
    """Sums over the words of n rows, which come in blocks, of what anchor and its gradient are made of.

    Args:
        x: [n, D'] hidden states under the starting weights.
        head: the head of the starting weights.
        target: [n] int64.
        buffer: [at least n b] where their logits are put.
        like: [n, D] of the rows in training, where their gradient is wanted.
    """

    def __init__(self, x: Tensor, head: Head, target: Tensor, buffer: Tensor, like: Tensor | None):
        self._x, self._head, self._buffer = x, head, buffer
        self.others = OtherWords(target, buffer.dtype)
        self._gap = torch.zeros_like(target, dtype=buffer.dtype)  # sum of e^(z0 - peak0) (z0 - z)
        self._total = None if like is None else torch.zeros_like(like, dtype=buffer.dtype)
        self._z: Tensor | None = None

    def add(self, z: Tensor, slope: Tensor | None, words: slice, weight: Tensor) -> None:
        """Add a block of words.

        Args:
            z: [n, b] logits of the model in training, as they are.
            slope: [n, b] of its soft cap.
            words: the block.
            weight: [b, D] its head's, of these words.
        """
        self._z, _ = self._head.logits(self._x, words, self._buffer)
        gap = self._z - z
        shrink = self.others.add(self._z, words.start or 0)
        self._gap = self._gap * shrink + gap.mul_(self._z).sum(1)
        if self._total is not None:
            self._total *= shrink[:, None]
            add_product(
                self._total, (self._z if slope is None else gap.copy_(self._z).mul_(slope)).to(weight.dtype), weight
            )

    def divergence(self, others: OtherWords) -> Tensor:
        """[n] KL(p0 || p), from the other words of the model in training."""
        logp, logp0 = others.logp(), self.others.logp()
        log_sum, log_sum0 = others.target_logit - logp, self.others.target_logit - logp0
        factor = self.others.factor()
        rest = self._gap * factor - self.others.total * factor * (log_sum0 - log_sum)
        return logp0.exp() * (logp0 - logp) + rest

    def row_gradient(self, head: Head, slope: Tensor | None) -> Tensor:
        """[n, D] what `row_gradient` gives for p0 in place of p, through the head in training."""
        assert self._total is not None
        return row_gradient(self._total, self.others, head, slope)

    def residual(self) -> Tensor:
        """[n, V] `p0 - onehot`, where one block held all words; in the buffer."""
        assert self._z is not None
        return residual(self._z, self.others)
