"""Nodes leave and come while a trial runs: its workers save and end, and the trial goes on with the nodes that stay.

On each rank a thread looks whether the node has a notice that it will be taken away (`ray drain-node`, or an autoscaler's before a
preemption), and on rank 0 of a trial with fewer workers than it may have, whether there is room for more.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bft_ray.config import ClusterConfig
from bft_ray.train import ranks
from bft_ray.workers.node import notices, staying
from bft_ray.workers.room import are_free, num_places, worker_resources
from bft_ray.workers.watching import watching

log = logging.getLogger(__name__)

_LOOK_S = 2.0  # between two looks for a notice; for room it is `cluster.resize_interval_s`
_LAST_S = 60.0  # before its deadline a node is left, wherever the trial may go on


@contextlib.contextmanager
def moving(cluster: Mapping[str, Any]) -> Iterator[Callable[[], bool]]:
    """A function for a worker: whether its trial should be saved and end here, to go on elsewhere. It only reads what a thread has
    seen. Without Ray it never should.

    Args:
        cluster: that section of the trial's config, as plain data, which need not be valid.
    """
    import ray

    num_workers, is_first, counted = ranks.world_size(), ranks.is_first(), time.monotonic()

    def look() -> bool:
        nonlocal counted
        config = ClusterConfig(**cluster)  # where it is not valid, the trial itself says so
        for_room = is_first and time.monotonic() - counted >= config.resize_interval_s
        counted = time.monotonic() if for_room else counted
        return leaves(config) or (for_room and has_room(config, num_workers))

    if not ray.is_initialized():
        yield lambda: False
        return
    with watching(look, _LOOK_S, "bft-ray-moving") as is_moving:
        yield is_moving


def leaves(cluster: ClusterConfig) -> bool:
    """Whether the trial has to leave the node of this process, which has a notice: as soon as the other nodes have room for the
    fewest workers, free or not, and `_LAST_S` before the deadline in any case. With neither it works on.
    """
    import ray

    deadline_ms = notices().get(ray.get_runtime_context().get_node_id())
    if deadline_ms is None:
        return False
    room = num_places([node["Resources"] for node in staying()], worker_resources(cluster), cluster.placement)
    is_last = 0 < deadline_ms <= (time.time() + _LAST_S) * 1000
    if room >= cluster.least_workers or is_last:
        log.warning("this node will be taken away: the trial is saved after its present step, and goes on elsewhere")
        return True
    return False


def has_room(cluster: ClusterConfig, num_workers: int) -> bool:
    """Whether more workers than these could run the trial: there are places for them that nobody uses."""
    from bft_ray.study.execute.slots import most_workers  # imports Ray Tune, which ranks do without

    more = most_workers(cluster) - num_workers
    if more <= 0 or not are_free(cluster, more):
        return False
    log.warning(
        "there is room for %d more workers: the trial is saved after its present step, and goes on with them", more
    )
    return True
