"""The process group of ranks that stay: joined once, and then used by one trial after the other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_stores: dict[str, Any] = {}  # address -> the server of this process, which ends with it


def open_meeting(host: str) -> str:
    """The address `tcp://HOST:PORT` of a store in this process, on a free port; rank 0 calls it.

    Args:
        host: address of this node. Torch alone would listen on every interface.
    """
    family = socket.getaddrinfo(host, None)[0][0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.bind((host, 0))
    listening.listen()
    port = listening.getsockname()[1]
    store = dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(), use_libuv=True
    )
    address = f"tcp://{host}:{port}"
    _stores[address] = store
    return address


def join(meeting: str, rank: int, world_size: int, timeout_s: float) -> None:
    """Join the process group of all ranks; returns when every rank has joined.

    Args:
        meeting: what `open_meeting` returned on rank 0, or `file://PATH` of a new file that all ranks see.
        timeout_s: longest wait of a rank for the others, here and in every collective.

    Raises:
        RuntimeError: the others have not come in time.
    """
    # each rank sees its own device alone, as its first
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    timeout = timedelta(seconds=timeout_s)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    common: dict[str, Any] = dict(rank=rank, world_size=world_size, timeout=timeout)
    if meeting.startswith("file://"):
        dist.init_process_group(backend, init_method=meeting, **common)
    else:
        host, _, port = meeting.removeprefix("tcp://").rpartition(":")
        store = _stores.get(meeting) or dist.TCPStore(host, int(port), is_master=False, timeout=timeout)
        dist.init_process_group(backend, store=store, **common)
    barrier()


def limit_waits(timeout_s: float) -> None:
    """Give every process group of this rank this longest wait; DeepSpeed makes its own with torch's, half an hour.

    Without it a rank that hangs would be noticed only then.
    """
    c10d = dist.distributed_c10d
    for group in list(c10d._world.pg_map):
        if isinstance(group, dist.ProcessGroup):
            c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def is_first() -> bool:
    """Whether this process is rank 0, which writes and reports; a process without a group is."""
    return not dist.is_initialized() or dist.get_rank() == 0


def world_size() -> int:
    """Number of ranks; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Return when all ranks have called it."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1, device=_device()))


def from_first(value: T) -> T:
    """The `value` that rank 0 gives, on every rank."""
    if world_size() == 1:
        return value
    box: list[Any] = [value if is_first() else None]
    dist.broadcast_object_list(box, 0, device=_device())
    return box[0]


def agree(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, which alone calls it; if it raises an error there, every rank raises it."""
    made: tuple[Any, Exception | None] = (None, None)
    if is_first():
        try:
            made = make(), None
        except Exception as error:
            if world_size() == 1:
                raise
            made = None, error
    value, failed = from_first(made)
    if failed is not None:
        raise failed
    return value


def gather(value: Any) -> list[Any]:
    """The values of all ranks in their order, on rank 0; an empty list elsewhere."""
    everyone: list[Any] | None = [None] * world_size() if is_first() else None
    dist.gather_object(value, everyone, 0)
    return everyone or []


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
