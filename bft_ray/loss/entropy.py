"""How undecided the model is about a token: the entropy of its likeliest words, from logits that come in blocks.

    H = - sum over the k likeliest words of q_v log q_v,    q_v = p_v / sum of the k likeliest p
    relative entropy = H / log k, in 0..1

Source: Entropy-Adaptive Fine-Tuning (EAFT, arXiv 2601.02151). Seen: its abstract and README (the loss of a token times
the *normalised* entropy), and its public code, in LLaMA-Factory and others, which takes k = 20, renormalises, and divides
by 3.0, the rounded log 20 = 2.9957: its weights are 0.14 % less than these. Second-hand: that its text takes log k.
Axolotl's copy of the code leaves the division out, so its weights are 2.9957 times these.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

#: Words of a group, of which only the largest logit is looked at first: k groups hold the k largest of all.
GROUP_WORDS = 16


class TopLogits:
    """The k largest logits of n rows, whose words come in blocks."""

    def __init__(self, k: int):
        self.k = k
        self.values: Tensor | None = None  # [n, k], in no order; fewer where there were fewer words

    def add(self, z: Tensor) -> None:
        """Add a block of logits [n, b]."""
        found = largest(z, self.k)
        self.values = found if self.values is None else largest(torch.cat([self.values, found], 1), self.k)

    def relative_entropy(self) -> Tensor:
        """[n] of the words seen; see `relative_entropy`."""
        assert self.values is not None
        return relative_entropy(self.values)


def largest(z: Tensor, k: int) -> Tensor:
    """The k largest values of each row of [n, b], in no order; all where there are fewer."""
    num_groups = z.shape[1] // GROUP_WORDS
    if num_groups <= k:
        return z.topk(min(k, z.shape[1]), sorted=False).values
    # words far apart form a group, so that the maximum runs along memory
    whole = GROUP_WORDS * num_groups
    groups = z[:, :whole].unflatten(1, (GROUP_WORDS, num_groups))
    best = groups.amax(1).topk(k, sorted=False).indices
    found = groups.gather(2, best[:, None].expand(-1, GROUP_WORDS, -1)).flatten(1)
    return torch.cat([found, z[:, whole:]], 1).topk(k, sorted=False).values


def relative_entropy(top: Tensor) -> Tensor:
    """Entropy of the softmax over logits [n, k], k >= 2, divided by log k: [n] in 0..1."""
    return torch.special.entr(top.softmax(-1)).sum(-1) / log(top.shape[1])
