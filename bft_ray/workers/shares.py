"""Studies that run on one Ray cluster at the same time deal its places among themselves, by `cluster.priority`.

Ray gives whoever asks first. So each driver tells a small named actor of the cluster what it is and how much it can use, and
starts no more segments than its share. A driver that ends leaves; one that dies is forgotten after `LEASE_S`. Nothing that
runs is stopped: a share shrinks when segments end.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)

LEASE_S = 30.0  # a driver that has not renewed its row for so long counts as dead
RENEW_S = 2.0  # between two renewals
_REJOIN_S = 5 * RENEW_S  # after a loss of the actor, until all drivers that live have written to the new one
_ANSWER_S = 5.0  # longest wait for the actor
_NAME, _NAMESPACE = "bft_ray_shares", "bft_ray"


def deal(weights: Mapping[str, float], demands: Mapping[str, float]) -> dict[str, float]:
    """Max-min fair shares of a cluster by weight: what one does not need goes to the others.

    Args:
        weights: study -> weight, above 0.
        demands: study -> the part of the cluster that it can use, 0 to 1.

    Returns:
        study -> its part, at most its demand; together at most 1.
    """
    shares, left = dict.fromkeys(weights, 0.0), 1.0
    open_ = {name for name in weights if demands[name] > 0}
    while open_:
        unit = left / sum(weights[name] for name in sorted(open_))
        full = {name for name in open_ if demands[name] <= unit * weights[name]}
        if not full:
            return shares | {name: unit * weights[name] for name in open_}
        for name in sorted(full):
            shares[name] = demands[name]
            left = max(left - demands[name], 0.0)
        open_ -= full
    return shares


class Table:
    """The rows of all drivers: study -> weight, demand, time of the last renewal. The actor's state."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._rows: dict[str, tuple[float, float, float]] = {}
        self._now = now

    def renew(self, who: str, weight: float, demand: float) -> tuple[float, int]:
        """Write a row; returns its share of the cluster, and how many drivers there are."""
        now = self._now()
        self._rows[who] = (weight, demand, now)
        self._rows = {name: row for name, row in self._rows.items() if now - row[2] < LEASE_S}
        weights = {name: row[0] for name, row in self._rows.items()}
        return deal(weights, {name: row[1] for name, row in self._rows.items()})[who], len(self._rows)

    def leave(self, who: str) -> int:
        """Remove a row; returns how many drivers are left."""
        self._rows.pop(who, None)
        return len(self._rows)


class Share:
    """The part of a cluster that this driver has; within `bft_ray.workers.connect.connect` only.

    Args:
        priority: `cluster.priority`.
        count: how many trials all of the cluster runs at a time.
    """

    def __init__(self, priority: float, count: Callable[[], int]):
        self._priority, self._count, self._who = priority, count, uuid.uuid4().hex
        self._actor: Any = None
        self._part, self._others, self._at, self._hold_until = 1.0, 0, -RENEW_S, 0.0
        self.demand = 1.0  # all that there is

    @property
    def is_shared(self) -> bool:
        """Whether other studies run on the cluster."""
        return self._others > 0

    def slots(self) -> int:
        """How many trials this study runs at a time now: at least 1, where the cluster has room for any."""
        all_ = self._count()
        self._renew()
        return min(all_, max(1, int(self._part * all_ + 1e-6)))

    def tell(self, num_wanted: float) -> None:
        """Tell how many trials could run at a time, if there were room."""
        self.demand = min(1.0, num_wanted / max(self._count(), 1))
        self._renew()

    def leave(self) -> None:
        """Give the share back; the last driver ends the actor. One that comes just then makes a new one."""
        import ray
        from ray.exceptions import RayError

        if self._actor is not None:
            with contextlib.suppress(RayError):
                if not ray.get(self._actor.leave.remote(self._who), timeout=_ANSWER_S):
                    ray.kill(self._actor)

    def _renew(self) -> None:
        """Ask for the share, now and then. While the actor does not answer, the last share holds."""
        import ray
        from ray.exceptions import RayError

        if time.monotonic() - self._at < RENEW_S:
            return
        self._at = time.monotonic()
        try:
            if self._actor is None:
                table = ray.remote(Table).options(
                    name=_NAME, namespace=_NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0
                )
                self._actor = table.remote()
            answer = self._actor.renew.remote(self._who, self._priority, self.demand)
            part, drivers = ray.get(answer, timeout=_ANSWER_S)
        except (RayError, ValueError) as error:
            log.warning(
                "the shares of the cluster are not known now (%s): this study keeps its last one", type(error).__name__
            )
            self._actor, self._hold_until = None, time.monotonic() + _REJOIN_S
            return
        if time.monotonic() < self._hold_until:
            return  # a new actor does not know all drivers yet
        if drivers - 1 != self._others:
            log.warning("%d other studies run on this cluster; this one has %.0f%% of it", drivers - 1, 100 * part)
        self._part, self._others = part, drivers - 1
