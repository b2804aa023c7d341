"""A folder that not all nodes share is told before a study begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bft_ray.config import ClusterConfig
from cluster.local.raylets import start_ray
from cluster.local.service import stop_all
from cluster.local.state import State, held
from tests.support.local_cluster import START_S, free_ports
from tests.support.paths import ROOT

SCRIPT = """
import json, sys
import ray
from bft_ray.config import ClusterConfig
from bft_ray.errors import BadInput
from bft_ray.study.checks import shared
from bft_ray.workers.connect import connect

cluster = ClusterConfig(address="auto", storage_path=sys.argv[1])
found = {}
with connect(cluster):
    nodes = [node for node in ray.nodes() if node["Alive"]]
    found["nodes"] = len(nodes)
    found["shared"] = shared.require_shared(cluster)
    # the current folder of each process: another one for each, as a disk of its own is
    shared.storage.absolute = lambda path: "/proc/self/cwd"
    try:
        shared.require_shared(cluster)
    except BadInput as error:
        found["told"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    """The environment of a client of a cluster of three nodes, of which the head does no work."""
    folder = Path(tempfile.mkdtemp(prefix="rc_"))
    with held(folder):
        state = State(folder, dict(zip(("gcs", "dashboard"), free_ports(2), strict=True)))
    try:
        start_ray(state, time.monotonic() + START_S, workers=2, cpus=1)
        yield {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | state.ray_client()
    finally:
        left = stop_all(state)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


@pytest.mark.long
def test_nodes_that_see_another_folder(env, tmp_path):
    own = env | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=360, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["nodes"] == 3 and found["shared"] is None and not list(tmp_path.iterdir())
    assert "`cluster.storage_path` is '/proc/self/cwd', but must be a folder that all nodes share" in found["told"]
    assert found["told"].count("127.0.0.1") == 2  # the head runs no trial


def test_an_object_store_and_a_single_node_are_not_asked(monkeypatch, tmp_path):
    from bft_ray.study.checks import shared

    monkeypatch.setattr(shared, "blind_nodes", lambda path, nodes: ["asked"])
    node = {"Resources": {"CPU": 1.0}, "NodeID": "a", "NodeManagerAddress": "b"}
    monkeypatch.setattr(shared, "living", lambda: [node, node])
    shared.require_shared(ClusterConfig(storage_path="s3://bucket/results"))
    monkeypatch.setattr(shared, "living", lambda: [node])
    shared.require_shared(ClusterConfig(storage_path=str(tmp_path)))


def test_what_a_killed_check_left_is_removed_later(tmp_path):
    from bft_ray.study.checks import shared

    old, young = tmp_path / ".bft_ray_shared_a", tmp_path / ".bft_ray_shared_b"
    old.touch()
    young.touch()
    os.utime(old, (0, young.stat().st_mtime - 121))
    shared.remove_signs(str(tmp_path), before=young.stat().st_mtime - 120)
    assert list(tmp_path.iterdir()) == [young]  # of a check that may still wait for its nodes
