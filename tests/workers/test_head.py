"""A head that was replaced by another one at the same address, while a driver waits: Ray itself would let it wait for ever,
or abort it."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.chaos_cluster import Cluster

#: waits for a worker that never starts, and then counts nodes
DRIVER = """
import sys
from ray.exceptions import RayError
from bft_ray.config import ClusterConfig
from bft_ray.errors import BftError
from bft_ray.workers import connect, node, spread

cluster = ClusterConfig(address=sys.argv[1], start_timeout_s=200)

class Starting:
    def __init__(self):
        import time
        time.sleep(500)
    def ready(self):
        pass

def wait():
    import ray
    actor = ray.remote(num_cpus=0)(Starting).remote()
    spread._wait({actor.ready.remote(): spread._Hired(0, actor, None)}, cluster)

try:
    with connect.connect(cluster):
        print("connected", flush=True)
        try:
            wait()
        except RayError:
            print("waited", flush=True)
        node.living()
except BftError as error:
    print(f"error: {error}", flush=True)
"""


@pytest.mark.long
def test_a_driver_of_a_head_that_was_replaced_ends_with_one_line(tmp_path):
    (tmp_path / "home").mkdir()
    cluster = Cluster(tmp_path / "cluster", {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"})
    cluster.start()
    try:
        words = [sys.executable, "-c", DRIVER, f"127.0.0.1:{cluster.state.ports['gcs']}"]
        with subprocess.Popen(
            words,
            env=cluster.client(),
            cwd=Path.cwd(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as driver:
            try:
                assert driver.stdout.readline() == "connected\n"
                assert cluster.kill("gcs", random.Random(0))
                cluster.mend()
                lines = driver.communicate(timeout=180)[0].splitlines()
                *_, waited, error = [line for line in lines if not line.startswith("[20")]  # those are Ray's own log
                assert waited == "waited" and error.startswith("error: the head of the Ray cluster has started anew")
                assert driver.returncode == 0
            finally:
                driver.kill()
    finally:
        cluster.stop()
