"""A run goes on with fewer workers when a node is lost, and with more when there is room again: the same run, to rounding."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from bft_ray.config import ClusterConfig, make_config
from bft_ray.errors import BadConfig
from cluster.local.raylets import start_ray, start_raylet
from cluster.local.service import stop_all
from cluster.local.state import HOST, State, held
from tests.support.local_cluster import START_S, free_ports
from tests.support.paths import ROOT

NUM_STEPS, EVERY, LIMIT_S = 1000, 50, 300


def test_a_range_of_workers():
    assert ClusterConfig.model_validate({"num_workers": [1, 4]}).model_dump() == (
        ClusterConfig(num_workers=4, min_workers=1).model_dump()
    )
    assert (ClusterConfig(num_workers=3).least_workers, ClusterConfig(num_workers=3, min_workers=2).least_workers) == (
        3,
        2,
    )


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"num_workers": [4, 1]}, r"`cluster.min_workers` is 4, but must be at most cluster.num_workers \(1\)"),
        ({"num_workers": [1, 2, 3]}, r"`cluster.num_workers` is \[1, 2, 3\], but must be a number, or \[least, most\]"),
        ({"num_workers": [0, 2]}, "`cluster.min_workers` is 0"),
        ({"num_workers": [1, 2], "min_workers": 1}, "and cluster.min_workers left out"),
    ],
)
def test_a_wrong_range_is_refused(make_tree, cluster, message):
    with pytest.raises(BadConfig, match=message):
        make_config(make_tree(cluster=cluster))


@pytest.fixture
def two_nodes() -> Iterator[State]:
    """A Ray cluster of a head that does no work, and two workers of one core."""
    folder = Path(tempfile.mkdtemp(prefix="rc_"))
    with held(folder):
        state = State(folder, dict(zip(("gcs", "dashboard"), free_ports(2), strict=True)))
    try:
        start_ray(state, time.monotonic() + START_S, workers=2, cpus=1)
        yield state
    finally:
        left = stop_all(state)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


def run(config: dict, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """`bft-ray train`, line by line."""
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "bft_ray.cli", "train", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT) as driver:
        assert driver.stderr is not None
        end = time.monotonic() + LIMIT_S
        for line in driver.stderr:
            if time.monotonic() > end:
                driver.kill()
            yield line
    assert driver.returncode == 0


@pytest.mark.long
def test_a_node_is_lost_and_another_comes(two_nodes, make_tree, tmp_path):
    sections = {
        "loss": {"method": "bft_inverse", "window": 8},
        "optimizer": {"learning_rate": 1e-4},
        "schedule": {"steps": NUM_STEPS},
        "evaluation": {"every_steps": EVERY},
        "deepspeed": {"preset": "zero2"},
    }
    env = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | two_nodes.ray_client()
    place = {
        "address": "auto",
        "gpus_per_worker": 0,
        "storage_path": str(tmp_path / "results"),
        "resize_interval_s": 2.0,
    }
    tree = make_tree(name="moved", cluster=place | {"num_workers": [1, 2]}, **sections)
    tree["data"]["global_batch_size"] = 24  # steps that last until the other node is there
    said, counts, acts, took = [], [], [], []
    for line in run(tree, tmp_path, env):
        said.append(line)
        if found := re.search(r"(\d+) workers on", line):
            counts.append(int(found[1]))
            took.append(time.monotonic())
        if line.startswith(f"checkpoint of step {3 * EVERY} ") and not acts:
            acts.append(time.monotonic())
            root = psutil.Process(two_nodes.processes["ray-worker-2"].pid)
            for process in [*root.children(recursive=True), root]:
                process.send_signal(signal.SIGKILL)
        elif counts == [2, 1] and len(acts) == 1:
            acts.append(time.monotonic())
            start_raylet(two_nodes, "ray-worker-3", {"address": f"{HOST}:{two_nodes.ports['gcs']}"}, 1, [], {})
    assert counts == [2, 1, 2], "".join(said)[-3000:]
    print(
        f"with fewer workers after {took[1] - acts[0]:.0f} s, with more {took[2] - acts[1]:.0f} s after the start of a node"
    )

    calm = tree | {"name": "calm", "cluster": place | {"num_workers": 1}}
    assert [line for line in run(calm, tmp_path, env)]
    client = MlflowClient(tree["tracking"]["uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'bft/test'")
    runs = {one.info.run_name: one.info.run_id for one in client.search_runs([experiment.experiment_id])}
    for name in ("train/loss", "validation/nll"):
        ours, theirs = (client.get_metric_history(runs[one], name) for one in ("moved", "calm"))
        assert [metric.step for metric in theirs] == sorted(metric.step for metric in theirs)
        values = {metric.step: metric.value for metric in theirs}
        assert {metric.step for metric in ours} == values.keys()
        worst = max(abs(metric.value - values[metric.step]) / abs(values[metric.step]) for metric in ours)
        assert worst <= 1e-5, (name, worst)
