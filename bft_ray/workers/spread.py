"""A function over shards, on Ray workers or in this process: the one place where evaluate and profile meet
Ray.

Also what everyone uses to reach a cluster: `connect`, and `require_resources`, which refuses what the cluster
cannot hold instead of waiting for it for ever.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import stat
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bft_ray.config import ClusterConfig
from bft_ray.errors import BadInput, BftError, NoRoom, first_line
from bft_ray.places.modes import keep_for, kept_for
from bft_ray.waits import waiting

log = logging.getLogger(__name__)

_SESSIONS = f"ray_{os.getuid()}"  # Ray's own folder `ray` is one that all users of a machine may write to
_LONGEST_FOLDER = 107 - len(f"/{_SESSIONS}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")  # bytes
_PROBE_S = 10.0  # longest wait for a TCP connection to a Ray address
_WATCH_S = 2.0  # between two looks whether the head of the cluster answers
_SILENT_S, _AGAIN_S = 4.0, 30.0  # after which it is told that it does not, and told again


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
        Exception: what `fn` or `setup` raised on a worker, as it was.
    """
    shards = list(shards)
    if cluster is None or (_address(cluster) is None and min(cluster.num_workers, len(shards)) <= 1):
        return _in_process(fn, shards, setup, progress)
    if not shards:
        return []
    with connect(cluster):
        require_resources(cluster)
        return _on_actors(fn, shards, setup, cluster, progress)


@contextmanager
def connect(cluster: ClusterConfig) -> Iterator[None]:
    """Ray, for as long as the context lasts.

    A Ray that this process is connected to already is used and left as it is. Otherwise connects to
    `cluster.address`, or to RAY_ADDRESS (as in a submitted job), or starts a Ray of its own on this machine,
    and at the end disconnects or stops that one, never somebody else's.

    Raises:
        BadInput: no cluster answers at the address or accepts this client, or a local one does not start.
    """
    address = _address(cluster)
    if address is None:
        _lock_local_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    if address is not None:
        _probe(address, min(_PROBE_S, cluster.start_timeout_s))
    options: dict[str, Any] = {} if address else {"include_dashboard": False, "_temp_dir": _sessions()}
    in_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # "owner": its sockets and logs, whoever else may have the results
        with kept_for("owner"), waiting(f"connecting to Ray at {address}" if address else "starting Ray"):
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=cluster.worker_logs,
                **options,
            )
    except (Exception, SystemExit) as error:  # bare Exceptions, and an exit if no node answers
        raise _unreachable(address, _root_cause(error)) from error
    if in_main and on_sigterm is not None:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which aborts the process
    try:
        with _watched(ray.get_runtime_context().gcs_address):
            yield
    finally:
        with waiting("taking leave of Ray"):
            ray.shutdown()


