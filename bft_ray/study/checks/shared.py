"""Whether the nodes that run trials see the driver's folder of results: checked before anything is trained."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bft_ray.config import ClusterConfig
from bft_ray.errors import BadInput
from bft_ray.places import storage
from bft_ray.workers.node import living
from bft_ray.workers.room import num_places, worker_resources

_ANSWER_S = 60.0  # for all nodes together; each starts a process for it
_SIGN = ".bft_ray_shared_"


def require_shared(cluster: ClusterConfig) -> None:
    """Return if every node with room for a worker sees what this process writes to `cluster.storage_path`; within
    `bft_ray.workers.connect.connect` only. Object stores and single nodes are not checked.

    Raises:
        BadInput: names the nodes that see another folder.
    """

    path, nodes = storage.absolute(cluster.storage_path), living()
    if storage.is_remote(path) or len(nodes) < 2:
        return
    need = worker_resources(cluster)
    asked = [node for node in nodes if num_places([node["Resources"]], need)]
    if blind := blind_nodes(path, asked):
        where = ", ".join(blind)
        rule = f"a folder that all nodes share: what is written there cannot be seen on {where}"
        raise BadInput(
            "cluster.storage_path", path, rule, "Give a folder that all nodes mount, or a URI (s3://, gs://)."
        )


def blind_nodes(path: str, nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Addresses of the nodes that do not see what is written to a folder here. A node that fails, or does not answer
    within a minute, is not among them.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    sign = storage.join(path, f"{_SIGN}{uuid.uuid4().hex}")
    storage.write_text(sign, "")
    remove_signs(path, before=Path(sign).stat().st_mtime - 2 * _ANSWER_S)  # by the clock of the file system alone
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_sees)
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=there).remote(sign)] = node["NodeManagerAddress"]
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
        for ref in late:
            ray.cancel(ref, force=True)
        blind = []
        for ref in done:
            with contextlib.suppress(RayError):  # a trial would have the same error, and is run again
                if not ray.get(ref):
                    blind.append(asked[ref])
        return blind
    finally:
        Path(sign).unlink(missing_ok=True)


def remove_signs(path: str, before: float) -> None:
    """Remove what checks left whose process was killed: files last written before this time (s since the epoch)."""
    for file in Path(path).glob(f"{_SIGN}*"):
        with contextlib.suppress(FileNotFoundError):  # another driver removes it as well
            if file.stat().st_mtime < before:
                file.unlink()


def _sees(path: str) -> bool:
    """Whether this node sees the file. Listing the folder makes a network file system renew its cache."""
    file = Path(path)
    return file.parent.is_dir() and file.name in {one.name for one in file.parent.iterdir()}
