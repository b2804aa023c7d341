"""The loss from hidden states: the [tokens, vocabulary] matrix is never built.

Weights are constants to the gradient, so the gradient of a row of hidden states is its row weight times a
gradient that no weight enters. With a *frozen head* that makes two matmuls: blocks of logits become the
log-probabilities and the unweighted row gradients; when all is seen the weights are known, and the backward
pass scales the rows. The gradient of a *trainable head* sums over rows, so weights must be known before it:
logits are held for whole samples at a time, whose weights depend on nothing else, and there are three
matmuls. A sample longer than the chunk is cut, and the logits of all but its last piece are made twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph as graph_is_kept

from bft_ray.config import LossConfig
from bft_ray.loss.head import Head
from bft_ray.loss.passes import Job, accumulation_dtype, frozen_pass, trainable_pass, weigh_rows
from bft_ray.loss.reference import LossSums, Supervised, check_start, check_words, gather_sums, supervised_positions
from bft_ray.loss.start import Start


def fused_loss_sums(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    sample_index: Tensor,
    num_samples: int,
    config: LossConfig,
    *,
    bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_words: int | None = None,
    start: Start | None = None,
    start_logp: Tensor | None = None,
) -> LossSums:
    """`loss_sums` of the logits `z = cap(logit_scale (hidden W^T + bias))`, which are never held together.

        cap(a) = softcap tanh(a / softcap)          no cap when None

    Prompt and padding rows are dropped before the head. Matmuls run in the dtype of `hidden` (of autocast
    where that is on), everything after them in fp32 (fp64 for fp64). The result equals `loss_sums` up to
    rounding, except in ties: a target whose logit another word shares is not correct here.

    The gradient is computed in the forward pass, as far as it is needed: without gradient (`no_grad`) only
    the logits are. There is no second derivative.

    Args:
        hidden: [B, T, D] last hidden states, after the final norm.
        head_weight: [V, D]. Frozen where it needs no gradient.
        labels, sample_index, num_samples, config: as for `loss_sums`. Finding the supervised tokens waits for
            the device: who knows them calls `fused_row_sums`.
        bias: [V] of the head.
        chunk_tokens: most logits to hold at once, in rows of the vocabulary; None: by their bytes. The block
            of a frozen head has that many logits in another shape, about square, which reads least memory.
        logit_scale: multiplies the logits (Cohere; the inverse of Granite's `logits_scaling`).
        softcap: bound of the logits (Gemma).
        num_words: words of the tokenizer where the head is padded beyond it; the others have probability 0.
        start: hidden states and head under the starting weights; `anchor` reads them.
        start_logp: as for `loss_sums`.

    Raises:
        BadInput: a label that is no word of the head.
    """
    supervised = supervised_positions(labels, sample_index, start_logp)
    check_words(supervised.target, num_words or len(head_weight))
    return fused_row_sums(
        hidden.flatten(0, 1),
        head_weight,
        supervised,
        num_samples,
        config,
        bias=bias,
        chunk_tokens=chunk_tokens,
        logit_scale=logit_scale,
        softcap=softcap,
        num_words=num_words,
        start=None if start is None else start._replace(hidden=start.hidden.flatten(0, 1)),
    )


# a graph break here: the number of rows differs from batch to batch. `torch.compiler.disable` does the same, but imports Dynamo
# now and not with the first call: half of what a command that computes no loss imports
@torch._disable_dynamo
def fused_row_sums(
    hidden: Tensor,
    head_weight: Tensor,
    supervised: Supervised,
    num_samples: int,
    config: LossConfig,
    *,
    bias: Tensor | None = None,
    chunk_tokens: int | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    num_words: int | None = None,
    start: Start | None = None,
) -> LossSums:
    """`fused_loss_sums` for given supervised tokens; nothing waits for the device, if their lengths are given.

    Args:
        hidden: [B T, D] last hidden states of all positions.
        supervised: the tokens; without `lengths` a trainable head waits for the device once, to know them.
        start: hidden states [B T, D'] and head under the starting weights.
    """
    position, sample, target, lengths, start_logp = supervised
    check_start(config, start_logp, "start", start)
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    x = hidden.index_select(0, position - 1).to(dtype)  # [N, D]
    learns = torch.is_grad_enabled()
    job = Job(
        config=config,
        num_samples=num_samples,
        start_logp=start_logp if config.reads_prior else None,
        start=_rows_of(start, position, dtype) if config.anchor else None,
        lengths=lengths,
        chunk_tokens=chunk_tokens,
        num_words=num_words or len(head_weight),
        logit_scale=logit_scale,
        softcap=softcap,
        hidden_learns=learns and x.requires_grad,
        weight_learns=learns and head_weight.requires_grad,
        bias_learns=learns and bias is not None and bias.requires_grad,
    )
    loss_sum, logp, correct, signal, divergence = _FusedLoss.apply(x, head_weight, bias, target, sample, job)
    weights = weigh_rows(logp, signal, sample, num_samples, config, dtype)
    return gather_sums(loss_sum, logp, correct, weights, divergence)


class TargetRows(NamedTuple):
    """What is known of N rows of hidden states and their targets."""

    logp: Tensor  # [N] in nats, fp32 (fp64 for fp64)
    correct: Tensor  # [N] bool, whether the target has the largest logit
    entropy: Tensor | None  # [N] relative entropy of the likeliest words, where it was asked for


@torch.no_grad()
def target_logp(
    x: Tensor,
    head_weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    entropy_top_k: int | None = None,
) -> TargetRows:
    """Log-probability of a target for each row of hidden states; the logits are never held together.

        logp_t = z_t[target_t] - log sum_v e^{z_t[v]},        z as in `fused_loss_sums`

    Args:
        x: [N, D] hidden states of the positions that predict.
        head_weight: [V, D].
        target: [N] int64.
        bias, logit_scale, softcap: as in `fused_loss_sums`.
        entropy_top_k: also the relative entropy of so many of the likeliest words: `bft_ray.loss.entropy`.
    """
    head = Head(head_weight, bias, logit_scale, softcap)
    asked: dict[str, Any] = {} if entropy_top_k is None else {"token_weight": "entropy", "entropy_top_k": entropy_top_k}
    rows = frozen_pass(x, target, head, Job(LossConfig(**asked), 0, len(head_weight)))
    return TargetRows(rows.logp, rows.correct, rows.signal)


class _FusedLoss(torch.autograd.Function):
    """(x [N, D], weight [V, D], bias [V]) -> loss_sum [], logp [N], correct [N], signal and divergence [N] or None; only
    the first has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, sample: Tensor, job: Job
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        with torch.autocast(x.device.type, enabled=False):
            head = Head(
                weight=weight[: job.num_words],
                bias=None if bias is None else bias[: job.num_words],
                scale=job.logit_scale,
                softcap=job.softcap,
            )
            grad_weight = grad_bias = None
            if job.weight_learns:
                grad_weight = torch.zeros_like(
                    weight, dtype=accumulation_dtype(x.dtype), memory_format=torch.contiguous_format
                )
            if bias is not None and job.bias_learns:
                grad_bias = torch.zeros_like(bias, dtype=accumulation_dtype(x.dtype))
            if grad_weight is None and grad_bias is None:
                rows = frozen_pass(x, target, head, job)
            else:
                rows = trainable_pass(x, target, sample, head, job, grad_weight, grad_bias)
            weights = weigh_rows(rows.logp, rows.signal, sample, job.num_samples, job.config, x.dtype)
        ctx.save_for_backward(rows.gradient, weights.row, grad_weight, grad_bias)
        ctx.weight_dtype, ctx.bias_dtype = weight.dtype, None if bias is None else bias.dtype
        plain = [rows.logp, rows.correct, rows.signal, rows.divergence]
        ctx.mark_non_differentiable(*(tensor for tensor in plain if tensor is not None))
        ctx.set_materialize_grads(False)
        loss = -rows.logp if rows.divergence is None else rows.divergence * job.config.anchor - rows.logp
        return (weights.row * loss).sum(), rows.logp, rows.correct, rows.signal, rows.divergence

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the fused loss has no second derivative (create_graph=True): use `loss_sums`")
        if grad is None:
            return (None,) * 6
        rows, row_weight, grad_weight, grad_bias = ctx.saved_tensors
        return (
            None if rows is None else _scaled(rows, (row_weight * grad)[:, None], rows.dtype),
            None if grad_weight is None else _scaled(grad_weight, grad, ctx.weight_dtype),
            None if grad_bias is None else _scaled(grad_bias, grad, ctx.bias_dtype),
            *(None,) * 3,
        )


def _rows_of(start: Start | None, position: Tensor, dtype: torch.dtype) -> Start:
    """The hidden states [N, D'] that predict the tokens at these positions."""
    assert start is not None  # as `check_start` has seen
    return start._replace(hidden=start.hidden.index_select(0, position - 1).to(dtype).detach())


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`gradient * factor`, in place where no later backward pass will ask again: these are large."""
    reuse = dtype == gradient.dtype and not graph_is_kept()
    out = gradient if reuse else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, factor, out=out)
