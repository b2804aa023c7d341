"""A service of a local cluster: started as processes of its own, waited for, stopped. And ports for it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bft_ray.errors import BftError
from cluster.local.processes import Process, find, stop
from cluster.local.state import State

#: below the ports that a system hands out by itself, so that nobody gets one between the choice and its use
_PORTS = range(20_000, 32_000)
_given: set[int] = set()
_BIN = Path(sys.executable).parent
#: of the shell that calls: they would lead Ray's processes to another cluster or another token
_FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_ID")


class Failed(BftError):
    """A service ended, or was not ready in time."""

    def __init__(self, service: str, what: str):
        self.service = service
        super().__init__(f"{service} {what}")


def free_port() -> int:
    """A port that nobody listens on, on no interface, and that was not given to another service."""
    draw = random.SystemRandom()
    while (port := draw.choice(_PORTS)) in _given or not is_free(port):
        pass
    _given.add(port)
    return port


def is_free(port: int) -> bool:
    """Whether nobody listens on it; connections that have just ended do not count, as for the servers themselves."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def start(state: State, name: str, command: list[str], env: Mapping[str, str] | None = None, **options: Any) -> None:
    """Start a service in a session of its own, and record its process.

    Args:
        env: beside the environment of this process.
        options: of `subprocess.Popen`.
    """
    whole = {key: value for key, value in os.environ.items() if key not in _FOREIGN} | dict(env or {})
    whole["PATH"] = f"{_BIN}{os.pathsep}{whole.get('PATH', os.defpath)}"  # jobs say `python` and mean this one
    with state.log(name).open("wb") as log:
        child = subprocess.Popen(
            command, env=whole, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **options
        )
    process = find(child.pid)
    if process is None:
        raise Failed(name, "ended at once")
    state.processes[name] = process
    state.save()


def wait(state: State, names: Collection[str], is_ready: Callable[[], bool], end: float) -> None:
    """Return once `is_ready` is true.

    Raises:
        Failed: one of the services ended, or it became too late.
    """
    while not is_ready():
        for name in names:
            if name not in state.living():
                raise Failed(name, "has ended")
        if time.monotonic() > end:
            raise Failed(next(iter(names)), "was not ready in time (--timeout)")
        time.sleep(0.2)


def get(address: str, headers: Mapping[str, str] | None = None) -> bytes | None:
    """The content at the address; None without an answer, or with an error."""
    request = urllib.request.Request(address, headers=dict(headers or {}))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's loopback
    with suppress(OSError), opener.open(request, timeout=5) as answer:
        return answer.read()
    return None


def stop_all(state: State) -> set[Process]:
    """Stop what `state` names and what that started, and nothing else; returns what is still there."""
    left = stop(process for name, process in state.processes.items() if name != "postgres")
    if database := state.processes.get("postgres"):
        left |= stop([database], signal.SIGINT, 60)  # SIGTERM would wait for its clients
    if not left:
        if state.ray_folder:
            _keep_logs(Path(state.ray_folder), state.log("ray").with_suffix(""))
            shutil.rmtree(state.ray_folder, ignore_errors=True)
        state.processes, state.ray_folder, state.is_whole = {}, "", False
        state.save()
    return left


def _keep_logs(ray_folder: Path, target: Path) -> None:
    """Ray's own logs, of its processes and of jobs, in a folder a raylet."""
    shutil.rmtree(target, ignore_errors=True)
    for logs in ray_folder.glob("*/session_2*/logs"):
        shutil.copytree(logs, target / logs.parts[-3], symlinks=True, dirs_exist_ok=True)