@contextmanager
def _watched(head: str | None) -> Iterator[None]:
    """Tells while the head of the cluster does not answer: Ray says nothing until it ends the process.

    Args:
        head: HOST:PORT of its GCS; None: not known, as to a Ray client.
    """
    ended = threading.Event()

    def watch() -> None:
        host, _, port = str(head).rpartition(":")
        answered, told = time.monotonic(), 0.0
        while not ended.wait(_WATCH_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), _SILENT_S).close()
                answered, told = time.monotonic(), 0.0
            except OSError:
                now = time.monotonic()
                if now - answered >= _SILENT_S and now - told >= _AGAIN_S:
                    told = now
                    log.warning(
                        "the head of the Ray cluster (its GCS at %s) has not answered for %.0f s. After a minute Ray ends "
                        "this process. What is done stands: once the cluster is back, the same command goes on",
                        head,
                        now - answered,
                    )

    if head and ":" in head:
        threading.Thread(target=watch, name="bft-ray-head", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


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


@waiting("waiting for room for the workers")
def require_resources(cluster: ClusterConfig) -> None:
    """Return once the cluster's nodes could hold all workers (free or not); within `connect` only.

    A local Ray cannot grow and is refused at once. Any other cluster may be scaling up, so it gets
    `cluster.start_timeout_s`.

    Raises:
        NoRoom: says what was asked and what the cluster has.
    """
    import ray

    deadline = time.monotonic() + (0.0 if _address(cluster) is None else cluster.start_timeout_s)
    told = False
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        need = worker_resources(cluster)
        room = num_places(nodes, need, cluster.placement)
        if room >= cluster.num_workers:
            return
        if time.monotonic() >= deadline:
            raise _too_small(cluster, need, f"at most {room}")
        if not told:
            log.warning(
                "waiting up to %.0f s for the cluster to grow: it has room for %d of %d workers of %s",
                cluster.start_timeout_s,
                room,
                cluster.num_workers,
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


# --- reaching a cluster -------------------------------------------------------------------------------------


def _address(cluster: ClusterConfig) -> str | None:
    address = cluster.address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def _lock_local_ray() -> None:
    """Give a Ray that this process is about to start a token of its own, and keep it on loopback.

    A local Ray listens on every interface of the machine and runs what anyone sends it. Ray reads these
    variables once, when it is imported: where it already is, or where the user has chosen a value, they are
    left alone.
    """
    if "ray" in sys.modules:
        return
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on Linux it would replace 127.0.0.1 else
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _sessions() -> str:
    """The folder of this user's local Rays, which nobody else gets to."""
    folder = Path(session_option().get("_temp_dir") or Path(_temporary()[1], _SESSIONS))
    with kept_for("owner"):
        folder.mkdir(parents=True, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        rule = f"a folder in which {folder} is not another user's"
        raise BadInput(
            "RAY_TMPDIR", str(folder.parent), rule, "Set RAY_TMPDIR to a folder of your own with a short path."
        )
    folder.chmod(0o700)
    return str(folder)


def _temporary() -> tuple[str, str]:
    """The variable that names the folder of temporary files, and the folder."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return name, os.environ.get(name, "/tmp")


def session_option() -> dict[str, str]:
    """Where a local Ray keeps its session, as an option of `ray.init`, where the usual place has too long a name.

    Its sockets lie there, and a socket's path holds 107 bytes at most.
    """
    name, usual = _temporary()
    if len(os.fsencode(usual)) <= _LONGEST_FOLDER:
        return {}
    if os.access("/tmp", os.W_OK | os.X_OK):
        log.info("%s is too long for Ray's sockets: its session goes to /tmp/%s", name, _SESSIONS)
        return {"_temp_dir": f"/tmp/{_SESSIONS}"}
    rule = f"a folder whose path has at most {_LONGEST_FOLDER} bytes: Ray keeps sockets there, whose paths have 107 at most"
    raise BadInput(name, usual, rule, "Set RAY_TMPDIR to a folder with a short path, such as /dev/shm.")


def _probe(address: str, timeout_s: float) -> None:
    """Fail in seconds where nobody listens; Ray itself tries for minutes and then ends the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", or something for Ray to judge
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except OSError as error:
        raise _unreachable(address, error) from None


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _unreachable(address: str | None, error: BaseException) -> BadInput:
    # Ray ends the process with a number where what listens there does not answer as Ray
    reason = "no Ray answers there" if isinstance(error, SystemExit) else first_line(error)
    return BadInput(
        "cluster.address",
        address,
        f"the address of a running Ray cluster (or null where a local one can start): {reason}",
        "Check the address, RAY_AUTH_MODE and the token, and that both sides have the same Ray and Python.",
    )


def _too_small(cluster: ClusterConfig, need: dict[str, float], rule: str) -> NoRoom:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
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
        "cluster.num_workers",
        cluster.num_workers,
        f"{rule}: each worker asks for {_amounts(need)} ({cluster.placement}), and the cluster has {has} "
        f"on {len(nodes)} node{'s' if len(nodes) != 1 else ''} ({left} free)",
        "Lower num_workers, cpus_per_worker or gpus_per_worker, or use a larger cluster.",
    )


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(resources.items())) or "nothing"


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
        actor = _actor(need, group, place, cluster)
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
    """At least one ref that is done. Work may take as long as it takes, starting alone may not."""
    import ray

    is_busy = any(worker.shard is not None for worker in running.values())
    done, _ = ray.wait(list(running), timeout=None if is_busy else cluster.start_timeout_s)
    if not done:
        raise BftError(f"no worker started within cluster.start_timeout_s = {cluster.start_timeout_s:g} s")
    return done


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
        raise _too_small(cluster, need, f"what the cluster can give within start_timeout_s = {waited}")
    return group


def _actor(need: dict[str, float], group: Any, place: int, cluster: ClusterConfig) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return (
        ray.remote(_Worker)
        .options(
            num_cpus=need.get("CPU", 0),
            num_gpus=need.get("GPU", 0),
            resources={name: amount for name, amount in need.items() if name not in ("CPU", "GPU")},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place),
        )
        .remote(max(1, int(cluster.cpus_per_worker)), cluster.file_mode)
    )


def _died(shard: int | None, times: int, cluster: ClusterConfig) -> BftError:
    what = "a worker that was starting" if shard is None else f"the worker of shard {shard}"
    return BftError(
        f"{what} died {times} times, and cluster.max_failures is {cluster.max_failures}. "
        "It may have run out of memory: lower evaluation.batch_tokens, or look into the Ray session's logs."
    )
