"""The doctor's checks of a Ray cluster: address, token, resources, and every node."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bft_ray.config import ClusterConfig
from bft_ray.errors import BadInput, first_line
from bft_ray.operate.finding import Finding, alone
from bft_ray.places.addresses import redact

NODE_S = 60.0  # longest wait for a cluster's nodes


def check_cluster(cluster: ClusterConfig, has_config: bool) -> Iterable[Finding]:
    """Address and token; with a config also the resources, and every node: its versions and the storage path."""
    from bft_ray.workers.connect import connect
    from bft_ray.workers.node import living
    from bft_ray.workers.room import require_resources

    yield from check_token()
    with connect(cluster):
        import ray

        nodes = living()
        total = ray.cluster_resources()
        yield Finding(
            "ray",
            "ok",
            f"Ray {ray.__version__}, {len(nodes)} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs",
        )
        if has_config:
            yield from alone("ray", lambda: _fits(require_resources, cluster))
            yield from _check_nodes(nodes, cluster.storage_path)


def _fits(require_resources: Callable[[ClusterConfig], None], cluster: ClusterConfig) -> str:
    patience_s = min(cluster.start_timeout_s, 10.0)  # not the time in which a cluster may grow
    require_resources(cluster.model_copy(update={"start_timeout_s": patience_s}))
    return f"room for {cluster.num_workers} workers"


def check_token() -> Iterable[Finding]:
    """Ray's token authentication, as this side has it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))
    if os.environ.get("RAY_AUTH_MODE") != "token":
        remedy = "Make a token (ray get-auth-token --generate), set RAY_AUTH_MODE=token on both sides, restart Ray."
        detail = "RAY_AUTH_MODE is not token: who reaches the cluster's port can run anything on it"
        yield Finding("ray token", "warn", detail, remedy)
    elif os.environ.get("RAY_AUTH_TOKEN"):
        yield Finding("ray token", "ok", "from RAY_AUTH_TOKEN")
    elif not path.is_file():
        remedy = "Copy the cluster's token file there, or set RAY_AUTH_TOKEN."
        yield Finding("ray token", "fail", f"RAY_AUTH_MODE is token, but {path} does not exist", remedy)
    elif path.stat().st_mode & 0o077:
        yield Finding("ray token", "warn", f"{path} can be read by other users", f"chmod 600 {path}")
    else:
        yield Finding("ray token", "ok", f"from {path}")


def _check_nodes(nodes: Sequence[dict[str, Any]], storage_path: str) -> Iterable[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from bft_ray.places.storage import absolute, is_remote, join, write_text

    word = uuid.uuid4().hex
    path = absolute(storage_path)
    sign = None
    if not is_remote(path) and len(nodes) > 1:  # an object store is shared by its nature
        sign = join(path, f".bft_ray_doctor_{word}")
        write_text(sign, word)
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_look_around)
        asked = {}
        for node in nodes:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=place).remote(path, sign)] = node["NodeManagerAddress"]
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_S)
        for ref in late:
            ray.cancel(ref, force=True)
            remedy = "Look at the node's logs: it is overloaded, or its file system hangs."
            yield Finding("node", "fail", f"{asked[ref]}: no answer within {NODE_S:g} s", remedy)
        for ref in done:
            yield _judge(asked[ref], ref, path)
    finally:
        if sign:
            Path(sign).unlink(missing_ok=True)


def _look_around(path: str, sign: str | None) -> dict[str, Any]:
    """On a node: its Python, and whether it can write the storage path and see what another node wrote there."""
    from bft_ray.places.storage import check_writable

    try:
        check_writable(path)
        error = ""
    except BadInput as refused:
        error = refused.rule
    return {"python": platform.python_version(), "error": error, "shared": sign is None or Path(sign).exists()}


def _judge(address: str, ref: Any, path: str) -> Finding:
    import ray

    try:
        node = ray.get(ref)
    except Exception as error:
        cause = first_line(getattr(error, "cause", None) or error)
        remedy = "Install the same bft-ray, Ray and Python there (one container image for all nodes)."
        return Finding("node", "fail", f"{address}: {redact(cause)}", remedy)
    if node["error"]:
        remedy = "Mount it there with rights to write, or choose a cluster.storage_path that all nodes share."
        return Finding("node", "fail", f"{address}: {path} must be {node['error']}", remedy)
    if not node["shared"]:
        remedy = "Use a folder that all nodes mount, or a URI (s3://, gs://)."
        return Finding("node", "fail", f"{address}: {path} is another folder there", remedy)
    return Finding("node", "ok", f"{address}: Python {node['python']}, {path} can be written")
