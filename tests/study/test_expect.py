"""What is said before a study starts: what it cannot tell, and what it takes, from figures made by hand and measured."""

from __future__ import annotations

from typing import Any

import pytest

from bft_ray.config import load_config, make_config
from bft_ray.errors import BadInput
from bft_ray.space.cost import cost_of
from bft_ray.study.checks import expect
from bft_ray.study.checks.expect import caveats, requirements
from bft_ray.study.checks.ready import Facts, _require_items
from bft_ray.study.execute.measure import Measured, measure
from tests.support.noted import METRIC, space

MEASURED = Measured(2.0, 10.0, 1.0, 3_500_000_000, 0, 20_000_000, 60_000_000, "1 CPU thread(s)", 14.2)
CONFIRMED = {"top_k": 2, "overrides": {"data.validation.0.path": "x"}, "seeds": [11, 12, 13, 14, 15]}


def a_study(samples: tuple[int, ...] = (200,), epochs: float = 3.0, **more: Any) -> tuple[Any, Any, Facts]:
    base = make_config(
        load_config("starter", ["cluster.num_workers=1"]).model_dump() | {"schedule": {"epochs": epochs}}
    )
    own = space(**{"confirmation": CONFIRMED, "scheduler": {"kind": "asha", "grace_steps": 9}} | more)
    cost = cost_of(own, base, 400, samples)
    return own, cost, Facts(base, 400, samples, {}, {"search": 150, "confirmation": 40})


def test_what_stands_beside_the_trials_and_what_cannot_be_told():
    own, cost, facts = a_study()
    assert caveats(own, cost, facts) == [
        "baseline runs (sft, dft, bft, each with its rates and seeds) beside the trials asked for: 6 beside 20",
        "note: no confirmation.test: nothing is measured on data on which nothing was chosen",
        "note: the confirmation data have 40 items: of a share such as an accuracy, a true difference below about 0.2 is "
        "missed more often than in 2 of 10 studies",
    ]
    told = caveats(*a_study(confirmation=None))
    assert told[1].startswith("note: no confirmation: the study shows which settings were best on the data that picked")
    assert "registers no champion" in told[1]
    own, cost, facts = a_study((5,), epochs=1.0)
    told = caveats(own, cost, facts)
    assert "note: no trial is stopped early: scheduler.grace_steps is 9, and a trial has 1 steps" in told
    batch = facts.first.data.global_batch_size
    assert f"note: the 5 training samples are fewer than a batch of {batch}: each is in it more than once" in told


def test_a_split_of_one_item_is_refused_at_the_start():
    rows = {"search": {b"1": "a", b"2": "b"}, "confirmation": {b"1": "a"}}
    with pytest.raises(BadInput) as caught:
        _require_items(space(), rows)
    assert str(caught.value) == (
        f"`items of the confirmation data` is 1, but must be at least 2, to compare {METRIC} item by item. "
        "Give it more rows."
    )


def test_time_disk_and_memory(monkeypatch):
    own, cost, facts = a_study()
    steps = cost.steps
    assert steps is not None and len(cost.rungs) == 2
    lines = requirements(own, facts.first, cost, MEASURED, 2)
    assert cost.search_steps_stopped is not None
    tuning, search = 6 * (2 * steps + 11), 2 * cost.search_steps_stopped + 20 * 31
    confirmation = 25 * (2 * steps + 11)
    total = tuning + search + confirmation
    assert f"{total // 3600} h {total % 3600 // 60:02d} min one run at a time (baselines " in lines[0]
    assert lines[0].endswith(" with 2 at a time")
    # the best trials' weights, five arms of the confirmation, and MLflow's copy; no trial waits in a file
    models = facts.first.checkpoint.keep + 5 + facts.first.tracking.log_model
    assert lines[1] == f"disk    at most {20 * models} MB: {models} models of 20 MB"
    twice = space(confirmation=CONFIRMED, scheduler={"kind": "asha", "grace_steps": 9}, deterministic=True)
    waiting = requirements(twice, facts.first, cost, MEASURED, 2)[1]
    assert (
        waiting
        == f"disk    at most {(20 * models + 20 * 60) / 1000:.3g} GB: {models} models of 20 MB, 20 of 60 MB of trials that wait at a rung"
    )
    assert lines[2] == "memory  3.5 GB a trial at its peak"
    assert lines[3] == (
        "measured on 1 CPU thread(s): 2 s a step, 10 s a measurement of the first trial's config, in a process of its own, "
        "in 14 s"
    )
    assert "GPU" in requirements(own, facts.first, cost, Measured(**vars(MEASURED) | {"gpu_bytes": 10**9}), None)[2]
    for free, said in ((models * 39_000_000, False), (10_000_000, True)):
        monkeypatch.setattr(expect, "free_bytes", lambda path, free=free: free)
        line = requirements(own, facts.first, cost, MEASURED, 2)[1]
        assert f"models of 20 MB; {free // 10**6} MB are free on the disk of cluster.storage_path" in line
        assert ("too little, if all of it is needed" in line) == said
    (line,) = requirements(own, facts.first, cost, "it took more than 120 s", 2)
    assert line == "time, disk and memory are not measured: it took more than 120 s"


@pytest.mark.slow
def test_a_run_is_measured_and_a_failure_is_told(make_tree):
    told: list[str] = []
    found = measure(make_config(make_tree(deepspeed={"preset": "zero1"})), told.append)
    assert isinstance(found, Measured), found
    assert 0 < found.step_s < 60 and found.measure_s > 0 and found.gpu_bytes == 0
    assert found.memory_bytes > 100e6 and 0 < found.weights_bytes < found.state_bytes
    assert told == ["measuring 3 training steps and one measurement (120 s at most; --no-measure leaves it out)"]
    assert (
        measure(make_config(make_tree(deepspeed={"preset": "zero1"})), told.append, 0.01) == "it took more than 0.01 s"
    )
    many = make_config(make_tree(cluster={"num_workers": 2}))
    assert str(measure(many, told.append)).startswith("trials of several workers") and len(told) == 2
