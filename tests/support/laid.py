"""A micro-batch as the definition of the loss takes it: with a label and a sample at each position."""

from __future__ import annotations

import torch

from bft_ray.data.pack import MicroBatch


def laid_out(micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (-100: not supervised) and samples (-1 there), [B, T]."""
    labels, sample = torch.full_like(micro.input_ids, -100), torch.full_like(micro.input_ids, -1)
    labels.view(-1)[micro.position], sample.view(-1)[micro.position] = micro.target, micro.sample
    return labels, sample
