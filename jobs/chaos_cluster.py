"""The cluster that `jobs.chaos` breaks: a head and several raylets on loopback, and the processes that may be killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cluster.local.processes import Process, family, find
from cluster.local.raylets import start_ray, start_raylet
from cluster.local.service import Failed, free_port, stop_all
from cluster.local.state import HOST, State, held

KINDS = ("worker", "raylet", "gcs", "driver", "head")
#: titles of Ray's processes that hold no work of anybody's
_NO_WORK = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
_STARTS = 3  # of the cluster, before it counts as broken
_START_S = 300.0  # until all raylets are there, on a machine that others use
#: variable by which every process that a run has started is known, also where its parent is gone
MARK = "BFT_RAY_CHAOS"


class Cluster:
    """A head that runs nothing itself, and two raylets that do.

    Args:
        folder: of its state and logs.
        env: that of every process of it, beside the environment of this one.
    """

    RAYLETS = 2

    def __init__(self, folder: Path, env: Mapping[str, str]):
        self._env, self._given = dict(env), self.RAYLETS
        with held(folder):
            self.state = State.load(folder)
        stop_all(self.state)  # of a run that was killed
        self.state.ports = {"gcs": free_port(), "dashboard": free_port()}

    def start(self) -> None:
        """Start it, at the same address each time. A raylet that ends because the machine is busy is no finding.

        Raises:
            Failed: it has not come up in so many tries.
        """
        for tries_left in reversed(range(_STARTS)):
            self._given = self.RAYLETS
            try:
                start_ray(self.state, time.monotonic() + _START_S, workers=self.RAYLETS, cpus=1, env=self._env)
                return
            except Failed:
                self.stop()
                if not tries_left:
                    raise

    def stop(self) -> set[Process]:
        """Stop all of it; returns the processes that are still there."""
        return stop_all(self.state)

    def mend(self) -> None:
        """What an operator does: a new head with new raylets where the head is broken, a raylet for each one lost."""
        head = [name for name in self.state.living() if name == "ray-head"]
        if not head or not self._named("gcs_server"):
            self.stop()
            self.start()
            return
        for name in [name for name in self.state.processes if name not in self.state.living()]:
            del self.state.processes[name]
        while len(self.state.processes) < 1 + self.RAYLETS:
            self._given += 1  # a folder of its own: the dead one's sockets lie in the old one
            address = {"address": f"{HOST}:{self.state.ports['gcs']}"}
            start_raylet(self.state, f"ray-worker-{self._given}", address, 1, [], self._env)

    def client(self) -> dict[str, str]:
        """The environment of a command that uses it."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "STUDY_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return own | self.state.ray_client() | self._env | {"PATH": path}

    def working(self) -> list[Process]:
        """Workers that have a task or an actor."""
        return [one for one in self._named("ray::") if not command_of(one).startswith(_NO_WORK)]

    def kill(self, kind: str, draw: random.Random) -> bool:
        """Send SIGKILL to one of its processes (head: to all processes of the head); False where there is none now."""
        if kind == "worker":
            victims = _one(self.working(), draw)
        elif kind == "raylet":
            heads = family([self.state.processes["ray-head"]])
            victims = _one([one for one in self._named("raylet/raylet") if one not in heads], draw)
        elif kind == "gcs":
            victims = self._named("gcs_server")
        else:
            victims = sorted(family([self.state.processes["ray-head"]]))
        for victim in victims:
            send_kill(victim)
        return bool(victims)

    def _named(self, text: str) -> list[Process]:
        """Its processes whose command begins with, or has as its program, `text`."""
        found = sorted(family(self.state.processes.values()))
        return [
            one for one in found if (first := command_of(one).split(" ")[0]).startswith(text) or first.endswith(text)
        ]


def command_of(process: Process) -> str:
    """Its command line; "" where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def send_kill(process: Process) -> None:
    """SIGKILL to this very process; nothing where it has ended."""
    with suppress(ProcessLookupError):
        if find(process.pid) == process:
            os.kill(process.pid, signal.SIGKILL)


def marked(value: str) -> set[Process]:
    """Living processes whose environment has `MARK` with this value."""
    found, wanted = set(), f"{MARK}={value}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted in path.read_bytes().split(b"\0") and (process := find(int(path.parent.name))):
                found.add(process)
    return found


def _one(processes: list[Process], draw: random.Random) -> list[Process]:
    return [draw.choice(processes)] if processes else []
