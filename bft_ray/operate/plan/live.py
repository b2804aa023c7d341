"""Bytes of the tensors that live at once, seen operation by operation: of real tensors, and of those without data."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is on, each storage that an operation reads or makes counts until it is freed, once.

    What kernels allocate within themselves is not seen.

    Attributes:
        live_bytes: now.
        peak_bytes: most since the start, or since `forget_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._known: set[int] = set()

    def forget_peak(self) -> None:
        """Count the peak from what lives now."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, made)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.count(tensor)
        return made

    def count(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor, unless it is counted already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._freed, key, size).atexit = False  # type: ignore[misc]

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size
