"""Places for trials on the nodes of a cluster: how many there are, and what Ray Tune reserves for one trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from ray import tune
from ray.tune.experiment import Trial

from bft_ray.config import ClusterConfig
from bft_ray.errors import BftError
from bft_ray.workers.node import staying
from bft_ray.workers.room import num_places, worker_resources

log = logging.getLogger(__name__)

COUNT_S = 5.0  # between two counts of the cluster's nodes


def num_slots(cluster: ClusterConfig) -> Callable[[], int]:
    """A function for how many trials the nodes of the cluster could run at a time, if nobody else used them: those without a notice
    that they will be taken away. It counts the nodes every few seconds.
    """
    known, at = 0, -COUNT_S

    def count() -> int:
        nonlocal known, at
        if time.monotonic() - at >= COUNT_S:
            nodes = [node["Resources"] for node in staying()]
            known, at = num_runs(nodes, worker_resources(cluster), cluster), time.monotonic()
        return known

    return count


def room_for_trials(cluster: ClusterConfig, is_busy: Callable[[], bool] = lambda: False) -> Callable[[], None]:
    """A function that raises BftError when no node has had room for a trial for too long: Tune would wait for ever, and
    print nothing.

    Args:
        is_busy: whether trials run, as on nodes that will be taken away only later.
    """
    slots, since = num_slots(cluster), time.monotonic()
    has_warned = False

    def look() -> None:
        nonlocal since, has_warned
        if slots() or is_busy():
            since, has_warned = time.monotonic(), False
        elif time.monotonic() - since > cluster.start_timeout_s:
            raise BftError(
                f"no node has had room for a trial for cluster.start_timeout_s = {cluster.start_timeout_s:g} s. "
                "When the cluster is back, the same command resumes the study."
            )
        elif not has_warned:
            has_warned = True
            log.warning("no node has room for a trial; waiting up to %g s for one", cluster.start_timeout_s)

    return look


def num_runs(nodes: Sequence[dict[str, float]], need: dict[str, float], cluster: ClusterConfig) -> int:
    """How many runs fit on nodes with these resources, under the placement: of `cluster.num_workers` workers, or if not one of
    them fits of the fewest.
    """
    return _num_runs(nodes, need, cluster, cluster.num_workers) or _num_runs(
        nodes, need, cluster, cluster.least_workers
    )


def _num_runs(
    nodes: Sequence[dict[str, float]], need: dict[str, float], cluster: ClusterConfig, num_workers: int
) -> int:
    if cluster.placement == "STRICT_PACK":
        return sum(num_places([node], need) // num_workers for node in nodes)
    free, runs = [num_places([node], need) for node in nodes], 0
    if cluster.placement != "STRICT_SPREAD":
        return sum(free) // num_workers
    while sum(places > 0 for places in free) >= num_workers:  # each run on as many nodes, those with most room
        for index in sorted(range(len(free)), key=lambda index: -free[index])[:num_workers]:
            free[index] -= 1
        runs += 1
    return runs


def reserved(cluster: ClusterConfig) -> tune.PlacementGroupFactory:
    """What Tune reserves for a segment: a bundle for each worker, with `cluster.min_workers` for as many as there is room for
    now. One worker is Tune's own actor; beside several, that one is given nothing.
    """
    need, num_workers = worker_resources(cluster), most_workers(cluster)
    bundles = [need] if num_workers == 1 else [{}, *[need] * num_workers]
    return tune.PlacementGroupFactory(bundles, strategy=cluster.placement)


def most_workers(cluster: ClusterConfig) -> int:
    """As many workers of a trial as there is room for now, if nobody else used it, and no fewer than the least."""
    if cluster.least_workers == cluster.num_workers:
        return cluster.num_workers
    nodes, need = [node["Resources"] for node in staying()], worker_resources(cluster)
    counts = range(cluster.least_workers, cluster.num_workers + 1)
    return max((n for n in counts if _num_runs(nodes, need, cluster, n)), default=cluster.least_workers)


def num_workers_of(trial: Trial) -> int:
    """Workers for which Tune reserves places."""
    places = trial.placement_group_factory
    assert places is not None
    return sum(bool(bundle) for bundle in places.bundles)
