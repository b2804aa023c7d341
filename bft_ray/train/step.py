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
from bft_ray.loss import combine, normalisation
from bft_ray.train.engine import Engine
from bft_ray.train.profiling import phase


@dataclass(frozen=True)
class Share:
    """This rank's share of a global batch, and what the whole batch holds.

    Args:
        micro_batches: the same number on every rank; some may hold no sample.
        places: for each micro-batch the places [S] of its samples in the global batch.
        num_rows: places of the global batch.
        num_samples: its samples with a supervised token.
        num_tokens: its supervised tokens.
    """

    micro_batches: list[MicroBatch]
    places: list[torch.Tensor]
    num_rows: int
    num_samples: int
    num_tokens: int


# scalars of the step, summed over micro-batches and ranks
_SCALARS = ("loss_sum", "weight_sum", "nll_sum", "token_weight_sum", "num_capped", "num_correct", "divergence_sum")
_LEVELS = (10, 50, 90)  # quantiles, in per cent


def draw_seed(seed: int, step: int, rank: int) -> int:
    """The seed of what one rank draws in one step, as a generator takes it: below 2**64, however large that of the run."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % 2**64


def train_step(
    engine: Engine, share: Share, loss: LossConfig, *, step: int, learning_rate: float, seed: int
) -> dict[str, float]:
    """One optimizer step over a global batch, however it is laid out.

    The host waits for the device once, for a vector of all metrics, before the optimizer moves; DeepSpeed's own
    step (ZeRO 1-3) waits for the gradient's norm besides.

    Args:
        engine: this rank's engine.
        share: this rank's share of the batch.
        loss: settings of the loss.
        step: number of the step, from 0.
        learning_rate: of this step.
        seed: of the run; with the step and the rank it seeds dropout.

    Returns:
        metrics by name (`train/...`), the same on every rank.

    Raises:
        NonFinite: on every rank, before the weights move.
    """
    torch.manual_seed(draw_seed(seed, step, engine.rank))
    device, last = engine.device, len(share.micro_batches) - 1
    scalars = torch.zeros(len(_SCALARS), device=device, dtype=torch.float64)
    # sample statistics lie at the sample's place in the global batch: a sum over ranks puts them together
    per_sample = torch.zeros(3, share.num_rows, device=device, dtype=torch.float64)
    finite: list[torch.Tensor] = []
    num_samples = torch.full((), share.num_samples, device=device)
    num_tokens = torch.full((), share.num_tokens, device=device)

    for index, (micro, places) in enumerate(zip(share.micro_batches, share.places, strict=True)):
        micro = micro.to(device)
        engine.before_forward(first=index == 0, last=index == last)
        sums = engine.sums(micro, loss)
        # DeepSpeed averages over ranks: times the world size makes it a sum
        local = combine(sums.loss_sum, None, num_samples, num_tokens, loss)
        with phase("backward"):
            engine.backward(local * engine.world_size)
        scalars += torch.stack([getattr(sums, name).detach().double() for name in _SCALARS])
        finite.append(torch.isfinite(sums.loss_sum.detach()))
        columns = torch.stack(
            [(sums.num_supervised > 0).double(), sums.confidence.double(), sums.sample_weight.double()]
        )
        per_sample.index_copy_(1, places.to(device, non_blocking=True), columns)

    with phase("metrics"):
        scale_value, loss_value, peak, num_asked, *values = _together(
            engine, scalars, per_sample, num_samples, num_tokens, loss
        )
    engine.is_ending = num_asked > 0
    if not math.isfinite(loss_value):
        raise NonFinite(step, "loss", _names(share.micro_batches, finite, engine))
    with phase("optimizer"):
        grad_norm = engine.step(step, learning_rate, scale_value)
    total = dict(zip(_SCALARS, values, strict=False))
    names = [f"train/{what}_p{level}" for what in ("confidence", "sample_weight") for level in _LEVELS]
    tokens, samples = max(share.num_tokens, 1), max(share.num_samples, 1)
    moved = {"train/anchor_kl": total["divergence_sum"] / tokens} if loss.anchor else {}
    return (
        moved
        | {
            "train/loss": loss_value,
            "train/nll": total["nll_sum"] / tokens,
            "train/token_accuracy": total["num_correct"] / tokens,
            "train/grad_norm": grad_norm,
            "train/learning_rate": learning_rate,
            "train/token_weight_mean": total["token_weight_sum"] / tokens,
            "train/capped_share": total["num_capped"] / samples,
            "train/peak_memory_bytes": peak,
        }
        | dict(zip(names, values[len(_SCALARS) :], strict=True))
    )


def _together(
    engine: Engine,
    scalars: torch.Tensor,
    per_sample: torch.Tensor,
    num_samples: torch.Tensor,
    num_tokens: torch.Tensor,
    loss: LossConfig,
) -> list[float]:
    """Over all ranks: [common scale, loss, peak memory, ranks asked to end, scalars ..., quantiles ...]; the one wait for the
    device.
    """
    # the memory of each rank in a slot of its own: the sum over ranks keeps them apart
    memory = torch.zeros(engine.world_size + 1, device=engine.device, dtype=torch.float64)
    memory[engine.rank] = engine.peak_memory_bytes()
    memory[-1] = float(engine.asked())
    if engine.world_size > 1:
        together = torch.cat([scalars, memory, per_sample.flatten()])
        dist.all_reduce(together)
        scalars, memory, flat = together.split([len(scalars), len(memory), per_sample.numel()])
        per_sample = flat.view_as(per_sample)
    sum_of = dict(zip(_SCALARS, scalars, strict=True))
    scale = normalisation(sum_of["weight_sum"], num_samples, loss)
    step_loss = combine(sum_of["loss_sum"], sum_of["weight_sum"], num_samples, num_tokens, loss)
    head = torch.stack([scale, step_loss, memory[:-1].max(), memory[-1]])
    return torch.cat([head, scalars, _quantiles(per_sample, scale)]).tolist()


def _names(micro_batches: Sequence[MicroBatch], finite: list[torch.Tensor], engine: Engine) -> list[str]:
    """Ids of the samples of the micro-batches at fault, from all ranks."""
    mine = [name for micro, good in zip(micro_batches, finite, strict=True) if not good for name in micro.sample_ids]
    everyone: list[list[str]] = [[] for _ in range(engine.world_size)]
    dist.all_gather_object(everyone, mine)
    return [name for names in everyone for name in names]


def _quantiles(per_sample: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Quantiles of the confidence and of the applied weight of the samples that count; NaN without any."""
    counted = per_sample[0] > 0
    rows = torch.stack([per_sample[1], per_sample[2] * scale]).masked_fill(~counted, torch.nan)
    levels = torch.tensor(_LEVELS, dtype=torch.float64, device=per_sample.device) / 100
    return torch.nanquantile(rows, levels, dim=1).T.flatten()
