"""A disk that is full on one node of a cluster alone: the study stops and says which node and which folder, and goes on with room."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from bft_ray.places.disk import free_bytes
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import Store
from cluster.local.raylets import start_ray, start_raylet
from cluster.local.service import stop_all
from cluster.local.state import HOST, State, held
from tests.support.local_cluster import START_S, free_ports
from tests.support.small_disk import small_disk
from tests.support.small_study import write_space

LIMIT_S = 500
WINDOWS = [2, 4, 8, 16]


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A file system of 8 MB, in the place of a node's own disk."""
    with small_disk(tmp_path / "node_disk", 8) as folder:
        yield folder


@pytest.fixture
def cluster(small) -> Iterator[State]:
    """A head that does no work, and a raylet beside it whose home and temporary files are on the small disk."""
    folder = Path(tempfile.mkdtemp(prefix="rc_"))
    with held(folder):
        state = State(folder, dict(zip(("gcs", "dashboard"), free_ports(2), strict=True)))
    try:
        start_ray(state, time.monotonic() + START_S, workers=1, cpus=1)
        (small / "tmp").mkdir()
        own = {"HOME": str(small), "TMPDIR": str(small / "tmp")}
        start_raylet(state, "ray-worker-2", {"address": f"{HOST}:{state.ports['gcs']}"}, 1, [], own)
        yield state
    finally:
        left = stop_all(state)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


@pytest.mark.release
@pytest.mark.privileged
def test_a_disk_that_is_full_on_one_node(cluster, small, make_tree, tmp_path):
    filler = small / "filler"
    filler.write_bytes(bytes(free_bytes(small)))
    folder = write_study(tmp_path / "disturbed", make_tree)
    stopped = search(folder, cluster)
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr, stopped.stderr[-3000:]
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(rf"on node \S+ \([0-9a-f]{{8}}\): the disk that holds {small}\S* .*with 0.0 MB free", line), line
    assert line.endswith("Make room there, and give the same command again.")
    found = records(folder)
    assert found and {record.state for record in found} <= {"waiting", "complete"}
    assert any(f"the disk that holds {small}" in record.reason for record in found if record.state == "waiting")

    filler.unlink()
    done = search(folder, cluster)
    assert done.returncode == 0, done.stderr[-3000:]
    undisturbed = write_study(tmp_path / "undisturbed", make_tree)
    calm = search(undisturbed, cluster)
    assert calm.returncode == 0, calm.stderr[-3000:]
    assert [record.state for record in records(folder)] == ["complete"] * len(WINDOWS)
    assert plain(records(folder)) == plain(records(undisturbed))


def write_study(folder: Path, make_tree: Callable[..., dict]) -> Path:
    """A study whose tokens go to the home of each node."""
    folder.mkdir()
    tree = make_tree(cluster={"address": "auto", "gpus_per_worker": 0, "storage_path": str(folder / "results")})
    tree["tracking"]["uri"] = f"sqlite:///{folder}/mlflow.db"
    del tree["name"], tree["data"]["cache_dir"]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    window = {"loss.window": {"kind": "categorical", "values": WINDOWS}}
    write_space(folder, parameters=window, budget={"trials": len(WINDOWS), "steps": 4}, baselines=[])
    return folder


def search(folder: Path, cluster: State) -> subprocess.CompletedProcess:
    words = ["search", "space.yaml", "--database", f"sqlite:///{folder}/studies.db", "--no-measure", "--no-profile"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | cluster.ray_client()
    env |= {"OMP_NUM_THREADS": "1", "HOME": str(folder)}
    command = [sys.executable, "-m", "bft_ray.cli", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT_S)


def records(folder: Path) -> list[TrialRecord]:
    with Database(f"sqlite:///{folder}/studies.db") as database:
        return Store.find(database, "small/test").records()


def plain(found: list[TrialRecord]) -> list[tuple]:
    """Without when and where it ran."""
    return [(one.number, dict(one.assignment), one.key, one.num_steps, one.by_seed, one.rungs) for one in found]
