"""Notices that a node of a run will be taken away, as Ray passes them on (`ray drain-node`, or an autoscaler before a preemption).

All ranks look at the same steps, about every `_LOOK_S` seconds: a look waits for all of them. Alone in its cluster, a node that is
taken away ends the run whatever one does, so there they look for another node now and then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import ray
import ray.train
import ray.train.collective

from bft_ray.config import ClusterConfig
from bft_ray.workers.room import num_places, worker_resources

#: nothing; save a checkpoint, and go on here; save one, and end here, because there is room elsewhere
Answer = Literal["", "save", "leave"]

_LOOK_S, _ALONE_S = 2.0, 30.0  # between two looks; where the cluster has one node
_MOST_STEPS = 1000  # between two looks, however fast they are


@dataclass(frozen=True)
class Look:
    """What rank 0 tells the others.

    Args:
        next: the step of the next look.
        room: workers that nodes without a notice have room for; None: there is no notice.
        away: ids of the nodes with a notice, earlier ones included.
    """

    next: int
    room: int | None
    away: tuple[str, ...]


class Notices:
    """The notices of one start of the workers; every rank has one.

    Args:
        away: ids of the nodes with a notice on which the workers were not started.
    """

    def __init__(self, cluster: ClusterConfig, away: Sequence[str] = ()):
        self.away = tuple(away)
        self._cluster, self._num_workers = cluster, ray.train.get_context().get_world_size()
        self._next, self._last, self._told = 0, (0, 0.0), frozenset[str]()
        self.why = ""  # of the last answer, as a clause

    def after(self, step: int) -> Answer:
        """What to do after this step; every rank calls it after every step, and gets the same answer."""
        if step < self._next:
            return ""
        info = ray.train.get_preemption_info()
        new = frozenset(info.preempted_node_ids if info else ()) - self._told
        seen = ray.train.collective.broadcast_from_rank_zero(self._look(step, new))
        self._next = seen.next
        if seen.room is None:
            return ""
        self._told |= new
        least, most = self._cluster.least_workers, self._cluster.num_workers
        if new:
            self.away, self.why = seen.away, "a node of the run is to be taken away"
            return "leave" if seen.room >= least else "save"
        self.why = "there is room for more workers"
        return "leave" if min(seen.room, most) > self._num_workers else ""  # it was started on what was left

    def _look(self, step: int, new: frozenset[str]) -> Look | None:
        """None on all ranks but the first."""
        if ray.train.get_context().get_world_rank() != 0:
            return None
        now = time.monotonic()
        before, at = self._last
        self._last = step, now
        pace = (now - at) / (step - before) if before and step > before else _LOOK_S
        away = tuple(sorted({*self.away, *new}))
        room = room_without(self._cluster, away) if away else None
        every = _LOOK_S if sum(node["Alive"] for node in ray.nodes()) > 1 else _ALONE_S
        return Look(step + max(1, min(_MOST_STEPS, int(every / max(pace, 1e-6)))), room, away)


def room_without(cluster: ClusterConfig, away: Sequence[str]) -> int:
    """How many workers fit on the nodes that live and have no notice, free or not; within `connect` or on a worker only."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in away]
    return num_places(nodes, worker_resources(cluster), cluster.placement)


def still_there(away: Sequence[str]) -> tuple[str, ...]:
    """Those of the nodes that live."""
    return tuple(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] in away)
