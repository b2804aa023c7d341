"""The nodes of the cluster, and which one this process runs on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Any

from bft_ray.workers import ray_private


def living() -> list[dict[str, Any]]:
    """The nodes that live, as `ray.nodes` describes them; within `connect` or in a worker only.

    Raises:
        RayError: another head answers at the address; see `require_same_head`.
    """
    import ray

    require_same_head()
    return [node for node in ray.nodes() if node["Alive"]]


def notices() -> Mapping[str, int]:
    """Node id -> when it will be taken away, in ms since 1970, 0 where that is not known: of each node with a notice (`ray drain-node`,
    or an autoscaler's before a preemption). Ray places nothing there any more. Within `connect` or in a worker only.

    Raises:
        RayError: another head answers at the address; see `require_same_head`.
    """
    require_same_head()
    return ray_private.notices()


def staying() -> list[dict[str, Any]]:
    """The nodes that live and have no notice, see `living` and `notices`."""
    going = notices()
    return [node for node in living() if node["NodeID"] not in going]


def require_same_head() -> None:
    """Return where the head is the one that this process connected to; a few ms.

    After a head without a store was replaced, `ray.wait` waits for ever, and `ray.nodes` and `ray.cluster_resources`
    abort the process with a stack trace (Ray 2.60). This question is answered with an error instead.

    Raises:
        RayError: it is another one ("WrongClusterID"); `connect` says it in its own words.
    """
    import ray

    ray.util.list_named_actors()


def on_this_node() -> str:
    """`on node HOST (the first 8 letters of Ray's id): `, where the cluster has several nodes; "" elsewhere."""
    import ray

    with contextlib.suppress(Exception):  # a head that is gone must not hide what the message says
        if ray.is_initialized() and len(living()) > 1:
            return f"on node {socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:8]}): "
    return ""
