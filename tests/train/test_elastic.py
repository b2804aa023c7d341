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
from types import SimpleNamespace

import psutil
import pytest
import ray
import ray.train.collective
import yaml
from mlflow import MlflowClient
from ray.train import PreemptionInfo

from bft_ray.config import ClusterConfig, make_config
from bft_ray.errors import BadConfig
from bft_ray.train import notice
from bft_ray.train.notice import Notices
from bft_ray.workers import room
from cluster.local.raylets import start_ray, start_raylet
from cluster.local.service import stop_all
from cluster.local.state import HOST, State, held
from tests.support.alone import run_alone
from tests.support.local_cluster import START_S, drain, free_ports, head_and_node
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks

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


class Cluster:
    """Nodes of three types of room, and what Ray Train tells its workers; rank 0 of two."""

    def __init__(self, monkeypatch):
        self.nodes = {"a": 1, "b": 1, "c": 0}  # id -> workers that it has room for
        self.draining: list[str] = []
        info = lambda: PreemptionInfo(None, {node: [0] for node in self.draining}) if self.draining else None  # noqa: E731
        monkeypatch.setattr(ray.train, "get_preemption_info", info)
        monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda data: data)
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: self.num_workers)
        monkeypatch.setattr(ray.train, "get_context", lambda: context)
        monkeypatch.setattr(notice, "living", self.told)
        monkeypatch.setattr(notice, "staying", lambda: [n for n in self.told() if n["NodeID"] not in self.draining])
        monkeypatch.setattr(room, "living", self.told)
        monkeypatch.setattr(room, "notices", lambda: dict.fromkeys(self.draining, 0))
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": self.free})
        self.num_workers, self.free = 2, 0.0

    def told(self):
        return [{"NodeID": name, "Resources": {"CPU": room}} for name, room in self.nodes.items()]


def test_what_a_notice_is_answered_with(monkeypatch):
    cluster, elastic = Cluster(monkeypatch), ClusterConfig(num_workers=2, min_workers=1, gpus_per_worker=0)
    notices = Notices(elastic)
    assert [notices.after(step) for step in (1, 2, 3)] == ["", "", ""]
    cluster.draining = ["b"]
    answers = [notices.after(step) for step in range(4, 2000)]
    assert [answer for answer in answers if answer] == ["leave"] and notices.away == (
        "b",
    )  # once, and within some steps

    fixed = Notices(ClusterConfig(num_workers=2, gpus_per_worker=0))
    assert [answer for answer in map(fixed.after, range(1, 2000)) if answer] == ["save"]  # no room for two elsewhere
    cluster.nodes["c"] = 1
    assert next(answer for answer in map(fixed.after, range(2000, 9000)) if answer) == "leave"  # a node came in time

    cluster.num_workers, cluster.free = 1, 1.0  # it was started on what was left; the place of b is free
    left = Notices(elastic, ("b",))
    assert {left.after(step) for step in range(1, 2000)} == {""}  # c is another run's
    cluster.free = 2.0
    assert next(answer for answer in map(left.after, range(2000, 9000)) if answer) == "leave" and left.away == ("b",)
    del cluster.nodes["b"]
    cluster.draining, cluster.free = [], 0.0
    left = Notices(elastic, ("b",))
    assert {left.after(step) for step in range(1, 2000)} == {""}
    cluster.free = 1.0
    assert next(answer for answer in map(left.after, range(2000, 9000)) if answer) == "leave"


def test_a_cluster_that_does_not_answer_is_asked_again(monkeypatch, caplog):
    """The other ranks wait for rank 0, so it must not fail there; and the notice is not lost."""
    cluster = Cluster(monkeypatch)
    notices = Notices(ClusterConfig(num_workers=2, min_workers=1, gpus_per_worker=0))
    cluster.draining, told = ["b"], cluster.told

    def away():
        raise ConnectionError("the GCS is away")

    monkeypatch.setattr(notice, "living", away)
    monkeypatch.setattr(notice, "staying", away)
    assert {notices.after(step) for step in range(1, 2000)} == {""}
    assert "notices of nodes could not be read: the GCS is away" in caplog.text
    monkeypatch.setattr(notice, "living", told)
    monkeypatch.setattr(notice, "staying", lambda: [node for node in told() if node["NodeID"] not in cluster.draining])
    assert next(answer for answer in map(notices.after, range(2000, 9000)) if answer) == "leave"


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


def run(config: dict, folder: Path, env: dict[str, str], limit_s: float = LIMIT_S) -> Iterator[str]:
    """`bft-ray train`, line by line."""
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "bft_ray.cli", "train", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT) as driver:
        assert driver.stderr is not None
        end = time.monotonic() + limit_s
        for line in driver.stderr:
            if time.monotonic() > end:
                driver.kill()
            yield line
    assert driver.returncode == 0


@pytest.mark.release
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


@pytest.mark.release
def test_a_node_that_is_to_be_taken_away_is_left_before(make_tree, tmp_path):
    """`ray drain-node`, as an autoscaler does before a preemption: no worker dies of it, and no step is lost."""
    steps, deadline_s = 600, 600
    tree = make_tree(name="moved", schedule={"steps": steps}, optimizer={"learning_rate": 1e-4})
    tree["evaluation"] = {"every_steps": steps}
    tree["checkpoint"] = {"every_steps": steps}  # none but that of the notice
    tree["data"] |= {"global_batch_size": 24, "packing": True}
    place = {"address": "auto", "gpus_per_worker": 0, "storage_path": str(tmp_path / "results")}
    own = tree | {"cluster": place | {"num_workers": [1, 2]}}
    said, asked, went_on, saved = [], 0.0, 0.0, 0
    with head_and_node() as state:
        env = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | state.ray_client()
        for line in run(own, tmp_path, env, 900):
            said.append(line)
            if line.startswith(f"step {steps // 10}/") and not asked:
                asked = time.monotonic()
                drain(state, deadline_s)
            if found := re.search(r"resumes after step (\d+)", line):
                went_on, saved = time.monotonic(), int(found[1])
    log = "".join(said)
    assert re.search(f"to be taken away: the workers save step {saved}, and the workers start anew", log), log
    assert "workers ended" not in log and steps // 10 <= saved < steps, log[-3000:]
    assert [int(n) for n in re.findall(r"(\d+) workers on", log)] == [2, 1]
    assert went_on - asked < deadline_s
    print(f"{went_on - asked:.0f} s after the notice the run goes on from step {saved} on the other node")

    (calm,) = run_ranks(run_alone, 1, tree, str(tmp_path / "calm"))
    losses = {values["step"]: values["train/loss"] for event, values in calm["events"] if event == "step"}
    client = MlflowClient(tree["tracking"]["uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'bft/test'")
    (found,) = client.search_runs([experiment.experiment_id])
    ours = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "train/loss")}
    assert ours.keys() == losses.keys() and ours == pytest.approx(losses, rel=1e-5)
