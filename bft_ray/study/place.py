"""Where the segments of a study run: what `bft_ray.study.driver.search` asks of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from bft_ray.config import ClusterConfig, Config
from bft_ray.study.checks.shared import require_shared
from bft_ray.study.controller import Controller
from bft_ray.workers.connect import connect
from bft_ray.workers.room import require_resources


class Place(Protocol):
    """Runs the segments that a controller gives out. `OnRay` is the one that users have."""

    def connected(self, cluster: ClusterConfig) -> AbstractContextManager[None]:
        """The context in which the other two are called.

        Raises:
            BadInput: there is no such place, or it cannot run a trial.
        """

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

    @contextmanager
    def connected(self, cluster: ClusterConfig) -> Iterator[None]:
        with connect(cluster):
            require_resources(cluster)
            require_shared(cluster)
            yield

    def num_slots(self, cluster: ClusterConfig) -> Callable[[], int]:
        from bft_ray.study.execute import ray_tune

        return ray_tune.num_slots(cluster)

    def run(self, controller: Controller, first: Config, look: Callable[[], None]) -> None:
        from bft_ray.study.execute import ray_tune

        ray_tune.run(controller, first, look)
