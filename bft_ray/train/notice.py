"""Notices that a node of a run will be taken away, as Ray passes them on (`ray drain-node`, or an autoscaler before a preemption).

All ranks look at the same steps, about every `_LOOK_S` seconds: a look waits for all of them. Alone in its cluster, a node that is
taken away ends the run whatever one does, so there they look for another node now and then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import ray
import ray.train
import ray.train.collective

from bft_ray.config import ClusterConfig
from bft_ray.errors import first_line
from bft_ray.workers.node import living, staying
from bft_ray.workers.room import are_free, num_places, worker_resources

log = logging.getLogger(__name__)

#: nothing; save a checkpoint, and go on here; save one, and end here, because there is room elsewhere
Answer = Literal["", "save", "leave"]

_LOOK_S, _ALONE_S = 2.0, 30.0  # between two looks; where the cluster has one node
_MOST_STEPS = 1000  # between two looks, however fast they are


@dataclass(frozen=True)
class Look:
    """What rank 0 tells the others.

    Args:
        next: the step of the next look.
        answer, why: what to do, and why as a clause.
        told: nodes whose notice is answered.
        away: ids of the nodes with a notice, earlier ones included.
    """

    next: int
    answer: Answer = ""
    why: str = ""
    told: frozenset[str] = frozenset()
    away: tuple[str, ...] = ()


class Notices:
    """The notices of one start of the workers; every rank has one.

    Args:
        away: ids of the nodes with a notice on which the workers were not started.
    """

    def __init__(self, cluster: ClusterConfig, away: Sequence[str] = ()):
        self.away, self.why = tuple(away), ""
        self._cluster, self._num_workers = cluster, ray.train.get_context().get_world_size()
        self._next, self._last = 0, (0, 0.0)
        self._started_without = self._told = frozenset(away)

    def after(self, step: int) -> Answer:
        """What to do after this step; every rank calls it after every step, and gets the same answer."""
        if step < self._next:
            return ""
        info = ray.train.get_preemption_info()  # the same on all ranks: Ray Train broadcasts it
        new = frozenset(info.preempted_node_ids if info else ()) - self._told
        is_first = ray.train.get_context().get_world_rank() == 0
        seen = ray.train.collective.broadcast_from_rank_zero(self._look(step, new) if is_first else None)
        self._next, self._told = seen.next, self._told | seen.told
        self.away, self.why = seen.away, seen.why
        return seen.answer

    def _look(self, step: int, new: frozenset[str]) -> Look:
        now = time.monotonic()
        before, at = self._last
        self._last = step, now
        pace = (now - at) / (step - before) if before and step > before else _LOOK_S
        try:
            nodes = len(living())
            answer, why = self._answer(new)
        except Exception as error:  # the other ranks wait for rank 0; it looks again
            log.warning("notices of nodes could not be read: %s", first_line(error))
            nodes, answer, why, new = 2, "", "", frozenset[str]()
        every = _LOOK_S if nodes > 1 else _ALONE_S
        following = step + max(1, min(_MOST_STEPS, int(every / max(pace, 1e-6))))
        return Look(following, answer, why, new, tuple(sorted({*self.away, *new})))

    def _answer(self, new: frozenset[str]) -> tuple[Answer, str]:
        """Leaves at most twice for a notice: when there is room elsewhere, and for more workers once nodes have come. When a node is left,
        places of other runs count as room: the next start waits until they are free.
        """
        away = {*self.away, *new}
        if not away:
            return "", ""
        room = room_without(self._cluster, tuple(away))
        if new or self._told - self._started_without:  # the run is on a node that is to be taken away
            why = "a node of the run is to be taken away"
            return ("leave", why) if room >= self._cluster.least_workers else ("save" if new else "", why)
        more = min(room, self._cluster.num_workers) - self._num_workers
        return ("leave" if more > 0 and are_free(self._cluster, more) else ""), "there is room for more workers"


def room_without(cluster: ClusterConfig, away: Sequence[str]) -> int:
    """How many workers fit on the nodes that live and have no notice, free or not; within `connect` or on a worker only."""
    nodes = [node["Resources"] for node in staying() if node["NodeID"] not in away]
    return num_places(nodes, worker_resources(cluster), cluster.placement)


def still_there(away: Sequence[str]) -> tuple[str, ...]:
    """Those of the nodes that live."""
    return tuple(node["NodeID"] for node in living() if node["NodeID"] in away)
