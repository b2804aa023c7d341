"""How many runs fit on a cluster at a time."""

from __future__ import annotations

import pytest

from bft_ray.config import ClusterConfig
from bft_ray.search.tuning import num_runs


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
