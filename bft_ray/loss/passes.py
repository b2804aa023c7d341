"""The two ways through the head: two matmuls where it is frozen, three where it learns; see `bft_ray.loss.fused`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from bft_ray.config import LossConfig
from bft_ray.loss.entropy import TopLogits, largest, relative_entropy
from bft_ray.loss.head import Head, OtherWords, add_product, product, residual, row_gradient
from bft_ray.loss.start import Start, StartWords
from bft_ray.loss.weights import Weights, weigh

#: Logits held at once under a frozen head: 16 MB on a CPU, about its caches; 64 MB on devices with more to fill.
BLOCK_LOGITS = {"cpu": 2**22}
BLOCK_LOGITS_DEVICE = 2**24
#: Logits held at once under a trainable head, 256 MB: whole samples fit, and the head's gradient is as large.
CHUNK_LOGITS = 2**26


@dataclass(frozen=True)
class Job:
    """Everything that has no gradient, except target and sample."""

    config: LossConfig
    num_samples: int
    num_words: int
    start_logp: Tensor | None = None  # [N]
    start: Start | None = None  # hidden states [N, D']
    lengths: list[int] | None = None
    chunk_tokens: int | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    hidden_learns: bool = False
    weight_learns: bool = False
    bias_learns: bool = False


@dataclass
class Rows:
    """What is found out about each of the N rows."""

    logp: Tensor  # [N]
    correct: Tensor  # [N] bool
    gradient: Tensor | None  # [N, D] d(-logp + anchor KL)/dx, no weight in it
    signal: Tensor | None  # [N] what the token weight reads beside logp
    divergence: Tensor | None  # [N] KL to the starting weights

    @classmethod
    def empty(cls, x: Tensor, job: Job) -> Rows:
        """Rows to be filled, with what the job needs."""
        dtype = accumulation_dtype(x.dtype)
        has_entropy = job.config.token_weight == "entropy"
        return cls(
            logp=x.new_empty(len(x), dtype=dtype),
            correct=x.new_empty(len(x), dtype=torch.bool),
            gradient=torch.empty_like(x) if job.hidden_learns else None,
            signal=x.new_empty(len(x), dtype=dtype) if has_entropy else job.start_logp,
            divergence=x.new_empty(len(x), dtype=dtype) if job.start is not None else None,
        )


def frozen_pass(x: Tensor, target: Tensor, head: Head, job: Job) -> Rows:
    """Two matmuls, over blocks of rows and words: logits, then the row gradients, as flash attention does it."""
    num_words = len(head.weight)
    rows, config = Rows.empty(x, job), job.config
    room = job.chunk_tokens * num_words if job.chunk_tokens else BLOCK_LOGITS.get(x.device.type, BLOCK_LOGITS_DEVICE)
    rows_at_once = max(1, min(len(x), isqrt(room)))
    words_at_once = min(num_words, room // rows_at_once)
    buffer = x.new_empty(rows_at_once * words_at_once, dtype=accumulation_dtype(x.dtype))
    start_buffer = torch.empty_like(buffer) if job.start is not None else None
    for first_row in range(0, len(x), rows_at_once):
        part = slice(first_row, first_row + rows_at_once)
        others = OtherWords(target[part], buffer.dtype)
        top = TopLogits(config.entropy_top_k) if config.token_weight == "entropy" else None
        start = _start_words(job, head, part, target, start_buffer, None if rows.gradient is None else x[part])
        total = torch.zeros_like(x[part], dtype=buffer.dtype)  # [n, D] sum over other words of e^(z - peak) slope W
        for first_word in range(0, num_words, words_at_once):
            words = slice(first_word, first_word + words_at_once)
            z, slope = head.logits(x[part], words, buffer)
            if top is not None:
                top.add(z)
            if start is not None:
                start.add(z, slope, words, head.weight[words].to(x.dtype))
            shrink = others.add(z, first_word)
            if rows.gradient is not None:
                if slope is not None:
                    z *= slope
                total *= shrink[:, None]
                add_product(total, z.to(x.dtype), head.weight[words].to(x.dtype))
        rows.logp[part] = others.logp()
        rows.correct[part] = others.correct()
        if top is not None:
            rows.signal[part] = top.relative_entropy()  # type: ignore[index]
        if start is not None:
            rows.divergence[part] = start.divergence(others)  # type: ignore[index]
        if rows.gradient is not None:
            slope_target = None if head.softcap is None else 1 - (others.target_logit / head.softcap).square()
            gradient = row_gradient(total, others, head, slope_target)
            if start is not None:
                gradient.mul_(1 + config.anchor).sub_(start.row_gradient(head, slope_target), alpha=config.anchor)
            rows.gradient[part] = gradient
    return rows


def trainable_pass(
    x: Tensor,
    target: Tensor,
    sample: Tensor,
    head: Head,
    job: Job,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> Rows:
    """Three matmuls, over chunks of whole samples: logits, row gradients, and the weighted gradient of the head."""
    rows, config = Rows.empty(x, job), job.config
    rows_at_once = job.chunk_tokens or max(1, CHUNK_LOGITS // len(head.weight))
    lengths = job.lengths
    if lengths is None:
        lengths = torch.bincount(sample, minlength=job.num_samples).tolist()
    longest = min(len(x), rows_at_once)
    buffer = x.new_empty(longest * len(head.weight), dtype=accumulation_dtype(x.dtype))
    start_buffer = torch.empty_like(buffer) if job.start is not None else None
    head = replace(head, weight=head.weight.to(x.dtype))

    def weightless(part: slice) -> Tensor:
        """[n, V] `(softmax - onehot) slope`, the gradient of -logp (and of the anchor) to the logits before cap and scale."""
        z, slope = head.logits(x[part], slice(None), buffer)
        others = OtherWords(target[part], z.dtype)
        start = _start_words(job, head, part, target, start_buffer, None)
        if config.token_weight == "entropy":
            rows.signal[part] = relative_entropy(largest(z, config.entropy_top_k))  # type: ignore[index]
        if start is not None:
            start.add(z, None, slice(0, z.shape[1]), head.weight)
        others.add(z, 0)
        rows.logp[part], rows.correct[part] = others.logp(), others.correct()
        residual(z, others)
        if start is not None:
            rows.divergence[part] = start.divergence(others)  # type: ignore[index]
            z.mul_(1 + config.anchor).sub_(start.residual(), alpha=config.anchor)
        if slope is not None:
            z *= slope
        return z.to(x.dtype)

    for first, stop, first_sample, stop_sample in _whole_samples(lengths, rows_at_once):
        pieces = [slice(i, min(i + rows_at_once, stop)) for i in range(first, stop, rows_at_once)]
        for piece in pieces:
            z = weightless(piece)
            if rows.gradient is not None:
                rows.gradient[piece] = product(z, head.weight, rows.logp.dtype).mul_(head.scale)
        weights = weigh_rows(
            rows.logp[first:stop],
            None if rows.signal is None else rows.signal[first:stop],
            sample[first:stop] - first_sample,
            stop_sample - first_sample,
            config,
            x.dtype,
        )
        for piece in reversed(pieces):
            if piece is not pieces[-1]:
                z = weightless(piece)
            weight = weights.row[piece.start - first : piece.stop - first] * head.scale
            if grad_weight is not None:
                add_product(grad_weight[: job.num_words], z.t(), (x[piece] * weight[:, None]).to(x.dtype))
            if grad_bias is not None:
                grad_bias[: job.num_words] += z.t() @ weight.to(z.dtype)
    return rows


def _whole_samples(lengths: list[int], rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut rows between samples: (first row, stop, first sample, stop), at most `rows` rows or one sample."""
    first = stop = first_sample = 0
    for sample, length in enumerate(lengths):
        if stop > first and stop + length - first > rows:
            yield first, stop, first_sample, sample
            first, first_sample = stop, sample
        stop += length
    if stop > first:
        yield first, stop, first_sample, len(lengths)


def _start_words(
    job: Job, head: Head, part: slice, target: Tensor, buffer: Tensor | None, like: Tensor | None
) -> StartWords | None:
    """What the anchor needs of these rows; None without an anchor."""
    if job.start is None or buffer is None:
        return None
    hidden, weight, bias = job.start
    own = replace(head, weight=weight[: job.num_words], bias=None if bias is None else bias[: job.num_words])
    return StartWords(hidden[part], own, target[part], buffer, like)


def weigh_rows(
    logp: Tensor, signal: Tensor | None, sample: Tensor, num_samples: int, config: LossConfig, dtype: torch.dtype
) -> Weights:
    """`weigh`; probabilities of `token_weight: prob` are rounded to the dtype of the logits."""
    return weigh(logp, sample, num_samples, config, logp.exp().to(dtype) if config.token_weight == "prob" else signal)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: fp32, and fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
