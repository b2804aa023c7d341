"""Whether a cluster can hold the workers that a config asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from bft_ray.config import ClusterConfig
from bft_ray.errors import NoRoom
from bft_ray.waits import waiting
from bft_ray.workers.address import address_of
from bft_ray.workers.node import living, notices

log = logging.getLogger(__name__)


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """What Ray reserves for one worker: resource name -> amount, zeros left out; within `connect` only."""
    asked = {
        "CPU": cluster.cpus_per_worker,
        "GPU": num_gpus_per_worker(cluster),
    } | cluster.resources_per_worker
    return {name: amount for name, amount in asked.items() if amount}


def num_gpus_per_worker(cluster: ClusterConfig) -> float:
    """`cluster.gpus_per_worker`, or if that is null 1 where the cluster has GPUs now, else 0; within
    `connect` only.

    On a cluster that scales up from no GPU, say `gpus_per_worker`.
    """
    import ray

    if cluster.gpus_per_worker is not None:
        return cluster.gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def is_one_machine() -> bool:
    """Whether the cluster is a local Ray, on loopback alone; within `connect` only."""
    return all(node["NodeManagerAddress"] == "127.0.0.1" for node in living())


@waiting("waiting for room for the workers")
def require_resources(cluster: ClusterConfig) -> None:
    """Return once the cluster's nodes could hold the workers, at least as many as training needs (free or not); within `connect` only.

    A local Ray cannot grow and is refused at once. Any other cluster may be scaling up, so it gets
    `cluster.start_timeout_s`.

    Raises:
        NoRoom: names what was asked and what the cluster has.
    """
    deadline = time.monotonic() + (0.0 if address_of(cluster) is None else cluster.start_timeout_s)
    told = False
    while True:
        nodes = [node["Resources"] for node in living()]
        need = worker_resources(cluster)
        room = num_places(nodes, need, cluster.placement)
        if room >= cluster.least_workers:
            return
        if time.monotonic() >= deadline:
            raise too_small(cluster, need, f"at most {room}")
        if not told:
            log.warning(
                "waiting up to %.0f s for the cluster to grow: it has room for %d of %d workers of %s",
                cluster.start_timeout_s,
                room,
                cluster.least_workers,
                _amounts(need),
            )
            told = True
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


def num_places(nodes: Sequence[dict[str, float]], need: dict[str, float], placement: str = "PACK") -> int:
    """How many workers that each need `need` fit on nodes with these resources under a Ray placement
    strategy.
    """
    each = [
        min((int(node.get(name, 0.0) / amount + 1e-6) for name, amount in need.items()), default=0) for node in nodes
    ]
    if placement == "STRICT_PACK":
        return max(each, default=0)
    if placement == "STRICT_SPREAD":
        return sum(places > 0 for places in each)
    return sum(each)


def are_free(cluster: ClusterConfig, num_workers: int) -> bool:
    """Whether nobody uses places for so many more workers. All that nodes with a notice have counts as free there, and for nothing;
    within `connect` only.
    """
    import ray

    going, free = notices(), ray.available_resources()
    lost = [node["Resources"] for node in living() if node["NodeID"] in going]
    need = worker_resources(cluster)
    return all(
        free.get(name, 0.0) - sum(node.get(name, 0.0) for node in lost) >= num_workers * amount - 1e-6
        for name, amount in need.items()
    )


def too_small(cluster: ClusterConfig, need: dict[str, float], rule: str) -> NoRoom:
    """The error that names what was asked, and what the cluster has."""
    import ray

    nodes = [node["Resources"] for node in living()]
    for name, amount in need.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if amount > most:  # on no number of such nodes
            field = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}.get(name, f"resources_per_worker.{name}")
            remedy = "Lower it, or take a cluster (cluster.address) that has them."
            return NoRoom(
                f"cluster.{field}", amount, f"at most {most:g}: no node of the cluster has more {name}", remedy
            )
    total, free = ray.cluster_resources(), ray.available_resources()
    has = _amounts({name: total.get(name, 0.0) for name in need})
    left = _amounts({name: free.get(name, 0.0) for name in need})
    return NoRoom(
        "cluster.num_workers" if cluster.min_workers is None else "cluster.min_workers",
        cluster.least_workers,
        f"{rule}: each worker asks for {_amounts(need)} ({cluster.placement}), and the cluster has {has} "
        f"on {len(nodes)} node{'s' if len(nodes) != 1 else ''} ({left} free)",
        "Lower num_workers, cpus_per_worker or gpus_per_worker, or use a larger cluster.",
    )


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(resources.items())) or "nothing"


def in_bundle(kind: type, need: dict[str, float], group: Any, bundle: int) -> Any:
    """An actor class of Ray whose actors run in one bundle of a placement group, with all that is reserved there.

    Args:
        need: as from `worker_resources`.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return ray.remote(kind).options(
        num_cpus=need.get("CPU", 0),
        num_gpus=need.get("GPU", 0),
        resources={name: amount for name, amount in need.items() if name not in ("CPU", "GPU")},
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
    )
