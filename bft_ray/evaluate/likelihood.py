"""How likely a model finds given tokens: negative log-likelihood, token accuracy, perplexity, bits per byte.

For a supervised token t of a sequence (label other than -100; position 0 never is one),

    nll_t = logsumexp(z_{t-1}) - z_{t-1}[x_t]      z: logits, in fp32;  in nats.

Sums run in fp64. In fp32 they do not depend on how sequences are batched, packed or shared out over workers
beyond rounding (1e-5); in bf16 the model itself rounds, and more.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from bft_ray.data.pack import MicroBatch, collate
from bft_ray.errors import BftError

_IGNORED = -100
_SOFTMAX_ELEMENTS = 2**26  # of a chunk of logits in fp32: 256 MiB


class Sequences(Protocol):
    """What can be scored: a TokenDataset, or anything else with these members."""

    @property
    def ids(self) -> list[str]:
        """Names, for errors."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens a sequence, [n]."""

    def tokens(self, index: int) -> np.ndarray:
        """Token ids [T]."""

    def labels(self, index: int) -> np.ndarray:
        """The token where it is supervised, else -100, [T]; position 0 is -100."""


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
        """From [nll_sum, num_tokens, num_correct], as `score_micro_batches` returns them."""
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


@dataclass(frozen=True)
class SequenceScores:
    """Per sequence: nll [n] float64 in nats, num_tokens [n] and num_correct [n] int64."""

    nll: np.ndarray
    num_tokens: np.ndarray
    num_correct: np.ndarray

    def sums(self, num_bytes: int = 0) -> LikelihoodSums:
        """Over all sequences."""
        return LikelihoodSums(float(self.nll.sum()), int(self.num_tokens.sum()), int(self.num_correct.sum()), num_bytes)


def score(
    model: torch.nn.Module,
    dataset: Any,
    batch_tokens: int,
    device: torch.device | str,
    indices: Sequence[int] | None = None,
    *,
    packing: bool = False,
    pad_id: int = 0,
) -> LikelihoodSums:
    """Likelihood of a TokenDataset (or of its samples `indices`) under a model; see `score_sequences`."""
    chosen = list(range(len(dataset))) if indices is None else list(indices)
    scores = score_sequences(model, dataset, batch_tokens, device, chosen, packing=packing, pad_id=pad_id)
    return scores.sums(int(np.asarray(dataset.num_bytes)[chosen].sum()))


def score_sequences(
    model: torch.nn.Module,
    sequences: Sequences,
    batch_tokens: int,
    device: torch.device | str,
    indices: Sequence[int] | None = None,
    *,
    packing: bool = False,
    pad_id: int = 0,
) -> SequenceScores:
    """The scores of sequences, in the order of `indices` (null: all).

    Batches hold sequences of like length, so that padding is small; packing pays only where attention skips
    what lies between samples (flash attention): sdpa's cost grows with the square of the pack. Logits are
    made only at positions where some row of the batch has a supervised token, if the model knows
    `logits_to_keep`, as nearly all in transformers do; scaled or soft-capped logits are thus the model's own.

    Args:
        model: causal LM of transformers, with or without a peft adapter, on `device`.
        batch_tokens: tokens a batch at most, padding included; bounds memory. A longer sequence is a batch of
            its own.

    Raises:
        BftError: log-probabilities that are not finite; names the sequences.
    """
    chosen = np.arange(len(sequences.ids)) if indices is None else np.asarray(indices, dtype=np.int64)
    nll = np.zeros(len(chosen))
    num_tokens, num_correct = np.zeros(len(chosen), dtype=np.int64), np.zeros(len(chosen), dtype=np.int64)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for places in cut_batches(np.asarray(sequences.lengths)[chosen], batch_tokens, packing):
                micro = collate(sequences, chosen[places], packing, pad_id).to(device)  # type: ignore[arg-type]
                keep = _predicting(micro)
                sums = _sample_sums(_logits(model, micro, keep), micro, keep)
                nll[places], num_tokens[places], num_correct[places] = sums.cpu().numpy()
    finally:
        model.train(was_training)
    if not np.isfinite(nll).all():
        names = [sequences.ids[index] for index in chosen[~np.isfinite(nll)][:8]]
        raise BftError(f"the model's log-probabilities are not finite for {', '.join(names)}; try model.dtype=fp32")
    return SequenceScores(nll, num_tokens, num_correct)


