"""Where the segments of a study run: what `bft_ray.study.driver.search` asks of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from bft_ray.config import ClusterConfig, Config
from bft_ray.study.checks.cards import card_lines
from bft_ray.study.checks.shared import require_shared
from bft_ray.study.controller import Controller
from bft_ray.workers.address import address_of
from bft_ray.workers.connect import connect
from bft_ray.workers.node import living
from bft_ray.workers.room import require_resources, worker_resources
from bft_ray.workers.shares import Share


class Place(Protocol):
    """Runs the segments that a controller gives out. `OnRay` is the one that users have."""

    def connected(self, cluster: ClusterConfig) -> AbstractContextManager[None]:
        """The context in which the other two are called.

        Raises:
            BadInput: there is no such place, or it cannot run a trial.
        """

    def told(self, cluster: ClusterConfig, *, deterministic: bool) -> list[str]:
        """Lines for the user on the nodes, such as types of accelerator that differ."""

    def num_slots(self, cluster: ClusterConfig) -> Callable[[], int]:
        """A function that tells how many trials can run at a time now."""

    def run(self, controller: Controller, first: Config, look: Callable[[], None]) -> None:
        """Run segments until the controller says that the study is over.

        Args:
            first: config of the first trial; what a worker needs is the same for all.
            look: called a few times a second; an error that it raises ends the study.

        Raises:
            Exception: the error that the controller or `look` has raised, unchanged.
        """


class OnRay:
    """The nodes of a Ray cluster, by Ray Tune (`bft_ray.study.execute.ray_tune`)."""

    def __init__(self) -> None:
        self._share: Share | None = None

    @contextmanager
    def connected(self, cluster: ClusterConfig) -> Iterator[None]:
        """The context of a connection to Ray: at the address of the config, or to a local Ray that it starts.

        Raises:
            BadInput: no cluster answers there, or its nodes do not share the folder of the results.
            NoRoom: the nodes cannot hold the workers of one trial.
        """
        with connect(cluster):
            require_resources(cluster)
            require_shared(cluster)
            yield

    def told(self, cluster: ClusterConfig, *, deterministic: bool) -> list[str]:
        """Lines on the types of accelerator, see `card_lines`; none where all nodes have the same."""

        nodes = [node["Resources"] for node in living()]
        return card_lines(nodes, worker_resources(cluster), deterministic=deterministic)

    def num_slots(self, cluster: ClusterConfig) -> Callable[[], int]:
        """A function for how many trials can run at a time. On a cluster with an address it counts this study's share alone, by
        `cluster.priority`.
        """
        from bft_ray.study.execute import slots

        count = slots.num_slots(cluster)
        if address_of(cluster) is None:  # a Ray of this study's own
            return count
        self._share = Share(cluster.priority, count)
        return self._share.slots

    def run(self, controller: Controller, first: Config, look: Callable[[], None]) -> None:
        """Run segments by Ray Tune, see `Place.run`; meanwhile other studies learn how many places this one wants."""
        from bft_ray.study.execute import ray_tune

        share, ahead = self._share, controller.ahead
        if share is None:
            return ray_tune.run(controller, first, look)

        def look_and_tell() -> None:
            share.tell(controller.num_wanted)
            controller.ahead = 0 if share.is_shared else ahead  # it would take a place of another study
            look()

        try:
            ray_tune.run(controller, first, look_and_tell)
        finally:
            share.leave()
