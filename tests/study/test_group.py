"""Groups of ranks that stay: their trials are those of fresh Ray Train workers, and a lost rank costs one segment."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import replace
from typing import Any

import psutil
import pytest

from bft_ray.config import make_config
from bft_ray.study.records.segment import Run, Segment
from tests.support.ranks import run_ranks
from tests.support.segments import make_segment
from tests.support.trials import CHOICES, steps_of

TWO = {"num_workers": 2, "gpus_per_worker": 0}
LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def ray_of_two_cpus():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def places(ray_of_two_cpus):
    from ray.util.placement_group import placement_group, remove_placement_group

    made = placement_group([{"CPU": 1}, {"CPU": 1}])
    assert made.wait(60)
    yield made
    remove_placement_group(made)


def take(group: Any, segment: Segment) -> Run:
    """The run that a segment leaves; its reports agree with it."""
    reports = list(group.run(segment))
    run = Run.read(segment.files, segment.key)
    assert run is not None and (reports[-1].status, reports[-1].num_steps) == (run.status, run.num_steps), reports[-1]
    return run


def losses(train: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(step["train/loss"], step["train/grad_norm"]) for step in train]


@pytest.mark.release
def test_a_group_trains_as_fresh_workers_do(ray_of_two_cpus, places, make_tree, tmp_path):
    """ZeRO 0, 2 and 3 in turn, after one that fails: bit for bit what Ray Train's workers come to."""
    from ray.util.placement_group import remove_placement_group

    from bft_ray.study.execute.group import Group
    from jobs.fresh import fresh_run

    kinds = {"zero0": None, "zero2": LORA, "zero3": None}
    trees = {
        preset: make_tree(cluster=TWO, deepspeed={"preset": preset}, lora=lora, evaluation={"tasks": [CHOICES]})
        for preset, lora in kinds.items()
    }
    wild = trees["zero3"] | {"optimizer": {"learning_rate": 1e30, "max_grad_norm": None}}
    group = Group(make_config(wild).cluster, places)
    failed = take(group, make_segment(wild, tmp_path / "wild"))
    assert failed.status == "failed" and failed.reason.startswith("NonFinite: ") and group.is_good
    own = {preset: take(group, make_segment(tree, tmp_path / preset)) for preset, tree in trees.items()}
    group.close()
    remove_placement_group(places)  # the others need the room
    for preset, tree in trees.items():
        run = own[preset]
        assert (run.status, list(run.metrics), len(run.records)) == ("complete", [2, 4, 6], 12 + 6), preset
        fresh = fresh_run(make_config(tree), str(tmp_path / f"fresh-{preset}"))
        assert losses(run.train) == losses(fresh) and len(fresh) == 6, preset


@pytest.mark.slow
def test_a_killed_rank_costs_one_segment(places, make_tree, tmp_path):
    """It resumes from the last state within the segment, on a new group; the curve is that of the undisturbed run."""
    import ray

    from bft_ray.study.execute.group import Group, WorkerDied

    tree = make_tree(cluster=TWO, deepspeed={"preset": "zero3"}, checkpoint={"every_steps": 3})
    calm, hurt = (make_segment(tree, tmp_path / name, rungs=(4,), at_rungs=None) for name in ("calm", "hurt"))
    group = Group(make_config(tree).cluster, places)
    whole = take(group, calm)
    pid = ray.get(group._ranks[1].pid.remote())
    steps = group.run(hurt)
    assert next(steps).num_steps == 4
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WorkerDied, match="rank 1: a worker died, its process is gone"):
        list(steps)
    assert time.monotonic() - began < 120 and not group.is_good
    group.close()
    again = Group(make_config(tree).cluster, places)
    *_, last = again.run(hurt)
    assert last.status == "complete"
    resumed = Run.read(hurt.files, hurt.key)
    assert resumed is not None and steps_of(resumed) == steps_of(whole) and resumed.metrics == whole.metrics
    again.close()


@pytest.mark.release
def test_a_rank_that_hangs_is_named_within_the_limit_of_the_others(places, make_tree, tmp_path):
    """Also in DeepSpeed's own process groups, whose limit torch sets to half an hour. The next group goes on."""
    import ray

    from bft_ray.study.execute.group import Group

    limit_s = 20  # also of the ranks that meet, on a machine that others use
    tree = make_tree(cluster=TWO | {"collective_timeout_s": limit_s}, deepspeed={"preset": "zero2"})
    calm, hurt = (make_segment(tree, tmp_path / name, rungs=(4,), at_rungs=None) for name in ("calm", "hurt"))
    group = Group(make_config(tree).cluster, places)
    whole = take(group, calm)
    pid = ray.get(group._ranks[1].pid.remote())
    steps = group.run(hurt)
    assert next(steps).num_steps == 4
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    (last,) = steps
    assert limit_s <= time.monotonic() - began < limit_s + 30
    assert (last.status, last.is_lasting, group.is_good) == ("failed", False, False)  # the driver tries it again
    assert last.reason.endswith("(without an answer, and ended: rank 1)"), last.reason
    group.close()
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.1)
    again = Group(make_config(tree).cluster, places)
    *_, last = again.run(hurt)
    resumed = Run.read(hurt.files, hurt.key)
    assert last.status == "complete" and resumed is not None and resumed.metrics == whole.metrics
    again.close()


