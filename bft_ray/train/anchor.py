"""The starting weights that an anchor reads: the model in training with its adapters off, or a frozen copy of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from bft_ray.data.pack import MicroBatch
from bft_ray.loss import Start
from bft_ray.model.halves import halves
from bft_ray.model.lora import adapters_off, has_adapters


class StartingWeights:
    """The model as it is when training starts, without gradient: the same model with its adapters off, or a frozen copy.

    Args:
        model: before the first step, and before a checkpoint is loaded: then a resumed run has the same start.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self._trained = model
        self.is_copy = not has_adapters(model)
        if self.is_copy:
            model = copy.deepcopy(model).requires_grad_(False).eval().to(device)
        self._halves = halves(model)
        self.num_bytes = sum(p.numel() * p.element_size() for p in model.parameters()) if self.is_copy else 0

    @property
    def cost(self) -> str:
        """What an anchor costs, as a clause."""
        held = (
            f"with a frozen copy of {self.num_bytes / 1e6:,.1f} MB on each worker" if self.is_copy else "adapters off"
        )
        return f"one more forward pass of each micro-batch ({held})"

    def hidden(self, micro: MicroBatch) -> Tensor:
        """Last hidden states [B, T, D] of a micro-batch."""
        with self._active():
            return self._halves.hidden(micro.input_ids, micro.position_ids, None)

    def operands(self, hidden: Tensor) -> Start:
        """What the loss reads of the head; under ZeRO-3 within the module that gathers it."""
        with self._active():
            return Start(*self._halves.operands(hidden.flatten(0, 1)))

    @contextmanager
    def _active(self) -> Iterator[None]:
        was_training = self._trained.training
        with torch.no_grad(), nullcontext() if self.is_copy else adapters_off(self._trained):
            try:
                if not self.is_copy:
                    self._trained.eval()
                yield
            finally:
                if not self.is_copy:
                    self._trained.train(was_training)
