"""A Ray cluster on loopback with token authentication, in processes of its own, for as long as a context lasts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.local.raylets import _num_nodes, start_ray, start_raylet
from cluster.local.service import Failed, free_port, get, stop_all
from cluster.local.state import HOST, State, held

START_S = 300


@dataclass
class Cluster:
    """Where it is, and the environment that a client needs."""

    address: str
    dashboard: str
    env: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    return [free_port() for _ in range(count)]


@contextmanager
def local_cluster(num_cpus: int = 2) -> Iterator[Cluster]:
    """A head that works itself, without databases and MLflow; at the end exactly its processes are stopped."""
    with _head(num_cpus) as state:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = _client(state)
        yield Cluster(env["RAY_ADDRESS"], state.dashboard, env | {"PATH": path})


def _client(state: State) -> dict[str, str]:
    """The environment of a client."""
    return {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | state.ray_client()


@contextmanager
def _head(num_cpus: int) -> Iterator[State]:
    folder = Path(tempfile.mkdtemp(prefix="rc_"))
    with held(folder):
        state = State(folder, dict(zip(("gcs", "dashboard"), free_ports(2), strict=True)))
    try:
        start_ray(state, time.monotonic() + START_S, workers=0, cpus=num_cpus)
        yield state
    except Failed as error:
        raise AssertionError(state.log(error.service).read_text()[-2000:]) from error
    finally:
        left = stop_all(state)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


SECOND = "ray-worker-1"  # the node beside the head, of `head_and_node`


@contextmanager
def head_and_node() -> Iterator[State]:
    """A head and another node, of one core each. The second one is tried a few times: Ray gives it 30 s to start."""
    with _head(1) as state:
        for _ in range(4):
            start_raylet(state, SECOND, {"address": f"{HOST}:{state.ports['gcs']}"}, 1, [], {})
            end = time.monotonic() + START_S
            while _num_nodes(state) < 2 and SECOND in state.living() and time.monotonic() < end:
                time.sleep(0.5)
            if _num_nodes(state) == 2:
                break
        assert _num_nodes(state) == 2, state.log(SECOND).read_text()[-2000:]
        yield state


def drain(state: State, deadline_s: int) -> None:
    """Tell Ray that the node beside the head will be taken away, as an autoscaler does before a preemption."""
    header = {"Authorization": f"Bearer {state.token.read_text()}"}
    summary = json.loads(get(f"{state.dashboard}/nodes?view=summary", header) or "")["data"]["summary"]
    raylets = [node["raylet"] for node in summary]
    (name,) = [raylet["nodeId"] for raylet in raylets if raylet["state"] == "ALIVE" and not raylet["isHeadNode"]]
    words = ["--address", f"{HOST}:{state.ports['gcs']}", "--node-id", name]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    words += ["--deadline-remaining-seconds", str(deadline_s)]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words]
    done = subprocess.run(command, env=_client(state), capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
