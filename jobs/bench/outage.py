"""What it costs a training that the MLflow server is away for ten minutes.

    python -m jobs.bench.outage [--minutes 10] [--step-s 0.5] [--out bench_outage]

A process logs the metrics of a step as rank 0 does, every STEP_S seconds: first for a fifth as long with the server there, then with the
server away (killed), then for a fifth as long with the server back, which is sent what it lacks. Prints the longest call of the training,
the CPU that everything but the step itself took in each part (other threads, the keeper), in per cent of one core, and whether the
server holds every point exactly once. Writes OUT.json with the machine; ends with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from bft_ray.config import TrackingConfig
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import check_server, connect
from cluster.local.service import free_port
from jobs.bench.machine import machine

LONGEST_CALL_S = 1.0  # target: of any call that a training waits for
MORE_CPU = 0.01  # target: more CPU while the server is away and until all is sent, as a share of one core
_START_S = 120.0
_FREE_S = 20.0  # longest wait until the port of a killed server is free
_WARM_S = 30.0
_SENT_S = 300.0  # longest wait at the end until everything is sent
#: as many metrics as a step of a training has
_METRICS = 17


class Server:
    """`mlflow server` on loopback over an SQLite file, which can be killed and started again."""

    def __init__(self, folder: Path):
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None
        self._held: socket.socket | None = None

    def start(self) -> None:
        """Start it; returns when it answers."""
        if self._held is not None:
            self._held.close()
            self._held = None
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        words += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        words += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            own = os.environ | {
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"
            }  # nine processes for jobs that nobody has
            self._process = subprocess.Popen(
                words, cwd=self._folder, env=own, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.2)
        raise SystemExit((self._folder / "server.log").read_text()[-3000:])

    @property
    def session(self) -> int:
        """Number of the session of its processes; -1 while it is away."""
        return -1 if self._process is None else self._process.pid

    def kill(self) -> None:
        """SIGKILL to it and its workers. Its port is kept, and refuses every connection, so that nobody else answers there."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # the session that `start` made
            self._process.wait(timeout=30)
            self._process = None
            self._held = socket.socket()
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            end = time.monotonic() + _FREE_S
            while True:
                try:
                    return self._held.bind(("127.0.0.1", self._port))
                except OSError:  # its workers end a moment after it
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.05)


class Steps:
    """Steps of a training that does nothing but log, and the longest call so far."""

    def __init__(self, tracker: Tracker, server: Server):
        self._tracker, self._server = tracker, server
        self.done, self.longest_s = 0, 0.0

    def run_for(self, seconds: float, step_s: float) -> dict[str, float]:
        """Log a step every `step_s`; returns what all other threads and the keeper took meanwhile, and what each call took.

        Returns:
            seconds, steps, the longest call, and CPU seconds: of the calls, and of all else that serves MLflow.
        """
        began, cpu, own = time.monotonic(), _cpu_s(self._server), time.thread_time()
        steps, longest, calls_s = 0, 0.0, 0.0
        while time.monotonic() - began < seconds:
            step = self.done
            metrics = {f"train/metric_{n}": step / (n + 7) for n in range(_METRICS)}
            at, used = time.perf_counter(), time.thread_time()
            self._tracker.log_metrics(metrics, step)
            longest, calls_s = max(longest, time.perf_counter() - at), calls_s + time.thread_time() - used
            self.done, steps = step + 1, steps + 1
            time.sleep(max(0.0, began + steps * step_s - time.monotonic()))
        self.longest_s = max(self.longest_s, longest)
        spent = time.monotonic() - began
        others = _cpu_s(self._server) - cpu - (time.thread_time() - own)
        return {
            "seconds": spent,
            "steps": steps,
            "longest_call_s": longest,
            "calls_cpu_s": calls_s,
            "others_cpu_s": others,
            "share_of_a_core": (calls_s + others) / spent,
        }


def _cpu_s(server: Server) -> float:
    """CPU seconds of this process and those it has started (the keeper), without the server's."""
    here = psutil.Process()
    total = sum(here.cpu_times()[:2])
    for child in here.children(recursive=True):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(child.pid) != server.session:
                total += sum(child.cpu_times()[:2])
    return total


def _is_whole(uri: str, run_id: str, num_steps: int) -> bool:
    """Whether the server holds each point of each metric exactly once."""
    client = connect(uri)
    for n in range(_METRICS):
        found = [(one.step, one.value) for one in client.get_metric_history(run_id, f"train/metric_{n}")]
        if found != [(step, step / (n + 7)) for step in range(num_steps)]:
            return False
    return True


def measure(folder: Path, minutes: float, step_s: float) -> dict[str, Any]:
    """The three parts, and what the server holds at the end."""
    server = Server(folder)
    server.start()
    try:
        tracking = TrackingConfig(uri=server.uri, timeout_s=60.0)
        check_server(tracking)
        tracker = Tracker.start(tracking, "bft/bench", "outage", {}, {}, spool=folder / "spool")
        steps, parts = Steps(tracker, server), {}
        with tracker:
            steps.run_for(_WARM_S, step_s)  # what only the beginning costs, the keeper's imports among it
            parts["there"] = steps.run_for(12 * minutes, step_s)
            server.kill()
            parts["away"] = steps.run_for(60 * minutes, step_s)
            waiting_bytes = sum(path.stat().st_size for path in (folder / "spool").iterdir())
            server.start()
            parts["back"] = steps.run_for(12 * minutes, step_s)
            is_sent = tracker.flush(_SENT_S)
        return {
            "parts": parts,
            "spool_bytes": waiting_bytes,
            "is_sent": is_sent,
            "num_points": steps.done * _METRICS,
            "every_point_once": _is_whole(server.uri, tracker.run_id, steps.done),
            "longest_call_s": steps.longest_s,
        }
    finally:
        server.kill()


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, measure, print and write; 0 where all targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="that it is away (default: %(default)s)")
    parser.add_argument("--step-s", type=float, default=0.5, help="seconds of a step (default: %(default)s)")
    parser.add_argument("--out", default="bench_outage")
    options = parser.parse_args(arguments)
    about = machine(1, ["mlflow"])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = measure(Path(folder), options.minutes, options.step_s)
    there = found["parts"]["there"]["share_of_a_core"]
    found["more_cpu"] = {name: found["parts"][name]["share_of_a_core"] - there for name in ("away", "back")}
    is_good = (
        found["every_point_once"]
        and found["longest_call_s"] <= LONGEST_CALL_S
        and max(found["more_cpu"].values()) <= MORE_CPU
    )
    Path(f"{options.out}.json").write_text(json.dumps(found | {"machine": about}, indent=1))
    for name, part in found["parts"].items():
        print(
            f"{name:<6} {part['seconds']:.0f} s, {part['steps']} steps: longest call {1e3 * part['longest_call_s']:.1f} ms, "
            f"CPU {part['calls_cpu_s'] + part['others_cpu_s']:.2f} s, {100 * part['share_of_a_core']:.2f} % of a core"
        )
    once = "each exactly once" if found["every_point_once"] else "NOT each exactly once"
    print(
        f"{found['num_points']} points, {once}; {found['spool_bytes'] / 1e6:.2f} MB waited; {'met' if is_good else 'MISSED'}"
    )
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
