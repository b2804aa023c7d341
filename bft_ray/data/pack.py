"""Samples -> one micro-batch of tensors, packed end to end in one row or padded to the longest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from bft_ray.data.dataset import IGNORED, TokenDataset


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass, int64; [B, T] where nothing else is said; packed: B is 1.

    Attributes:
        input_ids: tokens; `pad_id` at padding.
        position_ids: restart at 0 with every sample of a pack, which is how transformers tells them apart (it does so
            with `use_cache=False` only). None when padded: rows are padded at their end, where a causal model does not
            look back from, so that it needs no mask either, and attention may take its causal kernel.
        position: [N] place in the flattened [B, T] of each supervised token, by sample: known here, so that the
            device need not be asked.
        sample: [N] sample of each supervised token, 0 .. num_samples-1 within this micro-batch.
        target: [N] the supervised tokens.
        lengths: supervised tokens of each sample.
        sample_ids: ids of the samples, by their number.
        num_samples: samples with a supervised token, which are all of them; 0 for the stand-in of an empty
            micro-batch.
        start_logp: [N] float32 log-probability of each supervised token under the weights that training starts from; None
            where the loss does not read it.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    position: torch.Tensor
    sample: torch.Tensor
    target: torch.Tensor
    lengths: list[int]
    sample_ids: list[str]
    num_samples: int
    start_logp: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same micro-batch with its tensors on a device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> MicroBatch:
        """The same micro-batch in pinned memory, from which a copy to a GPU runs beside its work."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        """The same micro-batch with each of its tensors changed."""
        changed: dict[str, Any] = {
            item.name: change(value)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), torch.Tensor)
        }
        return replace(self, **changed)


def collate(dataset: TokenDataset, indices: Sequence[int], packing: bool, pad_id: int) -> MicroBatch:
    """The samples `indices` of a dataset as one micro-batch.

    No indices give a stand-in of two tokens without labels: a rank that has run out of samples still takes
    part in every forward pass.
    """
    samples = [torch.from_numpy(dataset.tokens(i).astype("int64")) for i in indices]
    labels = [torch.from_numpy(dataset.labels(i).astype("int64")) for i in indices]
    if not samples:
        samples, labels = [torch.full((2,), pad_id)], [torch.full((2,), IGNORED)]
    # `starts`: where each sample begins in the flattened batch, end to end or a row each
    if packing:
        input_ids = torch.cat(samples)[None]
        position_ids = torch.cat([torch.arange(len(sample)) for sample in samples])[None]
        starts = np.cumsum([0, *map(len, samples[:-1])]).tolist()
    else:
        input_ids = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=pad_id)
        position_ids = None
        starts = [row * input_ids.shape[1] for row in range(len(samples))]
    own = [(label != IGNORED).nonzero().squeeze(1) for label in labels]
    return MicroBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        position=torch.cat([start + places for start, places in zip(starts, own, strict=True)]),
        sample=torch.cat([torch.full_like(places, number) for number, places in enumerate(own)]),
        target=torch.cat([label[places] for label, places in zip(labels, own, strict=True)]),
        lengths=[len(places) for places in own][: len(indices)],
        sample_ids=[dataset.ids[i] for i in indices],
        num_samples=len(indices),
    )
