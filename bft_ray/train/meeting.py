"""Where the ranks of a run meet: on a cluster of only this machine in a file, because torch's own server listens on
every interface, and asks nobody who he is.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

from bft_ray.places.scratch import scratch
from bft_ray.workers.room import is_one_machine


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


class _FileBackend(_TorchBackend):
    """As Ray's, but for the address of the meeting."""

    _place = contextlib.ExitStack()

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        self._place = contextlib.ExitStack()
        folder = self._place.enter_context(scratch("meeting"))  # a new one for each start: a file serves once
        worker_group.execute(_set_torch_distributed_env_vars)
        joined = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{folder}/ranks",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            self._place.close()
