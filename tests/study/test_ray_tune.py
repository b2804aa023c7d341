"""How many runs fit on a cluster at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bft_ray.config import ClusterConfig
from bft_ray.errors import BftError
from bft_ray.study.execute import ray_tune
from bft_ray.study.execute import slots as places
from bft_ray.study.execute.slots import num_runs


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
    monkeypatch.setattr(places, "num_slots", lambda cluster: lambda: slots[0])
    look = places.room_for_trials(ClusterConfig(start_timeout_s=30))
    for at, there in [(100, 2), (101, 0), (125, 0), (128, 1), (129, 0), (157, 0)]:
        now[0], slots[0] = at, there
        look()
    assert [record.message for record in caplog.records] == [
        "no node has room for a trial; waiting up to 30 s for one"
    ] * 2
    now[0] = 160
    with pytest.raises(BftError, match=r"start_timeout_s = 30 s.*the same command resumes the study"):
        look()


def test_a_trial_that_waits_for_a_lost_node_is_taken_back(monkeypatch):
    """Places for three workers were reserved, and a node died: room is for two. Who waits for three is given out again, who runs or
    waits for two is left alone.
    """
    monkeypatch.setattr(places, "staying", lambda: [{"Resources": {"CPU": 2.0}}])
    cluster = ClusterConfig(num_workers=[1, 3], cpus_per_worker=1, gpus_per_worker=0)
    trials = [
        SimpleNamespace(
            trial_id=f"{status}-{workers}",
            status=status,
            placement_group_factory=SimpleNamespace(bundles=[{}, *[{"CPU": 1.0}] * workers]),
        )
        for status, workers in (("RUNNING", 3), ("PENDING", 3), ("PENDING", 2))
    ]
    back, stopped = [], []
    bridge = ray_tune._Bridge(SimpleNamespace(put_back=back.append), [])
    bridge.segments = {trial.trial_id: f"segment of {trial.trial_id}" for trial in trials}

    def stop(trial: SimpleNamespace) -> None:
        stopped.append(trial.trial_id)
        ray_tune._Suggestions(bridge).on_trial_complete(trial.trial_id)

    tune = SimpleNamespace(get_trials=lambda: trials, stop_trial=stop)
    ray_tune._Rungs(bridge, cluster).choose_trial_to_run(tune)
    assert stopped == ["PENDING-3"] and back == ["segment of PENDING-3"]
    assert "PENDING-3" not in bridge.segments
