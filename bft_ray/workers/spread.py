"""A function over shards, on Ray workers or in this process: where evaluations and profiles meet Ray."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence, Sized
from typing import Any, NamedTuple

from bft_ray.config import ClusterConfig
from bft_ray.errors import BftError
from bft_ray.places.modes import keep_for
from bft_ray.waits import waiting
from bft_ray.workers.address import address_of
from bft_ray.workers.connect import connect
from bft_ray.workers.node import require_same_head
from bft_ray.workers.room import in_bundle, require_resources, too_small, worker_resources

_LOOK_S = 5.0  # between two looks whether the head of the cluster is still the same


def spread(
    fn: Callable[[Any, Any], Any],
    shards: Sequence[Any],
    *,
    cluster: ClusterConfig | None,
    setup: Callable[[], Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """`[fn(state, shard) for shard in shards]` with `state = setup()` made once a worker; results in order.

    Runs in this process without a cluster, or where one worker would do and no Ray address is given.
    Otherwise on one actor per worker (at most one per shard), each with the CPUs, GPUs and resources of
    `cluster` and as many torch threads as CPUs. A shard whose worker died is tried again on a fresh one, at
    most `cluster.max_failures` times.

    Args:
        fn, setup: importable on the workers or picklable by cloudpickle.
        progress: called with (shards done, shards in all).

    Raises:
        BadInput: the cluster cannot be reached, or (NoRoom) cannot hold the workers within `cluster.start_timeout_s`.
        BftError: workers kept dying or did not start.
        Exception: the error that `fn` or `setup` raised on a worker, unchanged.
    """
    shards = list(shards)
    if cluster is None or (address_of(cluster) is None and min(cluster.num_workers, len(shards)) <= 1):
        return _in_process(fn, shards, setup, progress)
    if not shards:
        return []
    with connect(cluster):
        require_resources(cluster)
        return _on_actors(fn, shards, setup, cluster, progress)


# --- running ------------------------------------------------------------------------------------------------


def _in_process(fn: Any, shards: list[Any], setup: Any, progress: Any) -> list[Any]:
    state = setup() if setup and shards else None
    results: list[Any] = []
    for shard in shards:
        with waiting(_done(results, shards)):
            results.append(fn(state, shard))
        if progress:
            progress(len(results), len(shards))
    return results


def _done(results: Sized, shards: Sized) -> str:
    return f"with {len(results)} of {len(shards)} shards done"


class _Worker:
    """The actor: one state, one shard at a time."""

    def __init__(self, threads: int, file_mode: str):
        import torch

        keep_for(file_mode)
        torch.set_num_threads(threads)
        self._state: Any = None
        self._is_set_up = False

    def ready(self) -> None:
        """Returns once the process is up."""

    def run(self, job: tuple[Any, Any], shard: Any) -> Any:
        fn, setup = job
        if setup and not self._is_set_up:  # here, not in __init__: an actor's __init__ hides what it raises
            self._state = setup()
        self._is_set_up = True
        return fn(self._state, shard)


def _on_actors(fn: Any, shards: list[Any], setup: Any, cluster: ClusterConfig, progress: Any) -> list[Any]:
    import ray

    need = worker_resources(cluster)
    num_workers = min(cluster.num_workers, len(shards))
    group = _reserve(need, num_workers, cluster)
    job = ray.put((fn, setup))
    results: dict[int, Any] = {}
    queue = deque(range(len(shards)))
    deaths: Counter[int | None] = Counter()  # by shard; None: while starting
    idle: list[_Hired] = []
    running: dict[Any, _Hired] = {}  # by ref

    def hire(place: int) -> None:
        threads = max(1, int(cluster.cpus_per_worker))
        actor = in_bundle(_Worker, need, group, place).remote(threads, cluster.file_mode)
        running[actor.ready.remote()] = _Hired(place, actor, None)

    try:
        for place in range(num_workers):
            hire(place)
        while len(results) < len(shards):
            with waiting(_done(results, shards)):
                ended = _wait(running, cluster)
            for ref in ended:
                worker = running.pop(ref)
                result, error = _outcome(ref)
                if error is None:
                    idle.append(worker)
                    if worker.shard is not None:
                        results[worker.shard] = result
                        if progress:
                            progress(len(results), len(shards))
                    continue
                deaths[worker.shard] += 1
                if deaths[worker.shard] > cluster.max_failures:
                    raise _died(worker.shard, deaths[worker.shard], cluster) from error
                if worker.shard is not None:
                    queue.appendleft(worker.shard)
                if len(idle) < len(queue):
                    hire(worker.place)
            while idle and queue:
                worker, shard = idle.pop(), queue.popleft()
                ref = worker.actor.run.remote(job, shards[shard])
                running[ref] = _Hired(worker.place, worker.actor, shard)
    finally:
        for worker in [*running.values(), *idle]:
            ray.kill(worker.actor)
        ray.util.remove_placement_group(group)
    return [results[index] for index in range(len(shards))]


class _Hired(NamedTuple):
    place: int  # bundle of the placement group
    actor: Any
    shard: int | None  # that it works on; None while it starts


def _wait(running: dict[Any, _Hired], cluster: ClusterConfig) -> list[Any]:
    """At least one ref that is done. Only the start of a worker has a time limit.

    Raises:
        BftError: no worker started within it.
        RayError: the head was replaced.
    """
    import ray

    is_busy = any(worker.shard is not None for worker in running.values())
    deadline = time.monotonic() + (math.inf if is_busy else cluster.start_timeout_s)
    while (left := deadline - time.monotonic()) > 0:
        done, _ = ray.wait(list(running), timeout=min(left, _LOOK_S))
        if done:
            return done
        require_same_head()
    raise BftError(f"no worker started within cluster.start_timeout_s = {cluster.start_timeout_s:g} s")


def _outcome(ref: Any) -> tuple[Any, Exception | None]:
    """(result, None), or (None, error) where process, node or memory is gone; raises what `fn` raised."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(ref), None
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error
    except RayError as error:
        return None, error


@waiting("waiting for places for the workers")
def _reserve(need: dict[str, float], num_workers: int, cluster: ClusterConfig) -> Any:
    """The places of all workers, together, or NoRoom when others keep them for longer than we wait."""
    import ray

    group = ray.util.placement_group([need] * num_workers, strategy=cluster.placement)
    if not group.wait(cluster.start_timeout_s):
        ray.util.remove_placement_group(group)
        waited = f"{cluster.start_timeout_s:g} s"
        raise too_small(cluster, need, f"what the cluster can give within start_timeout_s = {waited}")
    return group


def _died(shard: int | None, times: int, cluster: ClusterConfig) -> BftError:
    what = "a worker that was starting" if shard is None else f"the worker of shard {shard}"
    return BftError(
        f"{what} died {times} times, and cluster.max_failures is {cluster.max_failures}. "
        "It may have run out of memory: lower evaluation.batch_tokens, or look into the Ray session's logs."
    )
