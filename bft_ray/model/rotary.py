"""Rotary positions that depend, beyond a length, on the longest sample of a batch (`longrope`) or on earlier batches (`dynamic`).

`longrope` has other frequencies where any sample of a batch is longer than what the model was trained with; `dynamic` computes
them from the longest sample that it has seen, until a batch of short ones comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bft_ray.model.halves import causal_of


def stretched(text: Any) -> list[tuple[str, int]]:
    """(`longrope` or `dynamic`, tokens up to which no sample depends on another one) of a text config; [] for most models."""
    described = getattr(text, "rope_parameters", None) or {}
    several = [own for own in described.values() if isinstance(own, dict)] or [described]
    found = []
    for own in several:
        if (kind := own.get("rope_type")) in ("dynamic", "longrope"):
            known = own.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            found.append((kind, int(known or text.max_position_embeddings)))
    return found


class Rotary:
    """Which samples may share a batch without one of them moving the positions of another.

    Args:
        model: causal LM of transformers, with or without a peft adapter.
    """

    def __init__(self, model: Any):
        self._causal = causal_of(model)
        self._kinds = stretched(self._causal.config.get_text_config())

    @property
    def longest(self) -> int:
        """Tokens of a sample up to which it depends on no other one."""
        return min((length for _, length in self._kinds), default=2**62)

    def alike(self, lengths: Sequence[int] | np.ndarray, *, grows: bool = False) -> np.ndarray:
        """A number for each sample, int64 [n]: those with the same one may share a batch.

        Args:
            lengths: tokens of each sample.
            grows: the samples are still written, so that their lengths pass all values up to these.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        if grows:
            return np.where(lengths > self.longest, 1 + np.arange(len(lengths)), 0)
        columns = [np.where(lengths > most, lengths if kind == "dynamic" else 1, 0) for kind, most in self._kinds]
        if not columns or not len(lengths):
            return np.zeros(len(lengths), dtype=np.int64)
        return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].reshape(-1)

    @torch.no_grad()
    def forget(self) -> None:
        """Let the next batch be as the first one of a fresh model: one short sample sets `dynamic` frequencies back."""
        if any(kind == "dynamic" for kind, _ in self._kinds):
            device = next(self._causal.parameters()).device
            self._causal.get_decoder()(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
