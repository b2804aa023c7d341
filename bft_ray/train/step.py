"""One training step: forward, loss sums, backward, one reduction, one division, one update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from bft_ray.config import LossConfig
from bft_ray.data.pack import MicroBatch
from bft_ray.errors import NonFinite
from bft_ray.loss import combine, loss_sums, normalisation
from bft_ray.train.engine import Engine


@dataclass(frozen=True)
class GlobalCounts:
    """What one global batch holds over all ranks; known from the plan before the forward pass."""

    num_rows: int  # places of the batch
    num_samples: int  # with a supervised token
    num_tokens: int  # supervised


# scalars of the step, summed over micro-batches and ranks in one vector
_SCALARS = ("loss_sum", "weight_sum", "nll_sum", "token_weight_sum", "num_capped", "num_correct")


def train_step(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    places: Sequence[Sequence[int]],
    counts: GlobalCounts,
    loss: LossConfig,
    *,
    step: int,
    learning_rate: float,
    seed: int,
) -> dict[str, float]:
    """One optimizer step over a global batch, however it is laid out.

    Args:
        engine: this rank's engine.
        micro_batches: this rank's share, the same number on every rank; some may hold no sample.
        places: for each micro-batch the places of its samples in the global batch, 0..S-1.
        counts: of the whole global batch.
        loss: settings of the loss.
        step: number of the step, from 0.
        learning_rate: of this step.
        seed: of the run; with the step and the rank it seeds dropout.

    Returns:
        metrics by name (`train/...`), the same on every rank.

    Raises:
        NonFinite: on every rank, before the weights move.
    """
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + engine.rank)
    scalars = torch.zeros(len(_SCALARS), device=engine.device, dtype=torch.float64)
    # sample statistics lie at the sample's place in the global batch: a sum over ranks puts them together
    per_sample = torch.zeros(3, counts.num_rows, device=engine.device, dtype=torch.float64)
    finite: list[torch.Tensor] = []
    num_samples = torch.tensor(counts.num_samples, device=engine.device)
    num_tokens = torch.tensor(counts.num_tokens, device=engine.device)

    for index, micro in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        micro = micro.to(engine.device)
        engine.before_forward(first=index == 0, last=last)
        sums = loss_sums(engine.logits(micro), micro.labels, micro.sample_index, micro.num_samples, loss)
        # DeepSpeed averages over ranks: times the world size makes it a sum
        local = combine(sums.loss_sum, None, num_samples, num_tokens, loss)
        engine.backward(local * engine.world_size, last=last)
        scalars += torch.stack([getattr(sums, name).detach().double() for name in _SCALARS])
        finite.append(torch.isfinite(sums.loss_sum.detach()))
        if micro.num_samples:
            at = torch.as_tensor(places[index], device=engine.device)
            per_sample[0, at] = (sums.num_supervised > 0).double()
            per_sample[1, at] = sums.confidence.double()
            per_sample[2, at] = sums.sample_weight.double()

    if engine.world_size > 1:
        together = torch.cat([scalars, per_sample.flatten()])
        dist.all_reduce(together)
        scalars, per_sample = together[: len(_SCALARS)], together[len(_SCALARS) :].view_as(per_sample)
    sum_of = dict(zip(_SCALARS, scalars, strict=True))
    scale = normalisation(sum_of["weight_sum"], num_samples, loss)
    step_loss = combine(sum_of["loss_sum"], sum_of["weight_sum"], num_samples, num_tokens, loss)
    values = torch.cat([scalars, torch.stack([scale, step_loss])]).tolist()  # the one wait for the device
    *totals, scale_value, loss_value = values
    if not math.isfinite(loss_value):
        raise NonFinite(step, "loss", _names(micro_batches, finite, engine))
    grad_norm = engine.step(step, learning_rate, scale_value)
    total = dict(zip(_SCALARS, totals, strict=True))
    metrics = {
        "train/loss": loss_value,
        "train/nll": total["nll_sum"] / max(counts.num_tokens, 1),
        "train/token_accuracy": total["num_correct"] / max(counts.num_tokens, 1),
        "train/grad_norm": grad_norm,
        "train/learning_rate": learning_rate,
        "train/token_weight_mean": total["token_weight_sum"] / max(counts.num_tokens, 1),
        "train/capped_share": total["num_capped"] / max(counts.num_samples, 1),
    }
    return metrics | _quantiles(per_sample, scale_value)


def _names(micro_batches: Sequence[MicroBatch], finite: list[torch.Tensor], engine: Engine) -> list[str]:
    """Ids of the samples of the micro-batches at fault, from all ranks."""
    mine = [name for micro, good in zip(micro_batches, finite, strict=True) if not good for name in micro.sample_ids]
    everyone: list[list[str]] = [[] for _ in range(engine.world_size)]
    dist.all_gather_object(everyone, mine)
    return [name for names in everyone for name in names]


def _quantiles(per_sample: torch.Tensor, scale: float) -> dict[str, float]:
    counted = per_sample[0] > 0
    if not counted.any():
        return {}
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=per_sample.device)
    metrics: dict[str, float] = {}
    for name, row, factor in (("confidence", 1, 1.0), ("sample_weight", 2, scale)):
        values = torch.quantile(per_sample[row][counted] * factor, levels).tolist()
        metrics |= {f"train/{name}_p{level}": value for level, value in zip((10, 50, 90), values, strict=True)}
    return metrics
