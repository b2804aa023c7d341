"""How many runs fit on a cluster at a time."""

from __future__ import annotations

import pytest

from bft_ray.config import ClusterConfig
from bft_ray.errors import BftError
from bft_ray.study.execute import ray_tune
from bft_ray.study.execute.ray_tune import num_runs


@pytest.mark.parametrize(
    ("nodes", "workers", "placement", "runs"),
    [
        ([4, 4], 1, "PACK", 8),
        ([3, 3], 2, "PACK", 3),
        ([3, 3], 2, "STRICT_PACK", 2),
        ([3, 3], 2, "STRICT_SPREAD", 3),
        ([5, 1, 1], 2, "STRICT_SPREAD", 2),
        ([1], 2, "SPREAD", 0),
    ],
)
def test_runs_fit_whole(nodes, workers, placement, runs):
    cluster = ClusterConfig(num_workers=workers, placement=placement)
    assert num_runs([{"CPU": float(cpus)} for cpus in nodes], {"CPU": 1.0}, cluster) == runs


def test_parts_of_a_gpu():
    nodes = [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert num_runs(nodes, {"CPU": 1.0, "GPU": 0.25}, ClusterConfig()) == 6


def test_nodes_that_are_gone_are_told_and_waited_for_no_longer_than_said(monkeypatch, caplog):
    now, slots = [0.0], [2]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(ray_tune, "num_slots", lambda cluster: lambda: slots[0])
    look = ray_tune._room(ClusterConfig(start_timeout_s=30))
    for at, there in [(100, 2), (101, 0), (125, 0), (128, 1), (129, 0), (157, 0)]:
        now[0], slots[0] = at, there
        look()
    assert [record.message for record in caplog.records] == [
        "no node has room for a trial; waiting up to 30 s for one"
    ] * 2
    now[0] = 160
    with pytest.raises(BftError, match=r"start_timeout_s = 30 s.*the same command resumes the study"):
        look()