class FakeRank:
    """Reports what it is told to, after a while."""

    def __init__(self, run: Run, after_s: float):
        self._run, self._after_s = run, after_s

    def begin(self, segment: Segment) -> None:
        pass

    def next(self) -> Run:
        time.sleep(self._after_s)
        return self._run

    def end(self) -> None:
        pass


@pytest.mark.slow
def test_ranks_that_wait_for_one_that_failed_are_not_waited_for(ray_of_two_cpus, monkeypatch, make_tree, tmp_path):
    from bft_ray.study.execute import group as module

    monkeypatch.setattr(module, "_GRACE_S", 0.5)
    failed = Run("key", "failed", "OSError: no such file", is_lasting=False)
    other = replace(failed, reason="RuntimeError: connection closed by peer")
    for second, after_s, is_good in ((Run("key"), 60.0, False), (other, 0.1, False), (failed, 0.1, True)):
        actor = ray_of_two_cpus.remote(num_cpus=0)(FakeRank)
        group = module.Group.__new__(module.Group)
        group.is_good, group._ranks = True, [actor.remote(second, after_s), actor.remote(failed, 0.0)]
        ray_of_two_cpus.get([rank.end.remote() for rank in group._ranks])
        began = time.monotonic()
        (report,) = group.run(make_segment(make_tree(), tmp_path))
        assert report.status == "failed" and time.monotonic() - began < 40  # not the 60 s of the other
        assert report.reason == (other if second is other else failed).reason and group.is_good == is_good
        for rank in group._ranks:
            ray_of_two_cpus.kill(rank)


def paused_in_a_store(tree: dict, folder: str) -> tuple[list[str], Any, Any]:
    """A segment in two parts on these ranks, in one store of rank 0's folder that all of them see; and one in one part."""
    import torch
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    from bft_ray.places import kept, storage
    from bft_ray.study.execute.segments import run_segment
    from bft_ray.study.execute.warm import Warm

    def at(path: str) -> tuple[Any, str]:
        return SubTreeFileSystem(folder, LocalFileSystem()), path.removeprefix("store://").lstrip("/")

    before = storage.is_remote, storage._at, kept.is_remote, kept.filesystem_at
    storage.is_remote = kept.is_remote = lambda path: path.startswith("store://")
    storage._at = kept.filesystem_at = at
    try:
        warm, far = Warm(torch.device("cpu")), make_segment(tree, "store://far", at_rungs=None)
        list(run_segment(replace(far, until=4), warm))
        left = sorted(storage.sizes_in(far.files.state))
        torch.distributed.barrier()
        list(run_segment(far, warm))
        torch.distributed.barrier()
        resumed = Run.read(far.files, far.key)
        near = make_segment(tree, "store://near", at_rungs=None)
        list(run_segment(near, warm))
        torch.distributed.barrier()
        return left, resumed, Run.read(near.files, near.key)
    finally:
        storage.is_remote, storage._at, kept.is_remote, kept.filesystem_at = before


@pytest.mark.slow
def test_the_state_of_several_ranks_in_an_object_store(make_tree, tmp_path):
    for name in ("far", "near"):  # a real store needs no folders
        (tmp_path / "store" / name).mkdir(parents=True)
    tree = make_tree(cluster=TWO, deepspeed={"preset": "zero2"})
    (left, resumed, whole), _ = run_ranks(paused_in_a_store, 2, tree, str(tmp_path / "store"))
    files = ["engine/state-00000.safetensors", "engine/state-00001.safetensors", "engine/state.json"]
    files += ["manifest-00000.json", "manifest-00001.json", "run.json"]
    assert left == [f"step-00000004/{name}" for name in files]
    assert resumed.status == "complete" and steps_of(resumed) == steps_of(whole) and resumed.metrics == whole.metrics


def join_by_tcp(rank: int, meeting: Any) -> None:
    import torch.distributed as dist

    from bft_ray.train import ranks

    if rank == 0:
        meeting.put(ranks.open_meeting("127.0.0.1"))
    address = meeting.get(timeout=180)
    meeting.put(address)
    ranks.join(address, rank, 2, 60.0)
    assert ranks.agree(lambda: rank) == 0 and ranks.gather(rank) == ([0, 1] if rank == 0 else [])
    with pytest.raises(ValueError, match="no luck"):
        ranks.agree(lambda: (_ for _ in ()).throw(ValueError("no luck")))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_of_several_machines_meet_at_a_port_of_one_address():
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    meeting = context.Queue()
    processes = [context.Process(target=join_by_tcp, args=(rank, meeting)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
