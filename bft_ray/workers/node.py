"""Which node of a cluster this process runs on, for messages."""

from __future__ import annotations

import contextlib
import socket


def on_this_node() -> str:
    """`on node HOST (the first 8 letters of Ray's id): `, where the cluster has several nodes; "" elsewhere."""
    import ray

    with contextlib.suppress(Exception):  # a head that is gone must not hide what the message says
        if ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) > 1:
            return f"on node {socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:8]}): "
    return ""
