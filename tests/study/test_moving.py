"""When a trial leaves its node, or ends to go on with more workers; and what the driver makes of it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import ray
from ray.tune.schedulers import TrialScheduler

from bft_ray.config import ClusterConfig
from bft_ray.study.execute import moving, ray_tune, slots
from bft_ray.study.records.segment import Run
from bft_ray.workers import room

ONE = {"gpus_per_worker": 0, "cpus_per_worker": 1}


@pytest.fixture
def cluster(monkeypatch):
    """Nodes `here` and `there` of one core: their deadlines in seconds from now, and cores that nobody uses."""
    state = SimpleNamespace(nodes={"here": 1.0, "there": 1.0}, going={}, free=0.0)

    def staying():
        return [
            {"NodeID": name, "Resources": {"CPU": cpus}}
            for name, cpus in state.nodes.items()
            if name not in state.going
        ]

    def notices():
        return {name: int((time.time() + left_s) * 1000) if left_s else 0 for name, left_s in state.going.items()}

    living = lambda: [{"NodeID": name, "Resources": {"CPU": cpus}} for name, cpus in state.nodes.items()]  # noqa: E731
    monkeypatch.setattr(room, "living", living)
    monkeypatch.setattr(room, "notices", notices)
    monkeypatch.setattr(moving, "staying", staying)
    monkeypatch.setattr(slots, "staying", staying)
    monkeypatch.setattr(moving, "notices", notices)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": state.free})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    return state


@pytest.mark.parametrize(
    ("going", "workers", "leaves"),
    [
        ({}, 1, False),
        ({"there": 600}, 1, False),
        ({"here": 600}, 1, True),
        ({"here": 0}, 1, True),  # no deadline is known
        ({"here": 600}, [1, 2], True),
        ({"here": 600}, 2, False),  # the other node has room for one
        ({"here": 0}, 2, False),
        ({"here": 59}, 2, True),  # the state is saved at least
        ({"here": 600, "there": 600}, 1, False),
    ],
)
def test_a_node_with_a_notice_is_left(cluster, going, workers, leaves):
    cluster.going = going
    assert moving.leaves(ClusterConfig(num_workers=workers, **ONE)) == leaves


def test_a_trial_grows_into_places_that_nobody_uses(cluster):
    elastic, fixed = ClusterConfig(num_workers=[1, 3], **ONE), ClusterConfig(num_workers=1, **ONE)
    cluster.free = 1.0
    assert moving.has_room(elastic, 1) and not moving.has_room(elastic, 2) and not moving.has_room(fixed, 1)
    cluster.free = 0.5
    assert not moving.has_room(elastic, 1)
    cluster.free, cluster.going = 1.0, {"there": 600}  # free, and Ray places nothing there
    assert not moving.has_room(elastic, 1)
    cluster.nodes["new"] = 1.0  # another trial's
    assert not moving.has_room(elastic, 1)
    cluster.free = 2.0
    assert moving.has_room(elastic, 1)


def test_a_worker_is_told_by_its_thread(cluster, monkeypatch):
    monkeypatch.setattr(moving, "_LOOK_S", 0.01)
    with moving.moving(ONE) as is_moving:  # without Ray
        assert not is_moving()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    own = ONE | {"num_workers": 3, "min_workers": 1, "resize_interval_s": 0.05}
    with moving.moving(own) as is_moving:
        assert not is_moving()
        time.sleep(0.2)
        assert not is_moving()
        cluster.free = 1.0
        end = time.monotonic() + 10
        while not is_moving():
            assert time.monotonic() < end
            time.sleep(0.01)
    cluster.going = {"here": 600}
    with moving.moving(own) as is_moving:
        assert is_moving()  # at once: it does not begin
    with moving.moving({"cpus": "none"}) as is_moving:  # the trial itself says that it is not valid
        assert not is_moving()


def test_the_driver_records_what_was_saved_and_no_failure(caplog):
    """The actor reports the run, and then ends with an error, so that Tune gives up its places."""
    ended, begun = [], []
    controller = SimpleNamespace(
        is_held=False, ended=lambda segment, run: ended.append(run.status), begun=lambda segment, n: begun.append(n)
    )
    bridge = ray_tune._Bridge(controller, [])
    segment = SimpleNamespace(trial="search/0", seed=1)
    trial = SimpleNamespace(
        trial_id="a", error_file=None, placement_group_factory=SimpleNamespace(bundles=[{}, {"CPU": 1}])
    )
    for name in ("a", "b"):
        bridge.segments = {name: segment}
        trial.trial_id = name
        ray_tune._Events(bridge).on_trial_start(0, [], trial)
        report = {"run": Run(status="saved", num_steps=7)}
        assert ray_tune._Rungs(bridge, ClusterConfig()).on_trial_result(None, trial, report) == TrialScheduler.CONTINUE
        ray_tune._Rungs(bridge, ClusterConfig()).on_trial_error(None, trial)
        ray_tune._Suggestions(bridge).on_trial_complete(name, error=True)
    assert ended == ["saved", "saved"] and begun == [1, 1] and not bridge.segments and not bridge.saved
    assert [record.message for record in caplog.records] == [
        "search/0 is saved after step 7: nodes leave or come",
        "search/0 goes on with 1 worker",
        "search/0 is saved after step 7: nodes leave or come",
    ]