def score_micro_batches(
    logits: Callable[[MicroBatch], torch.Tensor],
    micro_batches: Iterable[MicroBatch],
    device: torch.device | str,
) -> torch.Tensor:
    """[nll_sum, num_tokens, num_correct] float64 on `device` over a rank's micro-batches, for the caller to
    all-reduce.

    For use within training: exactly one call of `logits` for each micro-batch, empty ones too, so that ranks
    with equal numbers of micro-batches make equal numbers of forward passes, as ZeRO-3 demands. The caller
    sets eval mode.

    Args:
        logits: micro-batch on the device -> logits [B, T, V].
    """
    total = torch.zeros(3, dtype=torch.float64, device=device)
    with torch.no_grad():
        for batch in micro_batches:
            micro = batch.to(device)
            keep = _predicting(micro)
            total += _sample_sums(logits(micro)[:, keep], micro, keep).sum(1)
    return total


def cut_batches(lengths: np.ndarray, batch_tokens: int, packing: bool = False) -> list[np.ndarray]:
    """Indices of `lengths` in batches of at most `batch_tokens` tokens (padding included), longest first.

    A pure function, so that batches can be shared out over workers; memory runs out in the first batch or
    never.
    """
    batches: list[list[int]] = []
    used = 0
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[index])
        cost = length if packing or not batches else int(lengths[batches[-1][0]])
        if batches and used + cost <= batch_tokens:
            batches[-1].append(index)
            used += cost
        else:
            batches.append([index])
            used = length
    return [np.array(batch, dtype=np.int64) for batch in batches]


def _logits(model: torch.nn.Module, micro: MicroBatch, keep: torch.Tensor) -> torch.Tensor:
    """Logits [B, K, V] at the positions `keep` [K]."""
    inputs = {
        "input_ids": micro.input_ids,
        "attention_mask": micro.attention_mask,
        "position_ids": micro.position_ids,
    }
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:  # type: ignore[union-attr]
        return model(**inputs, use_cache=False, logits_to_keep=keep).logits
    return model(**inputs, use_cache=False).logits[:, keep]


def _predicting(micro: MicroBatch) -> torch.Tensor:
    """Positions [K] that predict a supervised token in some row; one at least, because a forward pass needs
    it.
    """
    keep = (micro.labels[:, 1:] != _IGNORED).any(0).nonzero().squeeze(1)
    return keep if len(keep) else torch.zeros(1, dtype=torch.long, device=keep.device)


def _sample_sums(logits: torch.Tensor, micro: MicroBatch, keep: torch.Tensor) -> torch.Tensor:
    """nll, supervised tokens and right ones of each sample, [3, S] float64, from logits [B, K, V] at `keep`
    [K].
    """
    targets, samples = micro.labels[:, 1:][:, keep], micro.sample_index[:, 1:][:, keep]  # [B, K]
    rows, columns = (targets != _IGNORED).nonzero(as_tuple=True)  # [N]
    sums = torch.zeros(3, max(micro.num_samples, 1), dtype=torch.float64, device=logits.device)
    size = max(1, _SOFTMAX_ELEMENTS // logits.shape[-1])
    for row, column in zip(rows.split(size), columns.split(size), strict=True):
        z, target = logits[row, column].float(), targets[row, column]  # [n, V], [n]
        nll = z.logsumexp(-1) - z.gather(1, target[:, None]).squeeze(1)
        values = torch.stack([nll.double(), torch.ones_like(nll).double(), (z.argmax(-1) == target).double()])
        sums.index_add_(1, samples[row, column], values)
    return sums
