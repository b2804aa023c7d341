"""A Ray cluster of one node on loopback with token authentication, in processes of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
START_S = 120


@dataclass
class Cluster:
    """Where it is, and the environment that a client needs."""

    address: str
    dashboard: str
    env: dict[str, str]
    folder: Path


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def local_cluster(num_cpus: int = 2) -> Iterator[Cluster]:
    """Start it, wait until it takes jobs, and at the end stop exactly its processes."""
    folder = Path(tempfile.mkdtemp(prefix="rc_", dir="/tmp"))  # short: sockets lie below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    ports = free_ports(9)
    env = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    env.pop("RAY_ADDRESS", None)
    names = [
        "--port",
        "--dashboard-port",
        "--dashboard-agent-listen-port",
        "--dashboard-agent-grpc-port",
        "--runtime-env-agent-port",
        "--metrics-export-port",
        "--node-manager-port",
        "--object-manager-port",
        "--ray-client-server-port",
    ]
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += [f"--num-cpus={num_cpus}", f"--temp-dir={folder}", "--disable-usage-stats"]
    command += [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    log = (folder / "start.log").open("w")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    family: list[psutil.Process] = []
    try:
        cluster = Cluster(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", env, folder)
        _wait_until_ready(cluster, process)
        family = psutil.Process(process.pid).children(recursive=True)
        yield cluster
    finally:
        if process.poll() is None:
            family += psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(process.pid), *family] if process.poll() is None else family, 20)
        for one in alive:
            one.kill()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(cluster: Cluster, process: subprocess.Popen) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, (cluster.folder / "start.log").read_text()[-2000:]
        listed = subprocess.run(
            ["ray", "job", "list", "--address", cluster.dashboard], env=cluster.env, capture_output=True, timeout=60
        )
        if listed.returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"no cluster after {START_S} s: {(cluster.folder / 'start.log').read_text()[-2000:]}")
