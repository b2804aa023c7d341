"""Where the ranks of a run meet: on a cluster of only this machine in a file, because torch's own server listens on
every interface, and asks nobody who he is.
"""

from __future__ import annotations

import contextlib
import logging
import os
from datetime import timedelta
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from bft_ray.places.scratch import scratch
from bft_ray.workers.room import is_one_machine

log = logging.getLogger(__name__)

_LEAVE_S = 30.0  # longest wait for the ranks to leave their process group


def torch_config(backend: str, timeout_s: int) -> TorchConfig:
    """For Ray Train; within `bft_ray.workers.connect.connect` only.

    Args:
        backend: `gloo` or `nccl`.
        timeout_s: longest wait of a rank for the others.
    """
    return (_InAFile if is_one_machine() else TorchConfig)(backend=backend, timeout_s=timeout_s)


class _InAFile(TorchConfig):
    @property
    def backend_cls(self) -> Any:
        return _FileBackend


class _FileBackend(Backend):
    """As Ray's for torch, but for the address of the meeting."""

    share_cuda_visible_devices = True
    _place = contextlib.ExitStack()

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        self._place = contextlib.ExitStack()
        folder = self._place.enter_context(scratch("meeting"))  # a new one for each start: a file serves once
        settings = (f"file://{folder}/ranks", backend_config.backend, backend_config.timeout_s)
        ray.get(worker_group.execute_async(_join, *settings))

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            ray.get(worker_group.execute_async(_leave), timeout=_LEAVE_S)
        except GetTimeoutError:
            log.warning("the ranks have not left their process group within %g s", _LEAVE_S)
        finally:
            self._place.close()


def _join(meeting: str, backend: str, timeout_s: int) -> None:
    """On each worker: what torch and DeepSpeed read from the environment, and the process group."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    if backend == "nccl":
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a collective that takes too long ends the rank
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size, timeout=timeout)


def _leave() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
