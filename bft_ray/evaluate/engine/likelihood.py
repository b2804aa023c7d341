"""How likely a model finds given tokens: negative log-likelihood, token accuracy, perplexity, bits per byte.

For a supervised token t of a sequence (label other than -100; position 0 never is one),

    nll_t = logsumexp(z_{t-1}) - z_{t-1}[x_t]      z: logits, in fp32;  in nats.

Sums run in fp64. In fp32 they do not depend on how sequences are batched, packed or shared out over workers
beyond rounding (1e-5); in bf16 the model itself rounds, and more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class LikelihoodSums:
    """Sums over sequences; the only division is in `metrics`.

    Args:
        nll_sum: nats.
        num_tokens: supervised tokens.
        num_correct: of them, those whose argmax is the target.
        num_bytes: UTF-8 bytes of the supervised text; 0 where unknown.
    """

    nll_sum: float
    num_tokens: int
    num_correct: int
    num_bytes: int = 0

    @staticmethod
    def from_tensor(sums: torch.Tensor, num_bytes: int = 0) -> LikelihoodSums:
        """From [nll_sum, num_tokens, num_correct], float64."""
        nll_sum, num_tokens, num_correct = sums.tolist()
        return LikelihoodSums(nll_sum, round(num_tokens), round(num_correct), num_bytes)

    def metrics(self, prefix: str) -> dict[str, float]:
        """`<prefix>/nll`, `/perplexity`, `/token_accuracy`, and `/bits_per_byte` where bytes are known."""
        if not self.num_tokens:
            raise ValueError("no supervised token was scored")
        nll = self.nll_sum / self.num_tokens
        metrics = {
            f"{prefix}/nll": nll,
            f"{prefix}/perplexity": math.exp(nll) if nll < 700 else math.inf,
            f"{prefix}/token_accuracy": self.num_correct / self.num_tokens,
        }
        if self.num_bytes:
            metrics[f"{prefix}/bits_per_byte"] = self.nll_sum / math.log(2) / self.num_bytes
        return metrics


def cut_batches(lengths: np.ndarray, batch_tokens: int, alike: np.ndarray | None = None) -> list[np.ndarray]:
    """Indices of `lengths` in batches of at most `batch_tokens` tokens (padding included), longest first.

    A pure function, so that batches can be shared out over workers; memory runs out in the first batch or
    never.

    Args:
        alike: a number for each sequence; those of a batch have the same (`bft_ray.model.rotary`). None: all may share one.
    """
    batches: list[list[int]] = []
    used = 0
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[index])
        cost = length if not batches else int(lengths[batches[-1][0]])
        may_share = bool(batches) and (alike is None or alike[index] == alike[batches[-1][0]])
        if may_share and used + cost <= batch_tokens:
            batches[-1].append(index)
            used += cost
        else:
            batches.append([index])
            used = length
    return [np.array(batch, dtype=np.int64) for batch in batches]
