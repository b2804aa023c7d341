"""Ray on loopback, with a token: a head with dashboard and job server, and workers."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.local.service import free_port, get, start, wait
from cluster.local.state import HOST, State, make_secret

_OBJECT_STORE_BYTES = 1 << 29  # of each raylet; Ray's default is 30 % of the machine for each
#: each raylet needs its own: with the defaults the second one's agent finds them taken, and takes no job
_NODE_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)


def start_ray(
    state: State, end: float, *, workers: int, cpus: int, gpus: int = 0, env: Mapping[str, str] | None = None
) -> None:
    """A head with dashboard and job server, and so many further raylets; the head works itself where there are none.

    Args:
        end: of the wait for it, on the monotonic clock.
        cpus, gpus: of each worker.
        env: further variables that jobs see.
    """
    make_secret(state.token)
    state.ray_folder = tempfile.mkdtemp(prefix="bft_ray_", dir="/tmp")
    address = f"{HOST}:{state.ports['gcs']}"
    head = {
        "head": True,
        "port": state.ports["gcs"],
        "dashboard-host": HOST,
        "dashboard-port": state.ports["dashboard"],
        "ray-client-server-port": free_port(),
    }
    variables = dict(env or {})
    if workers:
        start_raylet(state, "ray-head", head, 0, [], variables)
    else:
        start_raylet(state, "ray-head", head, cpus, _devices(0, gpus), variables)
    wait(state, ["ray-head"], lambda: _connects(state.ports["gcs"]), end)
    names = [f"ray-worker-{number}" for number in range(1, workers + 1)]
    for number, name in enumerate(names):
        start_raylet(state, name, {"address": address}, cpus, _devices(number, gpus), variables)
    wait(state, ["ray-head", *names], lambda: _num_nodes(state) == workers + 1, end)


def _devices(number: int, gpus: int) -> list[str]:
    """The GPUs of a worker: raylets of one machine do not know of each other, and each would take all of them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = given.split(",") if given else [str(device) for device in range((number + 1) * gpus)]
    return known[number * gpus : (number + 1) * gpus]


def start_raylet(
    state: State, name: str, options: Mapping[str, Any], cpus: int, devices: Sequence[str], env: Mapping[str, str]
) -> None:
    """Start one, and do not wait for it; it has ports and a folder of its own.

    Raylets that share a folder unpack a job's files over those in which its driver is running.
    """
    values = {
        **options,
        "node-ip-address": HOST,
        "num-cpus": cpus,
        "num-gpus": len(devices),
        "temp-dir": f"{state.ray_folder}/{name.rpartition('-')[2]}",
        "object-store-memory": _OBJECT_STORE_BYTES,
        "block": True,
        "disable-usage-stats": True,
        **{port: free_port() for port in _NODE_PORTS},
    }
    command = [sys.executable, "-P", str(Path(__file__).with_name("ray_start.py"))]
    command += [f"--{option}" if value is True else f"--{option}={value}" for option, value in values.items()]
    own = {key: value for key, value in state.ray_client().items() if not key.endswith("_ADDRESS")} | {
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # a stop does not wait for jobs: they resume from their records
        "DASHBOARD_METRIC_PORT": str(free_port()),  # two clusters on a machine would meet at the defaults
        "AUTOSCALER_METRIC_PORT": str(free_port()),
    }
    start(state, name, command, {**env, **own}, cwd=state.folder)


def _connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False


def _num_nodes(state: State) -> int:
    """Nodes that live; 0 where the job server does not answer."""
    header = {"Authorization": f"Bearer {state.token.read_text()}"}
    if get(f"{state.dashboard}/api/jobs/", header) is None:
        return 0
    nodes = json.loads(get(f"{state.dashboard}/nodes?view=summary", header) or "{}")
    summary = nodes.get("data", {}).get("summary", [])
    return sum(node.get("raylet", {}).get("state") == "ALIVE" for node in summary)
